// SPDX-License-Identifier: GPL-2.0-only
//! Which blocks' old data is safe, in memory or on disk: one bit for each. The heart of copy-on-write.
//!
//! # The life of a block
//!
//! | state     | bit | place known | old data is               | the origin holds | who moves it on           |
//! |-----------|-----|-------------|---------------------------|------------------|---------------------------|
//! | unclaimed | 0   | no          | on the origin             | old data         | the claim worker          |
//! | claimed   | 0   | yes         | on the origin, being read | old data         | whoever publishes reads   |
//! | preserved | 1   | yes         | in the ring, later on disk | anything        | nobody: final             |
//!
//! The *place* of a block is where its copy lies, or will lie, in the COW file. It is entered in the
//! index ([`super::index`]) when the block is claimed, and never changes. Whether the copy is still in
//! memory only the copy ring knows.
//!
//! Every write to the origin is held until its blocks are preserved. Hence the rule that a snapshot
//! reader lives by: it reads the origin first and looks at the bits *afterwards*; a block that is not
//! preserved then was not overwritten before the read.
//!
//! # Order
//!
//! 1. The place is entered in the index, under its lock.
//! 2. The old data has been read; its page is put into the ring, under the ring's lock.
//! 3. [`Preserved::set`] stores the bit with Release.
//! 4. The overwrite is submitted. Later the copy is written, and when that write has completed the page
//!    is taken out of the ring, under its lock.
//!
//! A reader loads the bit with Acquire. Who sees it set
//! * finds the place, because 1 comes before 3: in memory, or in the pages of the index on disk. Both are
//!   exchanged for one another under the index's lock, so that each look finds it in one of them;
//! * finds the page in the ring, because 2 comes before 3, *or* finds that it has gone (4): then the
//!   copy is on disk. There is no third case, so nobody need be told when a copy reaches the disk.
//!
//! Submission and completion of I/O are Release and Acquire for what the device hands from one to the
//! other. `tests/loom_claims.rs` checks all this, and that it breaks when a step is left out or swapped.
//!
//! A claimed block's place is in memory: what leaves it for the disk was preserved before (see
//! `index_pager.rs`). So whoever claims need not ask the disk.
//!
//! Everything is lock-free; [`Preserved::new`] and [`Preserved::reserve`] may sleep, the rest may be
//! called in any context. An untouched map costs eight bytes for each 128 MiB.

use super::lazy::Lazy;
use super::leaf::{index, mask, Leaf, LEAF_BLOCKS};
use super::mem::{AllocError, Context, Slots};
use super::sync::{AtomicU64, Ordering};
use core::mem::size_of;

/// See the module's description.
pub struct Preserved {
    blocks: u64,
    /// Leaves that hold memory.
    leaves: AtomicU64,
    root: Slots<Lazy<Leaf>>,
}

impl Preserved {
    /// A map of `blocks` blocks, none preserved. May sleep.
    ///
    /// # Errors
    ///
    /// No memory for the root.
    pub fn new(blocks: u64) -> Result<Self, AllocError> {
        let leaves = blocks.div_ceil(LEAF_BLOCKS);
        Ok(Self {
            blocks,
            leaves: AtomicU64::new(0),
            root: Slots::new_zeroed(usize::try_from(leaves).map_err(|_| AllocError)?)?,
        })
    }

    /// Blocks that the map covers.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Makes sure that `len` blocks from `start` on can be [set](Preserved::set). May sleep.
    ///
    /// # Errors
    ///
    /// No memory; what was allocated stays, which is harmless.
    pub fn reserve(&self, start: u64, len: u64) -> Result<(), AllocError> {
        let end = start.saturating_add(len).min(self.blocks);
        let mut at = start;
        while at < end {
            if let Some(slot) = self.root.get(index(at / LEAF_BLOCKS)) {
                let (_, fresh) = slot.get_or_alloc(Context::Sleep)?;
                self.leaves.fetch_add(u64::from(fresh), Ordering::Relaxed);
            }
            at = (at | (LEAF_BLOCKS - 1)).saturating_add(1);
        }
        Ok(())
    }

