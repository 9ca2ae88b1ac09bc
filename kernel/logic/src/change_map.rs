// SPDX-License-Identifier: GPL-2.0-only
//! Which blocks of the origin changed since the snapshot was taken: one bit for each.
//!
//! Memory is allocated when a part of the device is first written to: a leaf of one page covers
//! 32768 blocks (128 MiB). An untouched map costs eight bytes for each 128 MiB.
//!
//! Marking happens in the path of every write, in contexts that may not sleep, so it never fails and
//! never waits: where no leaf can be had, its whole part of the device counts as changed from then
//! on. Too much is safe, too little never is. Bits are only ever set.
//!
//! Everything here is lock-free and may be called in any context unless it says otherwise.

use super::abi::ioctl::Extent;
use super::lazy::{Content, Lazy};
use super::leaf::{index, mask, Leaf, LEAF_BLOCKS};
use super::mem::{AllocError, Context, Slots};
use super::sync::{fence, AtomicU64, Ordering};
use core::mem::size_of;

/// See the module's description.
pub struct ChangeMap {
    blocks: u64,
    /// Bits set. Follows the bits: exact as soon as no [`ChangeMap::mark`] is running.
    marked: AtomicU64,
    /// Leaves that hold memory.
    leaves: AtomicU64,
    root: Slots<Lazy<Leaf>>,
}

/// Sets the bits `from..to` (`from < to <= LEAF_BLOCKS`) and returns how many were not set before.
fn set_bits(leaf: &Leaf, from: u64, to: u64) -> u64 {
    let first = from / 64;
    let mut base = first.wrapping_mul(64);
    let mut new = 0u64;
    // From a slice that starts at the first word: `skip` on a zip walks the leaf up to there.
    for word in leaf.get(index(first)..).unwrap_or(&[]) {
        if base >= to {
            break;
        }
        let n = or_word(
            word,
            from.saturating_sub(base),
            to.saturating_sub(base).min(64),
        );
        new = new.wrapping_add(n);
        base = base.wrapping_add(64);
    }
    new
}

/// Sets the bits `from..to` of a word (`from < to <= 64`) and returns how many of them were not set before.
fn or_word(word: &AtomicU64, from: u64, to: u64) -> u64 {
    let m = mask(from, to);
    // A block that is written again and again stays in everybody's cache: look before writing. The
    // fence at the end of `mark` orders this look as it orders the write.
    if word.load(Ordering::Relaxed) & m == m {
        return 0;
    }
    // Of several callers that set the same bit exactly one sees it clear: this counts each bit once.
    let old = word.fetch_or(m, Ordering::AcqRel);
    if old & m == 0 {
        // Counting ones takes twenty instructions, as the kernel is built.
        return to.wrapping_sub(from);
    }
    u64::from((m & !old).count_ones())
}

impl ChangeMap {
    /// A map of `blocks` blocks, nothing marked. May sleep.
    ///
    /// # Errors
    ///
    /// No memory for the root.
    pub fn new(blocks: u64) -> Result<Self, AllocError> {
        let leaves = blocks.div_ceil(LEAF_BLOCKS);
        Ok(Self {
            blocks,
            marked: AtomicU64::new(0),
            leaves: AtomicU64::new(0),
            root: Slots::new_zeroed(usize::try_from(leaves).map_err(|_| AllocError)?)?,
        })
    }

    /// Blocks that the map covers.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Marks `len` blocks from `start` on; what lies behind the end of the map is left out.
    ///
    /// Never fails and never sleeps (see the module's description). It ends in a full memory
    /// barrier, also when every bit was set before: whatever the caller loads afterwards (the epoch,
    /// the state of a log) is loaded after the bits are visible to all.
    pub fn mark(&self, start: u64, len: u64) {
        let end = start.saturating_add(len).min(self.blocks);
        if !self.mark_in_word(start, end) {
            self.mark_pieces(start, end, Context::Atomic);
        }
        fence(Ordering::SeqCst);
    }

