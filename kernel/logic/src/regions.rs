// SPDX-License-Identifier: GPL-2.0-only
//! Which regions of the origin may be written to without asking the region log.
//!
//! A region (4 MiB) is *open* when its mark is on disk, so that a write to it can go at once. Writers
//! ([`Regions::is_open`]) only look; the one owner of the log opens regions after it has written their
//! marks, and closes them before it takes marks back. Thirty regions make a group, which shares one
//! word here, one word of the log and one bitmap block.
//!
//! # Order
//!
//! A writer enters its blocks in the change map, passes a full barrier, and looks here; the owner
//! closes the region ([`Regions::close`]), which ends in a full barrier, and reads the change map then.
//! So either the writer finds it closed and waits, or its blocks are in what the owner writes: nobody
//! waits for anybody. `tests/loom_regions.rs` checks this.
//!
//! Lock-free; any context but [`Regions::new`].

use super::abi::cow::{GROUP_BLOCKS, GROUP_REGIONS, REGION_BLOCKS};
use super::mem::{AllocError, Slots};
use super::sync::{fence, AtomicU64, Ordering};

/// The bits of a group's regions.
pub const GROUP_MASK: u32 = (1 << GROUP_REGIONS) - 1;
/// The upper half of a word: the region was written to since the owner last asked.
const TOUCHED_SHIFT: u32 = 32;

/// See the module's description.
pub struct Regions {
    groups: Slots<AtomicU64>,
}

/// The groups that a range of blocks lies in, each with the bits of its regions.
pub struct Groups {
    next: u64,
    end: u64,
}

impl Groups {
    /// Of `len` blocks from `start` on.
    pub const fn of(start: u64, len: u64) -> Self {
        Self {
            next: start,
            end: start.saturating_add(len),
        }
    }
}

impl Iterator for Groups {
    type Item = (usize, u32);

    fn next(&mut self) -> Option<(usize, u32)> {
        if self.next >= self.end {
            return None;
        }
        let group = self.next / GROUP_BLOCKS;
        let base = group.saturating_mul(GROUP_BLOCKS);
        let behind = base.saturating_add(GROUP_BLOCKS);
        let first = self.next.saturating_sub(base) / REGION_BLOCKS;
        let last = self.end.min(behind).saturating_sub(base).saturating_sub(1) / REGION_BLOCKS;
        self.next = behind;
        let up_to_last = u32::MAX.wrapping_shr(31u32.saturating_sub(last as u32));
        let mask = up_to_last & u32::MAX.wrapping_shl(first as u32) & GROUP_MASK;
        Some((usize::try_from(group).unwrap_or(usize::MAX), mask))
    }
}

impl Regions {
    /// For `groups` groups, all closed. May sleep.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn new(groups: u64) -> Result<Self, AllocError> {
        let groups = usize::try_from(groups).map_err(|_| AllocError)?;
        Ok(Self {
            groups: Slots::new_zeroed(groups)?,
        })
    }

    /// Whether a write to `len` blocks from `start` on may go. Notes that they are written to.
    /// The caller has entered them in the change map and passed a full barrier.
    #[inline]
    pub fn is_open(&self, start: u64, len: u64) -> bool {
        let region = start / REGION_BLOCKS;
        let last = start.saturating_add(len).saturating_sub(1);
        if len != 0 && last / REGION_BLOCKS == region {
            // Most writes lie within a region.
            let group = usize::try_from(region / GROUP_REGIONS).unwrap_or(usize::MAX);
            return self.are_open(group, 1u32.wrapping_shl((region % GROUP_REGIONS) as u32));
        }
        self.are_all_open(start, len)
    }

    /// The same for any blocks.
    #[inline(never)]
    fn are_all_open(&self, start: u64, len: u64) -> bool {
        Groups::of(start, len).all(|(group, mask)| self.are_open(group, mask))
    }

    /// The same for these regions of a group.
    #[inline]
    fn are_open(&self, group: usize, mask: u32) -> bool {
        let Some(word) = self.groups.get(group) else {
            return false;
        };
        // Acquire: pairs with `open`.
        let now = word.load(Ordering::Acquire);
        if now as u32 & mask != mask {
            return false;
        }
        let touched = u64::from(mask) << TOUCHED_SHIFT;
        if now & touched != touched {
            // A hint for the owner, no more.
            word.fetch_or(touched, Ordering::Relaxed);
        }
        true
    }

    /// The marks of these regions are on disk.
    pub fn open(&self, group: usize, mask: u32) {
        if let Some(word) = self.groups.get(group) {
            // Release: the completed write of the marks. They count as touched: a write follows.
            let bits = u64::from(mask) | (u64::from(mask) << TOUCHED_SHIFT);
            word.fetch_or(bits, Ordering::Release);
        }
    }

    /// Keeps writers out of these regions. What the caller reads of the change map from now on has the
    /// blocks of all that found them open.
    pub fn close(&self, group: usize, mask: u32) {
        if let Some(word) = self.groups.get(group) {
            word.fetch_and(!u64::from(mask), Ordering::Relaxed);
        }
        // Pairs with the barrier that writers pass before they look.
        fence(Ordering::SeqCst);
    }

    /// The regions of a group that were written to since the last time, and forgets it.
    pub fn take_touched(&self, group: usize) -> u32 {
        self.groups.get(group).map_or(0, |word| {
            let old = word.fetch_and(u64::from(u32::MAX), Ordering::Relaxed);
            (old >> TOUCHED_SHIFT) as u32 & GROUP_MASK
        })
    }

    /// Memory that this holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.groups.len() as u64).saturating_mul(8)
    }
}
