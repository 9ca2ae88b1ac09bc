// SPDX-License-Identifier: GPL-2.0-only
//! Checkpoints: the change map goes to disk, group by group, and marks are taken back.
//!
//! Order, which is all that matters: close the regions, so that the map holds the blocks of every writer
//! that found them open; write the groups' bitmap blocks, to free slots; flush; write the log, which makes
//! these slots count and takes the marks back in one sector; free the slots that counted before. A crash
//! anywhere leaves either the marks or the bits.

use crate::abi::cow::{PrivateLayout, GROUP_BLOCKS};
use crate::logic::{
    load::place,
    private_format::{encode_bitmap, seal, Block, GroupWord, Kind, RootState},
    regions::GROUP_MASK,
};
use crate::region_log::{Log, OnDisk};
use crate::sys::raw_io::Durability;
use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc};

/// Groups that are closed at once: bounds how long a writer may wait for a checkpoint.
const ROUND: usize = 64;

/// Where a slot for bitmap blocks lies: number in the file.
pub(crate) fn slot_number(layout: &PrivateLayout, slot: u32) -> u64 {
    layout.slots.saturating_add(u64::from(slot))
}

impl OnDisk {
    /// Writes the bitmap blocks of `groups` and makes them count. `marks` says which marks stay.
    /// The caller has made sure that all writes that are not marked are in the map.
    pub(crate) fn write_bitmaps(
        &mut self,
        log: &Log,
        mut groups: &[usize],
        marks: impl Fn(usize, u32) -> u32,
    ) -> Result {
        // Nothing is allocated here: memory may be waiting for a write to a region that is closed.
        while !groups.is_empty() {
            let written = self.write_some_bitmaps(log, groups, &marks)?;
            groups = groups.get(written..).unwrap_or(&[]);
        }
        Ok(())
    }

    /// As [`OnDisk::write_bitmaps`], for as many groups as there are free slots. How many: at least one.
    fn write_some_bitmaps(
        &mut self,
        log: &Log,
        groups: &[usize],
        marks: impl Fn(usize, u32) -> u32,
    ) -> Result<usize> {
        let (nonce, generation) = (self.nonce, self.generation);
        let (root, layout, bits) = (&self.root, &self.layout, &mut self.bits);
        let (slots, taken) = (&mut self.slots, &mut self.taken);
        taken.clear();
        let mut left = groups.iter();
        let mut lost = None;
        self.io.write(Durability::Later, |block: &mut Block| {
            if taken.len() == taken.capacity() {
                return None;
            }
            let &group = left.next()?;
            let slot = slots.take()?;
            // There is room, see above.
            let _ = taken.push_within_capacity(slot);
            let number = slot_number(layout, slot);
            let at = match place(root, layout, number) {
                Ok(at) => at,
                Err(flaw) => {
                    lost = Some(flaw.into());
                    return None;
                }
            };
            log.changes.copy_words((group as u64).saturating_mul(GROUP_BLOCKS), bits);
            encode_bitmap(block, group as u64, bits);
            seal(block, Kind::Bitmap, nonce, number, generation);
            Some(at)
        })?;
        if let Some(e) = lost {
            return Err(e);
        }
        self.io.flush()?;
        // From here on `taken` holds the slots that are to be freed.
        for i in 0..self.taken.len() {
            let (Some(&group), Some(&slot)) = (groups.get(i), self.taken.get(i)) else { break };
            let Some(word) = self.word_mut(group) else { continue };
            let old = word.slot;
            *word = GroupWord {
                marks: marks(group, word.marks & GROUP_MASK) & GROUP_MASK,
                slot: slot.saturating_add(1),
            };
            if let Some(freed) = self.taken.get_mut(i) {
                // One that never existed stays that: `give` knows no such slot.
                *freed = old.wrapping_sub(1);
            }
        }
        self.write_log()?;
        for &slot in &self.taken {
            self.slots.give(slot);
        }
        match self.taken.len() {
            // There is always a free slot: see `SPARE_SLOTS`.
            0 => Err(EIO),
            n => Ok(n),
        }
    }
}

impl Log {
    /// One checkpoint: takes back the marks of regions that were not written to since the last one.
    /// Whether there will be something to do for another one.
    pub(crate) fn checkpoint(this: &Arc<Self>) -> bool {
        let mut disk = this.lock();
        if this.is_stopped() || !this.checkpoints.load(Ordering::Acquire) {
            return false;
        }
        if disk.root.state != RootState::Live {
            return false;
        }
        let mut quiet = KVec::new();
        let mut marked = false;
        for group in 0..disk.words.len() {
            let marks = disk.words.get(group).map_or(0, |w| w.marks & GROUP_MASK);
            if marks == 0 {
                continue;
            }
            marked = true;
            if quiet.len() >= ROUND {
                break;
            }
            let idle = marks & !this.regions.take_touched(group);
            if idle != 0 && quiet.push((group, idle), GFP_KERNEL).is_err() {
                break;
            }
        }
        if !quiet.is_empty() {
            if let Err(e) = this.take_back(&mut disk, &quiet) {
                Self::lose(this, &mut disk, e);
                return false;
            }
        }
        marked
    }

    /// Writes the change map as it is, and keeps all marks: it is final, but until the next file counts
    /// the marks still have to cover what comes.
    pub(crate) fn write_final(this: &Arc<Self>) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() {
            return Err(EIO);
        }
        let mut groups = KVVec::new();
        for (group, word) in disk.words.iter().enumerate() {
            if word.marks & GROUP_MASK != 0 {
                groups.push(group, GFP_KERNEL)?;
            }
        }
        let result = disk.write_bitmaps(this, &groups, |_, marks| marks);
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    fn take_back(&self, disk: &mut OnDisk, quiet: &[(usize, u32)]) -> Result {
        let mut groups = KVec::with_capacity(quiet.len(), GFP_KERNEL)?;
        for &(group, idle) in quiet {
            groups.push(group, GFP_KERNEL)?;
            self.regions.close(group, idle);
        }
        disk.write_bitmaps(self, &groups, |group, marks| {
            let idle = quiet
                .iter()
                .find(|(g, _)| *g == group)
                .map_or(0, |(_, idle)| *idle);
            marks & !idle
        })
    }
}