    /// Whether `len` blocks from `start` on can be [set](Preserved::set) without more memory.
    pub fn is_reserved(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len).min(self.blocks);
        let (first, last) = (start / LEAF_BLOCKS, end.saturating_sub(1) / LEAF_BLOCKS);
        (first..=last).all(|leaf| {
            self.root
                .get(index(leaf))
                .is_some_and(|slot| slot.page().is_some())
        })
    }

    /// The old data of `len` blocks from `start` on is safe now: they may be overwritten on the origin.
    /// What was not [reserved](Preserved::reserve) is left out.
    pub fn set(&self, start: u64, len: u64) {
        let end = start.saturating_add(len).min(self.blocks);
        let mut at = start;
        while at < end {
            let base = at & !63;
            let to = end.saturating_sub(base).min(64);
            if let Some(word) = self.cell(at) {
                // Release: what was done for this (page filled, place entered) is seen by whoever sees
                // the bit.
                word.fetch_or(mask(at.saturating_sub(base), to), Ordering::Release);
            }
            at = base.saturating_add(64);
        }
    }

    #[inline]
    fn cell(&self, block: u64) -> Option<&AtomicU64> {
        let leaf = self.root.get(index(block / LEAF_BLOCKS))?.page()?;
        leaf.get(index(block % LEAF_BLOCKS / 64))
    }

    /// Whether block `from` is preserved (false behind the end), and how many from it on, at least one
    /// and at most `max`, are alike.
    pub fn run(&self, from: u64, max: u64) -> (bool, u64) {
        let end = from.saturating_add(max).min(self.blocks);
        let mut first = None;
        let mut at = from;
        while at < end {
            let Some(slot) = self.root.get(index(at / LEAF_BLOCKS)) else {
                break;
            };
            let Some(leaf) = slot.page() else {
                if first == Some(true) {
                    break;
                }
                first = Some(false);
                at = (at | (LEAF_BLOCKS - 1)).saturating_add(1).min(end);
                continue;
            };
            // Acquire: see the module's description.
            let word = leaf
                .get(index(at % LEAF_BLOCKS / 64))
                .map_or(0, |w| w.load(Ordering::Acquire))
                .wrapping_shr((at % 64) as u32);
            let value = *first.get_or_insert(word & 1 != 0);
            let alike = if value {
                word.trailing_ones()
            } else {
                word.trailing_zeros()
            };
            let left = 64u64.saturating_sub(at % 64);
            let n = u64::from(alike).min(left);
            at = at.saturating_add(n).min(end);
            if n < left {
                break;
            }
        }
        (
            first == Some(true),
            at.saturating_sub(from).max(1).min(max.max(1)),
        )
    }

    /// Whether all of these blocks are preserved, so that a write to them need not wait. False when
    /// the range reaches behind the end of the map.
    #[inline]
    pub fn all(&self, start: u64, len: u64) -> bool {
        let from = start % 64;
        let to = from.saturating_add(len);
        if len != 0 && to <= 64 {
            // Most writes lie within a word. No bit is set behind the end. Acquire: see the module's description.
            let m = mask(from, to);
            return self
                .cell(start)
                .is_some_and(|word| word.load(Ordering::Acquire) & m == m);
        }
        self.all_of_words(start, len)
    }

    /// The same for any blocks.
    #[inline(never)]
    fn all_of_words(&self, start: u64, len: u64) -> bool {
        let within = start.checked_add(len).is_some_and(|end| end <= self.blocks);
        within && (len == 0 || self.run(start, len) == (true, len))
    }

    /// Memory that the map holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let leaves = self.leaves.load(Ordering::Relaxed);
        (self.root.len() as u64)
            .saturating_mul(size_of::<Lazy<Leaf>>() as u64)
            .saturating_add(leaves.saturating_mul(size_of::<Leaf>() as u64))
    }
}
