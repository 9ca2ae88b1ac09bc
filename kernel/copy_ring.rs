// SPDX-License-Identifier: GPL-2.0-only
//! Copies of old blocks on their way from the origin to the COW file.
//!
//! Every claimed block gets the next sequence number; slot `seq % capacity` holds what is known of
//! it until its copy is on disk. The window `tail..head` is never longer than the capacity, which
//! thereby bounds the memory for copies.
//!
//! ```text
//!   Reading --fill()--> Ready --next_batch()--> Writing --retire()--> Empty
//! ```
//! Ready and Writing slots hold the page, so that snapshot reads can take it from here. They look by place:
//! places in the COW file go up with the sequence numbers. A preserved block whose page is not here is on
//! disk (`logic/preserved.rs` has the argument).

use crate::sys::page::CopyPage;
use kernel::alloc::AllocError;
use kernel::prelude::*;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Reading,
    Ready,
    Writing,
}

struct Slot {
    state: State,
    page: Option<CopyPage>,
    /// Block of the COW file that the copy goes to.
    file_block: u64,
}

/// Pages kept back for when the system has none, so that writeback through us always gets on.
const RESERVE_PAGES: usize = 256;

/// See the module's description. The owner guards it by a spinlock; nothing in here sleeps.
pub(crate) struct CopyRing {
    slots: KVVec<Slot>,
    /// Lowest sequence number not yet retired.
    tail: u64,
    /// First sequence number that `next_batch` has not given out.
    cursor: u64,
    /// Next sequence number.
    head: u64,
    reserve: KVec<CopyPage>,
}

/// Copies that go to consecutive blocks of the COW file.
pub(crate) struct Batch {
    pub(crate) seq: u64,
    pub(crate) file_block: u64,
    pub(crate) len: u64,
}

impl CopyRing {
    /// A ring for at most `capacity` blocks. Allocates its reserve. May sleep.
    pub(crate) fn new(capacity: u64) -> Result<Self, AllocError> {
        let n = usize::try_from(capacity).map_err(|_| AllocError)?.max(RESERVE_PAGES * 2);
        let mut slots = KVVec::with_capacity(n, GFP_KERNEL)?;
        for _ in 0..n {
            slots.push(
                Slot { state: State::Empty, page: None, file_block: 0 },
                GFP_KERNEL,
            )?;
        }
        let mut reserve = KVec::with_capacity(RESERVE_PAGES, GFP_KERNEL)?;
        for _ in 0..RESERVE_PAGES {
            reserve.push(CopyPage::alloc().ok_or(AllocError)?, GFP_KERNEL)?;
        }
        Ok(Self { slots, tail: 0, cursor: 0, head: 0, reserve })
    }

