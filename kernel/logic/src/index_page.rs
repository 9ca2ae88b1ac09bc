// SPDX-License-Identifier: GPL-2.0-only
//! How the places of copies are packed, in memory and on disk: eight bytes for up to 64 blocks.
//!
//! An entry says that some blocks of the origin in a row have their old data in as many blocks of the
//! COW file in a row. It is a word: the distance of its first block from a base (24 bits), the length less
//! one (6 bits), the place (34 bits). So entries sort by block as their words do. A page holds entries in
//! order, for one base; its blocks span at most 64 GiB of the device.
//!
//! A page on disk is a private block ([`super::private_format`]): behind the envelope the base, the number
//! of entries, the entries.
//!
//! No allocation; any context.

use super::private_format::{get_u64, put, Block, ENVELOPE};

/// Blocks of the origin in a row, and where their old data lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First block of the origin.
    pub block: u64,
    /// Its place: a block of the COW file. The places of the others follow.
    pub place: u64,
    /// Number of blocks.
    pub len: u64,
}

impl Run {
    /// The run without its first `n` blocks.
    pub const fn skip(self, n: u64) -> Self {
        Self {
            block: self.block.saturating_add(n),
            place: self.place.saturating_add(n),
            len: self.len.saturating_sub(n),
        }
    }

    /// The block behind the run.
    pub const fn end(self) -> u64 {
        self.block.saturating_add(self.len)
    }
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Where its copy lies, and how many blocks go on from there, in a row in both.
    Run {
        /// A block of the COW file.
        place: u64,
        /// Blocks, the first included.
        len: u64,
    },
    /// Nothing, and nothing of so many blocks from it on.
    Gap(u64),
}

const LEN_BITS: u32 = 6;
const PLACE_BITS: u32 = 34;
const DELTA_SHIFT: u32 = LEN_BITS + PLACE_BITS;

/// Blocks of one entry at most.
pub const MAX_LEN: u64 = 1 << LEN_BITS;
/// Places are below: 64 TiB.
pub const MAX_PLACE: u64 = 1 << PLACE_BITS;
/// Blocks between the first and the last entry of a page: less than so many.
pub const SPAN: u64 = 1 << (64 - DELTA_SHIFT);

/// The word of a run of at most [`MAX_LEN`] blocks, for a page with this base. `None`: it does not fit.
pub(super) fn pack(base: u64, run: Run) -> Option<u64> {
    let delta = run.block.checked_sub(base)?;
    let end = run.place.checked_add(run.len)?;
    let len = run.len.checked_sub(1)?;
    (delta < SPAN && len < MAX_LEN && end <= MAX_PLACE)
        .then_some(delta.wrapping_shl(DELTA_SHIFT) | len.wrapping_shl(PLACE_BITS) | run.place)
}

/// What a word says.
pub(super) fn unpack(base: u64, word: u64) -> Run {
    Run {
        block: base.saturating_add(delta(word)),
        place: word & (MAX_PLACE - 1),
        len: (word.wrapping_shr(PLACE_BITS) & (MAX_LEN - 1)).saturating_add(1),
    }
}

/// Distance of a word's first block from the base.
pub(super) fn delta(word: u64) -> u64 {
    word.wrapping_shr(DELTA_SHIFT)
}

/// The word for a base that is `n` blocks lower; the caller knows that it fits.
pub(super) fn raised(word: u64, n: u64) -> u64 {
    word.wrapping_add(n.wrapping_shl(DELTA_SHIFT))
}

/// The word for a base that is `n` blocks higher; the caller knows that it fits.
pub(super) fn lowered(word: u64, n: u64) -> u64 {
    word.wrapping_sub(n.wrapping_shl(DELTA_SHIFT))
}

/// What `run`, the last one that begins at or before `block`, says of it, for at most `max` blocks.
pub(super) fn within(run: Run, block: u64, max: u64) -> Option<Found> {
    let offset = block.checked_sub(run.block)?;
    let rest = run.skip(offset);
    (rest.len != 0).then_some(Found::Run {
        place: rest.place,
        len: rest.len.min(max),
    })
}

/// Where the fields of a page begin.
const BASE: usize = ENVELOPE;
const COUNT: usize = BASE + 8;
const ENTRIES: usize = COUNT + 8;
/// Entries that fit into a page on disk.
pub const PAGE_ENTRIES: usize = (4096 - ENTRIES) / 8;

fn at(i: usize) -> usize {
    ENTRIES.saturating_add(i.saturating_mul(8))
}

/// A page on disk that is being made.
#[derive(Default)]
pub struct Filling {
    base: u64,
    used: usize,
}

impl Filling {
    /// Adds a run of at most [`MAX_LEN`] blocks, which lies behind those before. False: it has to go to
    /// the next page.
    pub fn push(&mut self, page: &mut Block, run: Run) -> bool {
        if self.used == 0 {
            page.fill(0);
            self.base = run.block;
        }
        if self.used >= PAGE_ENTRIES {
            return false;
        }
        let Some(word) = pack(self.base, run) else {
            return false;
        };
        put(page, at(self.used), &word.to_le_bytes());
        self.used = self.used.saturating_add(1);
        true
    }

    /// Completes the page but for its envelope. The first block in it; `None` when it is empty.
    pub fn finish(self, page: &mut Block) -> Option<u64> {
        if self.used == 0 {
            return None;
        }
        put(page, BASE, &self.base.to_le_bytes());
        put(page, COUNT, &(self.used as u64).to_le_bytes());
        Some(self.base)
    }
}

/// A page as it was read, its envelope checked.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    block: &'a Block,
    base: u64,
    count: usize,
}

impl<'a> Page<'a> {
    /// `None`: it says what cannot be.
    pub fn open(block: &'a Block) -> Option<Self> {
        let count = usize::try_from(get_u64(block, COUNT)).ok()?;
        (count != 0 && count <= PAGE_ENTRIES).then(|| Self {
            block,
            base: get_u64(block, BASE),
            count,
        })
    }

    /// Entry number `i`.
    pub fn entry(&self, i: usize) -> Option<Run> {
        (i < self.count).then(|| unpack(self.base, get_u64(self.block, at(i))))
    }

    /// Number of the first entry that begins behind `block`.
    fn behind(&self, block: u64) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            if self.entry(middle).is_some_and(|e| e.block <= block) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        low
    }

    /// What the page says of `block`, for at most `max` blocks. A gap may go on behind the page.
    pub fn find(&self, block: u64, max: u64) -> Found {
        let next = self.behind(block);
        let before = next.checked_sub(1).and_then(|i| self.entry(i));
        if let Some(found) = before.and_then(|run| within(run, block, max)) {
            return found;
        }
        let gap = self
            .entry(next)
            .map_or(max, |e| e.block.saturating_sub(block));
        Found::Gap(gap.min(max))
    }
}

/// A page on disk, as the memory knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRef {
    /// First block of the origin in it.
    pub first: u64,
    /// The block of the COW file that it lies in.
    pub slot: u64,
}

/// The one of `pages`, in order, that `block` can be in.
pub fn page_of(pages: &[PageRef], block: u64) -> Option<usize> {
    pages.partition_point(|p| p.first <= block).checked_sub(1)
}
