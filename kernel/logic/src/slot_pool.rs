// SPDX-License-Identifier: GPL-2.0-only
//! Which slots for bitmap blocks are free.
//!
//! A bitmap block is never overwritten while the region log may still name it: a new one goes to a free
//! slot, the log names that, and only then the old slot is free. There are more slots than groups, so
//! one is always free between two such steps.
//!
//! Guarded by the owner's lock; allocates in [`SlotPool::new`] only.

use super::mem::{AllocError, Slots};
use super::sync::{AtomicU64, Ordering};

/// See the module's description.
pub struct SlotPool {
    count: u32,
    /// One bit for each slot: it is taken. Plain numbers; the owner's lock orders all access.
    taken: Slots<AtomicU64>,
    /// Where to look first: slots are used in turn, which keeps writes together.
    next: u32,
}

/// The word that holds a slot's bit, and the bit.
fn place(slot: u32) -> (usize, u64) {
    ((slot / 64) as usize, 1u64.wrapping_shl(slot % 64))
}

impl SlotPool {
    /// `count` slots, all free. May sleep.
    ///
    /// # Errors
    ///
    /// No memory, or more slots than a number of 32 bits can name.
    pub fn new(count: u64) -> Result<Self, AllocError> {
        let count = u32::try_from(count).map_err(|_| AllocError)?;
        Ok(Self {
            count,
            taken: Slots::new_zeroed(count.div_ceil(64) as usize)?,
            next: 0,
        })
    }

    /// Takes this very slot. False when there is none of that number, or it is taken.
    pub fn occupy(&mut self, slot: u32) -> bool {
        let (word, bit) = place(slot);
        match self.taken.get(word) {
            Some(word) if slot < self.count => word.fetch_or(bit, Ordering::Relaxed) & bit == 0,
            _ => false,
        }
    }

    /// Takes a free slot; `None`: there is none.
    pub fn take(&mut self) -> Option<u32> {
        let from = self.next;
        let slot = self
            .free_in(from, self.count)
            .or_else(|| self.free_in(0, from))?;
        self.occupy(slot);
        self.next = slot.saturating_add(1);
        Some(slot)
    }

    /// The first free slot of `from..to`.
    fn free_in(&self, from: u32, to: u32) -> Option<u32> {
        let mut at = from;
        while at < to {
            let (word, _) = place(at);
            let taken = self.taken.get(word)?.load(Ordering::Relaxed);
            let free = !taken & u64::MAX.wrapping_shl(at % 64);
            let base = at & !63;
            if free != 0 {
                let slot = base.saturating_add(free.trailing_zeros());
                return (slot < to).then_some(slot);
            }
            at = base.saturating_add(64);
        }
        None
    }

    /// The slot is free again; one that does not exist is not.
    pub fn give(&mut self, slot: u32) {
        let (word, bit) = place(slot);
        if let Some(word) = self.taken.get(word) {
            word.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Memory that this holds, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.taken.len() as u64).saturating_mul(8)
    }
}