    /// Most blocks at once.
    pub(crate) fn capacity(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Blocks between claim and disk.
    pub(crate) fn in_use(&self) -> u64 {
        self.head.saturating_sub(self.tail)
    }

    /// How many more blocks may be claimed now.
    pub(crate) fn room(&self) -> u64 {
        self.capacity().saturating_sub(self.in_use())
    }

    fn slot(&mut self, seq: u64) -> Option<&mut Slot> {
        if seq < self.tail || seq >= self.head {
            return None;
        }
        let n = self.capacity().max(1);
        self.slots.get_mut((seq % n) as usize)
    }

    /// A page from the reserve.
    pub(crate) fn reserve_page(&mut self) -> Option<CopyPage> {
        self.reserve.pop()
    }

    /// Takes back a page that is no longer needed.
    pub(crate) fn recycle(&mut self, page: CopyPage) {
        if page.is_sole() {
            // Full: dropped, that is freed.
            let _ = self.reserve.push_within_capacity(page);
        }
    }

    /// Enters `len` claimed blocks, whose places are `file_block` and so on; their first sequence number.
    /// The caller has asked for [`CopyRing::room`].
    pub(crate) fn push(&mut self, file_block: u64, len: u64) -> u64 {
        let first = self.head;
        for i in 0..len {
            self.head = self.head.saturating_add(1);
            if let Some(slot) = self.slot(first.saturating_add(i)) {
                *slot = Slot {
                    state: State::Reading,
                    page: None,
                    file_block: file_block.saturating_add(i),
                };
            }
        }
        first
    }

    /// The old data of `seq` has been read into `page`.
    pub(crate) fn fill(&mut self, seq: u64, page: CopyPage) {
        if let Some(slot) = self.slot(seq) {
            slot.page = Some(page);
            slot.state = State::Ready;
        }
    }

    /// The copy of `seq`, while it is here.
    pub(crate) fn page(&mut self, seq: u64) -> Option<CopyPage> {
        self.slot(seq)?.page.as_ref().map(CopyPage::share)
    }

    /// Next sequence number.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// Whether the old data of all below `seq` has been read.
    pub(crate) fn has_read(&mut self, seq: u64) -> bool {
        (self.tail..seq.min(self.head))
            .all(|seq| self.slot(seq).is_none_or(|s| s.state != State::Reading))
    }

    /// The lowest place whose copy may be here: all below are on disk.
    pub(crate) fn lowest_place(&mut self) -> u64 {
        let tail = self.tail;
        self.slot(tail).map_or(u64::MAX, |s| s.file_block)
    }

    /// The copies for the places from `place` on, those that are here.
    pub(crate) fn copies(&mut self, place: u64, out: &mut [Option<CopyPage>]) {
        // The first number whose place is not below.
        let (mut seq, mut end) = (self.tail, self.head);
        while seq < end {
            let middle = seq.saturating_add(end.saturating_sub(seq) / 2);
            if self.slot(middle).is_some_and(|s| s.file_block < place) {
                seq = middle.saturating_add(1);
            } else {
                end = middle;
            }
        }
        for (to, place) in out.iter_mut().zip(place..) {
            *to = None;
            if let Some(s) = self.slot(seq).filter(|s| s.file_block == place) {
                *to = s.page.as_ref().map(CopyPage::share);
                seq = seq.saturating_add(1);
            }
        }
    }

    /// The next copies to write, in order: at most `max`, at least `min`, bound for consecutive
    /// blocks of the file. They are `Writing` from then on.
    pub(crate) fn next_batch(&mut self, min: u64, max: u64) -> Option<Batch> {
        let seq = self.cursor.max(self.tail);
        let mut len = 0;
        let mut first = 0;
        while len < max {
            match self.slot(seq.saturating_add(len)) {
                Some(s) if s.state == State::Ready => {
                    if len == 0 {
                        first = s.file_block;
                    } else if s.file_block != first.saturating_add(len) {
                        break;
                    }
                    len += 1;
                }
                _ => break,
            }
        }
        // A run that cannot grow any more (the next block goes elsewhere) is as good as a full one.
        let closed = len > 0
            && matches!(self.slot(seq.saturating_add(len)), Some(s) if s.file_block != first.saturating_add(len));
        if len == 0 || (len < min && !closed) {
            return None;
        }
        for i in 0..len {
            if let Some(s) = self.slot(seq.saturating_add(i)) {
                s.state = State::Writing;
            }
        }
        self.cursor = seq.saturating_add(len);
        Some(Batch { seq, file_block: first, len })
    }

    /// The copy of `seq` is on disk: forgets it.
    pub(crate) fn retire(&mut self, seq: u64) {
        let page = match self.slot(seq) {
            Some(slot) => {
                slot.state = State::Empty;
                slot.page.take()
            }
            None => return,
        };
        if let Some(page) = page {
            self.recycle(page);
        }
        while self.tail < self.cursor {
            let tail = self.tail;
            match self.slot(tail) {
                Some(s) if s.state == State::Empty => self.tail += 1,
                _ => break,
            }
        }
    }
}
