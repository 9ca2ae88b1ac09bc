// SPDX-License-Identifier: GPL-2.0-only
//! Where the old data of each block is: the heart of copy-on-write.
//!
//! # The life of a block
//!
//! | entry        | old data is               | the origin holds  | who moves it on, to what                |
//! |--------------|---------------------------|-------------------|-----------------------------------------|
//! | `Unclaimed`  | on the origin             | old data          | the claim worker, to `Claimed`           |
//! | `Claimed`    | on the origin, being read | old data          | the one who claimed it, to `Memory`      |
//! | `Memory`     | in the copy ring          | anything          | the copier, to `Disk`                    |
//! | `Disk`       | in the COW file           | anything          | nobody: final                            |
//!
//! Every write to the origin is held until its blocks are *preserved* (`Memory` or `Disk`). Hence the
//! rule that a snapshot reader lives by: it reads the origin first and looks at the map *afterwards*;
//! a block that is not preserved then was not overwritten before the read.
//!
//! # Order
//!
//! * [`BlockMap::claim`] is one compare-and-swap: of two claimers one wins.
//! * [`BlockMap::publish`] and [`BlockMap::stored`] store with Release, [`BlockMap::get`] and all
//!   that is built on it loads with Acquire: who sees `Memory` sees the page, who sees `Disk` sees
//!   that the write to the COW file has completed.
//! * Publish comes before the overwrite is submitted, and the reader's look at the map comes after
//!   its read has completed. Submission and completion of I/O are Release and Acquire for what the
//!   device hands from one to the other. `tests/loom_claims.rs` checks this, and that it breaks
//!   without either half.
//!
//! Everything is lock-free; [`BlockMap::new`] and [`BlockMap::reserve`] may sleep, the rest may be
//! called in any context. Three levels of page-sized tables make an idle map nearly free: 8 bytes
//! for each GiB.

use super::lazy::Lazy;
use super::mem::{AllocError, Context, Slots, WORDS};
use super::sync::{AtomicU64, Ordering};
use core::mem::size_of;

type Leaf = [AtomicU64; WORDS];
type Table = [Lazy<Leaf>; WORDS];

const LEAF_BLOCKS: u64 = WORDS as u64;
const TABLE_BLOCKS: u64 = LEAF_BLOCKS * LEAF_BLOCKS;

/// Where the old data of a block is. Numbers are below 2^62.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// On the origin, and nobody wants to overwrite it.
    Unclaimed,
    /// On the origin, being read into the copy ring under this number.
    Claimed(u64),
    /// In the copy ring under this number.
    Memory(u64),
    /// In this block of the COW file.
    Disk(u64),
}

/// Some blocks whose entries are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The entry of the first block. Numbers go up by one with each block that follows.
    pub entry: Entry,
    /// Number of blocks.
    pub len: u64,
}

const KIND_SHIFT: u32 = 62;
const VALUE_MASK: u64 = (1 << KIND_SHIFT) - 1;
const KIND_CLAIMED: u64 = 1 << KIND_SHIFT;
const KIND_MEMORY: u64 = 2 << KIND_SHIFT;
const KIND_DISK: u64 = 3 << KIND_SHIFT;

impl Entry {
    /// The old data is safe: the block may be overwritten on the origin.
    pub const fn is_preserved(self) -> bool {
        matches!(self, Entry::Memory(_) | Entry::Disk(_))
    }

    /// `None`: the number does not fit.
    fn encode(self) -> Option<u64> {
        let (kind, value) = match self {
            Entry::Unclaimed => (0, 0),
            Entry::Claimed(seq) => (KIND_CLAIMED, seq),
            Entry::Memory(seq) => (KIND_MEMORY, seq),
            Entry::Disk(file_block) => (KIND_DISK, file_block),
        };
        (value <= VALUE_MASK).then_some(kind | value)
    }

    fn decode(raw: u64) -> Self {
        let value = raw & VALUE_MASK;
        match raw & !VALUE_MASK {
            KIND_CLAIMED => Entry::Claimed(value),
            KIND_MEMORY => Entry::Memory(value),
            KIND_DISK => Entry::Disk(value),
            _ => Entry::Unclaimed,
        }
    }

