// SPDX-License-Identifier: GPL-2.0-only
//! Which blocks of the COW file the next copies go to, and which hold copies already.
//!
//! The data part of the file is a list of *segments* of usable blocks, in ascending order. It starts
//! as one; when the file grows, only some of the gained blocks may be usable. Copies are put down
//! strictly in ascending order, so that they become large sequential writes, and so that one number,
//! the *high water mark*, says of every block of the file whether it was taken: it was when it lies
//! below the mark and in a segment. Blocks between the segments are never taken and go on reading as
//! they are on the origin.
//!
//! Everything is lock-free and shared: takers, readers and the one who adds segments need no common
//! lock. [`Space::new`] and [`Space::add`] may sleep (no write may wait for them), the rest may be called in any context.
//!
//! Order: a block is taken (a Release on the mark) before the write of a copy to it is submitted. A
//! snapshot reader that read such a block from the origin looks at the mark (Acquire) *after* its
//! read has completed, the same way as with the bits of `preserved.rs`: not taken then means not overwritten
//! before.

use super::lazy::{Content, Lazy};
use super::leaf::index;
use super::mem::{AllocError, Context, Slots, WORDS};
use super::sync::{AtomicU64, Ordering};

/// A page of segments: start and length alternate.
type Page = [AtomicU64; WORDS];

const PAGE_SEGMENTS: u64 = WORDS as u64 / 2;
/// Pages of segments at most: 131072 segments.
const MAX_PAGES: usize = WORDS;

/// Contiguous blocks of the COW file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First block, counted from the start of the file.
    pub start: u64,
    /// Number of blocks.
    pub len: u64,
}

impl Segment {
    /// The block behind the segment.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// See the module's description.
pub struct Space {
    pages: Slots<Lazy<Page>>,
    /// Segments that may be looked at. Release after the segment is written, Acquire before it is read.
    count: AtomicU64,
    /// Every usable block below is taken, none from here on. Only grows.
    high_water: AtomicU64,
    total: AtomicU64,
    used: AtomicU64,
}

impl Space {
    /// No usable block yet. May sleep.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn new() -> Result<Self, AllocError> {
        Ok(Self {
            pages: Slots::new_zeroed(MAX_PAGES)?,
            count: AtomicU64::new(0),
            high_water: AtomicU64::new(0),
            total: AtomicU64::new(0),
            used: AtomicU64::new(0),
        })
    }

    /// The two words of segment number `i`, if its page is there.
    fn words(&self, i: u64) -> Option<(&AtomicU64, &AtomicU64)> {
        let page = self.pages.get(index(i / PAGE_SEGMENTS))?.page()?;
        let at = index((i % PAGE_SEGMENTS).saturating_mul(2));
        Some((page.get(at)?, page.get(at.checked_add(1)?)?))
    }

    /// Segment number `i`, which is below `count`.
    fn segment(&self, i: u64) -> Option<Segment> {
        let (start, len) = self.words(i)?;
        Some(Segment {
            // Relaxed: written before `count` let us come here.
            start: start.load(Ordering::Relaxed),
            // Acquire: the last segment may be growing.
            len: len.load(Ordering::Acquire),
        })
    }