    /// The same for what most writes are: blocks within a word of a leaf that is there. False when these
    /// are not, and nothing was done.
    fn mark_in_word(&self, start: u64, end: u64) -> bool {
        let base = start & !63;
        if start >= end || end > base.saturating_add(64) {
            return false;
        }
        let slot = self.root.get(index(start / LEAF_BLOCKS));
        let Some(Content::Page(leaf)) = slot.map(Lazy::load) else {
            return false;
        };
        let Some(word) = leaf.get(index(start % LEAF_BLOCKS / 64)) else {
            return false;
        };
        let new = or_word(word, start.saturating_sub(base), end.saturating_sub(base));
        if new != 0 {
            // Relaxed: as in `mark_pieces`.
            self.marked.fetch_add(new, Ordering::Relaxed);
        }
        true
    }

    fn mark_pieces(&self, start: u64, end: u64, context: Context) {
        let mut new = 0u64;
        let mut at = start;
        while at < end {
            let leaf = at / LEAF_BLOCKS;
            let base = leaf.saturating_mul(LEAF_BLOCKS);
            let next = base.saturating_add(LEAF_BLOCKS).min(end);
            if let Some(slot) = self.root.get(index(leaf)) {
                let (from, to) = (at.saturating_sub(base), next.saturating_sub(base));
                new = new.wrapping_add(self.mark_leaf(slot, leaf, from, to, context));
            }
            at = next;
        }
        if new != 0 {
            // Relaxed: a number for people; nothing is derived from its order.
            self.marked.fetch_add(new, Ordering::Relaxed);
        }
    }

    /// Blocks that the leaf number `leaf` really has: fewer in the last one.
    fn leaf_blocks(&self, leaf: u64) -> u64 {
        let base = leaf.saturating_mul(LEAF_BLOCKS);
        self.blocks.saturating_sub(base).min(LEAF_BLOCKS)
    }

    /// Marks `from..to` of a leaf; returns how many blocks were not marked before.
    fn mark_leaf(&self, slot: &Lazy<Leaf>, leaf: u64, from: u64, to: u64, context: Context) -> u64 {
        let all = self.leaf_blocks(leaf);
        if from == 0 && to >= all && slot.fill() {
            // All of an untouched leaf: "full" is the exact answer, and free.
            return all;
        }
        match slot.get_or_alloc(context) {
            Ok((Content::Page(page), fresh)) => {
                if fresh {
                    self.leaves.fetch_add(1, Ordering::Relaxed);
                }
                set_bits(page, from, to)
            }
            Ok((Content::Full | Content::Empty, _)) => 0,
            Err(AllocError) => {
                if slot.fill() {
                    return all;
                }
                // Somebody else put a leaf there meanwhile.
                match slot.load() {
                    Content::Page(page) => set_bits(page, from, to),
                    Content::Full | Content::Empty => 0,
                }
            }
        }
    }

    /// The word that block `block` is in.
    fn word(&self, block: u64) -> u64 {
        let slot = self.root.get(index(block / LEAF_BLOCKS));
        match slot.map(Lazy::load) {
            Some(Content::Page(page)) => page
                .get(index(block % LEAF_BLOCKS / 64))
                // Acquire: who sees a bit sees what its writer did before it set the bit.
                .map_or(0, |w| w.load(Ordering::Acquire)),
            Some(Content::Full) => u64::MAX,
            Some(Content::Empty) | None => 0,
        }
    }

    /// Whether a block is marked; false behind the end of the map.
    pub fn is_marked(&self, block: u64) -> bool {
        block < self.blocks && self.word(block).wrapping_shr((block % 64) as u32) & 1 != 0
    }