    /// The entry that continues this one `n` blocks later within a run.
    fn advanced(self, n: u64) -> Self {
        match self {
            Entry::Unclaimed => Entry::Unclaimed,
            Entry::Claimed(seq) => Entry::Claimed(seq.saturating_add(n)),
            Entry::Memory(seq) => Entry::Memory(seq.saturating_add(n)),
            Entry::Disk(at) => Entry::Disk(at.saturating_add(n)),
        }
    }
}

/// `x` as an index. Nothing is lost on the only target, x86-64; elsewhere the index is out of range.
fn index(x: u64) -> usize {
    usize::try_from(x).unwrap_or(usize::MAX)
}

/// See the module's description.
pub struct BlockMap {
    blocks: u64,
    /// Pages that hold memory.
    pages: AtomicU64,
    root: Slots<Lazy<Table>>,
}

impl BlockMap {
    /// A map of `blocks` blocks, all unclaimed. May sleep.
    ///
    /// # Errors
    ///
    /// No memory for the root.
    pub fn new(blocks: u64) -> Result<Self, AllocError> {
        let tables = blocks.div_ceil(TABLE_BLOCKS);
        Ok(Self {
            blocks,
            pages: AtomicU64::new(0),
            root: Slots::new_zeroed(usize::try_from(tables).map_err(|_| AllocError)?)?,
        })
    }

    /// Blocks that the map covers.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The leaf that holds a block, or how many blocks from this one on surely have none.
    fn leaf(&self, block: u64) -> Result<&Leaf, u64> {
        let table = self.root.get(index(block / TABLE_BLOCKS));
        let Some(table) = table.and_then(Lazy::page) else {
            return Err(TABLE_BLOCKS.saturating_sub(block % TABLE_BLOCKS));
        };
        let slot = table.get(index(block / LEAF_BLOCKS % LEAF_BLOCKS));
        slot.and_then(Lazy::page)
            .ok_or(LEAF_BLOCKS.saturating_sub(block % LEAF_BLOCKS))
    }

    fn cell(&self, block: u64) -> Option<&AtomicU64> {
        if block >= self.blocks {
            return None;
        }
        self.leaf(block).ok()?.get(index(block % LEAF_BLOCKS))
    }

    /// The entry of a block; unclaimed behind the end. Acquire: see the module's description.
    pub fn get(&self, block: u64) -> Entry {
        self.cell(block).map_or(Entry::Unclaimed, |cell| {
            Entry::decode(cell.load(Ordering::Acquire))
        })
    }

    /// Makes sure that `len` blocks from `start` on can be claimed. May sleep.
    ///
    /// # Errors
    ///
    /// No memory; what was allocated stays, which is harmless.
    pub fn reserve(&self, start: u64, len: u64) -> Result<(), AllocError> {
        let end = start.saturating_add(len).min(self.blocks);
        let mut at = start;
        while at < end {
            self.reserve_leaf(at)?;
            at = (at | (LEAF_BLOCKS - 1)).saturating_add(1);
        }
        Ok(())
    }

    fn reserve_leaf(&self, block: u64) -> Result<(), AllocError> {
        let Some(table) = self.root.get(index(block / TABLE_BLOCKS)) else {
            return Ok(());
        };
        let (_, fresh) = table.get_or_alloc(Context::Sleep)?;
        self.pages.fetch_add(u64::from(fresh), Ordering::Relaxed);
        let slot = table
            .page()
            .and_then(|t| t.get(index(block / LEAF_BLOCKS % LEAF_BLOCKS)));
        if let Some(slot) = slot {
            let (_, fresh) = slot.get_or_alloc(Context::Sleep)?;
            self.pages.fetch_add(u64::from(fresh), Ordering::Relaxed);
        }
        Ok(())
    }