    /// Makes more blocks usable. They lie behind all that were added before; what does not is left
    /// out (a block that is not used is safe). One caller at a time. May sleep.
    ///
    /// # Errors
    ///
    /// No memory, or more than 131072 segments that do not touch. Nothing was added then.
    pub fn add(&self, segment: Segment) -> Result<(), AllocError> {
        let count = self.count.load(Ordering::Acquire);
        let last = count.checked_sub(1).and_then(|i| self.segment(i));
        let floor = last.map_or(0, |last| last.end());
        let start = segment.start.max(floor);
        let len = segment.end().saturating_sub(start);
        if len == 0 {
            return Ok(());
        }
        if let (Some(last), true) = (last, start == floor) {
            if let Some((_, word)) = self.words(count.saturating_sub(1)) {
                // The mark cannot have passed the old end, so what is added is not taken.
                word.store(last.len.saturating_add(len), Ordering::Release);
            }
        } else {
            let slot = self
                .pages
                .get(index(count / PAGE_SEGMENTS))
                .ok_or(AllocError)?;
            let (Content::Page(_), _) = slot.get_or_alloc(Context::Control)? else {
                return Err(AllocError);
            };
            let (first, length) = self.words(count).ok_or(AllocError)?;
            first.store(start, Ordering::Relaxed);
            length.store(len, Ordering::Relaxed);
            // Release: the segment before the number that lets others look at it.
            self.count.store(count.saturating_add(1), Ordering::Release);
        }
        self.total.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Number of the first segment that ends behind `file_block`.
    fn first_ending_behind(&self, file_block: u64) -> u64 {
        let (mut low, mut high) = (0, self.count.load(Ordering::Acquire));
        while low < high {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            if self.segment(middle).is_some_and(|s| s.end() <= file_block) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        low
    }

    /// The first segment that ends behind `file_block`.
    fn segment_behind(&self, file_block: u64) -> Option<Segment> {
        let i = self.first_ending_behind(file_block);
        // The count again: `segment` may only be asked below it.
        (i < self.count.load(Ordering::Acquire))
            .then(|| self.segment(i))
            .flatten()
    }

    /// Takes up to `max` blocks that are contiguous in the file: the first and how many. `None` when
    /// there are none left. What was taken is never given back.
    pub fn take(&self, max: u64) -> Option<(u64, u64)> {
        let mut mark = self.high_water.load(Ordering::Acquire);
        loop {
            let segment = self.segment_behind(mark)?;
            let start = segment.start.max(mark);
            let len = segment.end().saturating_sub(start).min(max);
            if len == 0 {
                return None;
            }
            // Release: see the module's description. Acquire: who takes after us sees the segments
            // that we saw.
            match self.high_water.compare_exchange(
                mark,
                start.saturating_add(len),
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => {
                    self.used.fetch_add(len, Ordering::Relaxed);
                    return Some((start, len));
                }
                Err(now) => mark = now,
            }
        }
    }

    /// All that is usable, in ascending order.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + Clone + '_ {
        (0..self.count.load(Ordering::Acquire)).filter_map(|i| self.segment(i))
    }

    /// Every usable block below is taken, none from here on.
    pub fn high_water(&self) -> u64 {
        self.high_water.load(Ordering::Acquire)
    }

    /// Takes all usable blocks below `mark`, as a former life of the file had. Before anybody else uses
    /// this.
    pub fn restore(&self, mark: u64) {
        self.high_water.store(mark, Ordering::Release);
        let used = self.taken_runs().fold(0u64, |n, s| n.saturating_add(s.len));
        self.used.store(used, Ordering::Relaxed);
    }

    /// Blocks that can hold copies, taken or not.
    pub fn total_blocks(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Blocks that were taken.
    pub fn used_blocks(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Blocks that can still be taken.
    pub fn free_blocks(&self) -> u64 {
        let used = self.used_blocks();
        self.total_blocks().saturating_sub(used)
    }

    /// Whether a copy was put, or is about to be put, into this block of the file.
    pub fn is_taken(&self, file_block: u64) -> bool {
        self.taken_run(file_block, 1).0
    }

    /// Whether this block of the file was taken, and how many (at most `max`) from it on are alike.
    pub fn taken_run(&self, file_block: u64, max: u64) -> (bool, u64) {
        // The mark first: whoever moved it saw the segments below it, hence so do we.
        let mark = self.high_water.load(Ordering::Acquire);
        match self.segment_behind(file_block) {
            Some(s) if file_block < mark => {
                if s.start <= file_block {
                    let end = s.end().min(mark);
                    (true, end.saturating_sub(file_block).min(max))
                } else {
                    // Not usable, up to the next segment; which itself may be above the mark.
                    (false, s.start.saturating_sub(file_block).min(max))
                }
            }
            _ => (false, max),
        }
    }

    /// All that was taken until now, in ascending order.
    pub fn taken_runs(&self) -> TakenRuns<'_> {
        TakenRuns {
            space: self,
            mark: self.high_water.load(Ordering::Acquire),
            next: 0,
        }
    }
}

/// Iterator of [`Space::taken_runs`].
pub struct TakenRuns<'a> {
    space: &'a Space,
    mark: u64,
    next: u64,
}

impl Iterator for TakenRuns<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        if self.next >= self.space.count.load(Ordering::Acquire) {
            return None;
        }
        let s = self.space.segment(self.next)?;
        self.next = self.next.saturating_add(1);
        let len = s.end().min(self.mark).saturating_sub(s.start);
        (len != 0).then_some(Segment {
            start: s.start,
            len,
        })
    }
}