    /// The first block from `from` on whose bit is `value`.
    fn find(&self, from: u64, value: bool) -> Option<u64> {
        let flip = if value { 0 } else { u64::MAX };
        let mut at = from;
        while at < self.blocks {
            let uniform = match self.root.get(index(at / LEAF_BLOCKS)).map(Lazy::load) {
                Some(Content::Page(_)) => None,
                Some(Content::Full) => Some(true),
                Some(Content::Empty) | None => Some(false),
            };
            let last = match uniform {
                Some(v) if v == value => return Some(at),
                Some(_) => at | (LEAF_BLOCKS - 1),
                None => {
                    let hits = (self.word(at) ^ flip) & u64::MAX.wrapping_shl((at % 64) as u32);
                    if hits != 0 {
                        let block = (at & !63).saturating_add(u64::from(hits.trailing_zeros()));
                        return (block < self.blocks).then_some(block);
                    }
                    at | 63
                }
            };
            at = last.checked_add(1)?;
        }
        None
    }

    /// The next run of marked blocks, as long as it gets, at or after `from`; it starts at `from`
    /// when that block lies within a run. A run that grows meanwhile is reported as it was found.
    pub fn next_run(&self, from: u64) -> Option<Extent> {
        let start = self.find(from, true)?;
        let end = self.find(start, false).unwrap_or(self.blocks);
        let len = end.saturating_sub(start);
        Some(Extent { start, len })
    }

    /// Number of marked blocks: exact when no `mark` is running, at most behind by those that are.
    pub fn count(&self) -> u64 {
        self.marked.load(Ordering::Relaxed)
    }

    /// Marks all that is marked in `other`. May sleep. Never fails: without memory it marks too much.
    pub fn merge_from(&self, other: &ChangeMap) {
        let mut from = 0;
        while let Some(run) = other.next_run(from) {
            let end = run.start.saturating_add(run.len);
            self.mark_pieces(run.start, end.min(self.blocks), Context::Sleep);
            from = end;
        }
        fence(Ordering::SeqCst);
    }

    /// Memory that the map holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let leaves = self.leaves.load(Ordering::Relaxed);
        (self.root.len() as u64)
            .saturating_mul(size_of::<Lazy<Leaf>>() as u64)
            .saturating_add(leaves.saturating_mul(size_of::<Leaf>() as u64))
    }

    /// Copies the bits of the blocks from `first_block`, a multiple of 64, on to `out`; zeros behind the
    /// end. Returns false when all are 0.
    pub fn copy_words(&self, first_block: u64, out: &mut [u64]) -> bool {
        let mut any = 0;
        for (i, word) in (0u64..).zip(out.iter_mut()) {
            let block = first_block.saturating_add(i.saturating_mul(64));
            *word = if block < self.blocks {
                let behind = self.blocks.saturating_sub(block).min(64);
                self.word(block) & mask(0, behind)
            } else {
                0
            };
            any |= *word;
        }
        any != 0
    }

    /// Marks what is set in `words`, which stand for the blocks from `first_block` on. May sleep.
    pub fn mark_words(&self, first_block: u64, words: impl Iterator<Item = u64>) {
        for (i, word) in (0u64..).zip(words) {
            let base = first_block.saturating_add(i.saturating_mul(64));
            let mut left = word;
            while left != 0 {
                let from = u64::from(left.trailing_zeros());
                let len = u64::from(left.wrapping_shr(from as u32).trailing_ones());
                let start = base.saturating_add(from);
                let end = start.saturating_add(len).min(self.blocks);
                self.mark_pieces(start, end, Context::Sleep);
                left &= !mask(from, from.saturating_add(len).min(64));
            }
        }
        fence(Ordering::SeqCst);
    }

    /// Writes the COW file's index entries of the blocks from `first_block` on to `out`: 1 for a
    /// marked block, 0 for others and behind the end. Returns false when all are 0.
    pub fn fill_index(&self, first_block: u64, out: &mut [u64]) -> bool {
        let mut any = 0;
        let mut word = 0;
        for (i, entry) in (0u64..).zip(out.iter_mut()) {
            let block = first_block.saturating_add(i);
            if i == 0 || block % 64 == 0 {
                word = self.word(block);
            }
            *entry = if block < self.blocks {
                word.wrapping_shr((block % 64) as u32) & 1
            } else {
                0
            };
            any |= *entry;
        }
        any != 0
    }
}