    /// One step of a block's life, if it is where it should be.
    fn step(&self, block: u64, from: Entry, to: Entry) -> bool {
        let (Some(cell), Some(from), Some(to)) = (self.cell(block), from.encode(), to.encode())
        else {
            return false;
        };
        // Release: what was done for this step (page filled, write completed) is visible to whoever
        // loads the new entry with Acquire. Acquire: what we do next comes after the step.
        cell.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Claims an unclaimed block: the caller alone will read and publish it. False when it is not
    /// unclaimed, or was not [reserved](BlockMap::reserve), or `seq` is 2^62 or more.
    pub fn claim(&self, block: u64, seq: u64) -> bool {
        self.step(block, Entry::Unclaimed, Entry::Claimed(seq))
    }

    /// The claimed block's old data is in the copy ring now: it may be overwritten on the origin.
    /// False when the block was not claimed under this number.
    pub fn publish(&self, block: u64, seq: u64) -> bool {
        self.step(block, Entry::Claimed(seq), Entry::Memory(seq))
    }

    /// The block's old data is in the COW file now (its write has completed): the page may go once
    /// nobody reads it. False when it was not in memory under this number.
    pub fn stored(&self, block: u64, seq: u64, file_block: u64) -> bool {
        self.step(block, Entry::Memory(seq), Entry::Disk(file_block))
    }

    /// Enters copies that a former map knew: `len` blocks from `start` on, whose old data lies in the
    /// COW file from `file_block` on. Before anybody else uses the map. May sleep.
    ///
    /// # Errors
    ///
    /// No memory, or a block that is not unclaimed.
    pub fn restore(&self, start: u64, file_block: u64, len: u64) -> Result<(), AllocError> {
        self.reserve(start, len)?;
        for i in 0..len {
            let place = Entry::Disk(file_block.saturating_add(i));
            if !self.step(start.saturating_add(i), Entry::Unclaimed, place) {
                return Err(AllocError);
            }
        }
        Ok(())
    }

    /// Calls `f(block, count, entry)` for `len` blocks from `start` on, in order, until it returns
    /// false. `count` is more than one only for unclaimed blocks that have no leaf.
    fn walk(&self, start: u64, len: u64, mut f: impl FnMut(u64, u64, Entry) -> bool) {
        let end = start.saturating_add(len).min(self.blocks);
        let mut at = start;
        while at < end {
            let left = end.saturating_sub(at);
            match self.leaf(at) {
                Err(missing) => {
                    let n = missing.min(left);
                    if !f(at, n, Entry::Unclaimed) {
                        return;
                    }
                    at = at.saturating_add(n);
                }
                Ok(leaf) => {
                    let cells = leaf.iter().skip(index(at % LEAF_BLOCKS));
                    for cell in cells.take(index(left)) {
                        if !f(at, 1, Entry::decode(cell.load(Ordering::Acquire))) {
                            return;
                        }
                        at = at.saturating_add(1);
                    }
                }
            }
        }
    }

    /// Whether all of these blocks are preserved, so that a write to them need not wait. False when
    /// the range reaches behind the end of the map.
    pub fn preserved(&self, start: u64, len: u64) -> bool {
        if start.checked_add(len).is_none_or(|end| end > self.blocks) {
            return false;
        }
        let mut all = true;
        self.walk(start, len, |_, _, entry| {
            all = entry.is_preserved();
            all
        });
        all
    }

    /// Whether any of these blocks is preserved. A snapshot read of the origin asks this when it has
    /// completed: on true some of the data may be new, and the map must be asked again.
    pub fn any_published(&self, start: u64, len: u64) -> bool {
        let mut any = false;
        self.walk(start, len, |_, _, entry| {
            any = entry.is_preserved();
            !any
        });
        any
    }

    /// How many of the `max_len` blocks from `start` on are unclaimed before the first that is not.
    pub fn unclaimed_run(&self, start: u64, max_len: u64) -> u64 {
        let mut len = 0u64;
        self.walk(start, max_len, |_, n, entry| {
            let more = entry == Entry::Unclaimed;
            if more {
                len = len.saturating_add(n);
            }
            more
        });
        len
    }

    /// The run that starts at `start`, at most `max_len` long: blocks of one kind, and with
    /// consecutive numbers where the kind has numbers. `len` is 0 behind the end of the map.
    pub fn run(&self, start: u64, max_len: u64) -> Run {
        let mut run = Run {
            entry: Entry::Unclaimed,
            len: 0,
        };
        self.walk(start, max_len, |_, n, entry| {
            if run.len == 0 {
                run = Run { entry, len: n };
                return true;
            }
            let more = entry == run.entry.advanced(run.len);
            if more {
                run.len = run.len.saturating_add(n);
            }
            more
        });
        run
    }

    /// Memory that the map holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let pages = self.pages.load(Ordering::Relaxed);
        (self.root.len() as u64)
            .saturating_mul(size_of::<Lazy<Table>>() as u64)
            .saturating_add(pages.saturating_mul(size_of::<Leaf>() as u64))
    }
}
