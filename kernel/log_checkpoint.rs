// SPDX-License-Identifier: GPL-2.0-only
//! Checkpoints: the change map goes to disk, group by group, and marks are taken back.
//!
//! Order, which is all that matters: close the regions; wait for every writer that may have found
//! them open to finish its look, so that its blocks are in the map; write the groups' bitmap blocks,
//! to the copies that do not count; flush; write the log, which makes these copies count and takes
//! the marks back in one sector. A crash anywhere leaves either the marks or the bits.

use crate::abi::cow::{PrivateLayout, GROUP_BLOCKS};
use crate::logic::{
    private_format::{put, seal, Block, Kind, RootState, ENVELOPE},
    regions::GROUP_MASK,
};
use crate::region_log::{place, Log, OnDisk};
use crate::sys::{raw_io::Durability, rcu_cell::synchronize};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// Groups that are closed at once: bounds how long a writer may wait for a checkpoint.
const ROUND: usize = 64;

/// The bits of a word of the log that say which copy of the bitmap block counts.
const COPY_SHIFT: u32 = 30;

/// Which copy of a group's bitmap block counts: 0 none, 1 or 2.
pub(crate) const fn copy_of(word: u32) -> u32 {
    word >> COPY_SHIFT
}

/// The word that makes a group's other copy count, with these marks.
const fn next_copy(word: u32) -> u32 {
    match copy_of(word) {
        1 => 2,
        _ => 1,
    }
}

/// Where copy 1 or 2 of a group's bitmap block lies: number in the file.
pub(crate) fn bitmap_number(layout: &PrivateLayout, group: usize, copy: u32) -> u64 {
    let behind = if copy == 2 { 1 } else { 0 };
    layout
        .bitmap
        .saturating_add((group as u64).saturating_mul(2))
        .saturating_add(behind)
}

impl OnDisk {
    /// Writes the bitmap blocks of `groups` and makes them count. `marks` says which marks stay.
    /// The caller has made sure that all writes that are not marked are in the map.
    pub(crate) fn write_bitmaps(
        &mut self,
        log: &Log,
        groups: &[usize],
        marks: impl Fn(usize, u32) -> u32,
    ) -> Result {
        // Nothing is allocated here: memory may be waiting for a write to a region that is closed.
        let (words, nonce, generation) = (&self.words, self.nonce, self.generation);
        let (root, layout, bits) = (&self.root, &self.layout, &mut self.bits);
        let mut left = groups.iter();
        let mut lost = None;
        self.io.write(Durability::Later, |block: &mut Block| {
            let &group = left.next()?;
            let word = words.get(group).copied().unwrap_or(0);
            let number = bitmap_number(layout, group, next_copy(word));
            let at = match place(root, layout, number) {
                Ok(at) => at,
                Err(e) => {
                    lost = Some(e);
                    return None;
                }
            };
            block.fill(0);
            let first = (group as u64).saturating_mul(GROUP_BLOCKS);
            log.changes.copy_words(first, bits);
            for (i, word) in bits.iter().enumerate() {
                let at = ENVELOPE.saturating_add(i.saturating_mul(8));
                put(block, at, &word.to_le_bytes());
            }
            seal(block, Kind::Bitmap, nonce, number, generation);
            Some(at)
        })?;
        if let Some(e) = lost {
            return Err(e);
        }
        self.io.flush()?;
        for &group in groups {
            if let Some(word) = self.word_mut(group) {
                let copy = next_copy(*word) << COPY_SHIFT;
                *word = copy | (marks(group, *word & GROUP_MASK) & GROUP_MASK);
            }
        }
        self.write_log()
    }
}

impl Log {
    /// One checkpoint: takes back the marks of regions that were not written to since the last one.
    /// Whether there will be something to do for another one.
    pub(crate) fn checkpoint(&self) -> bool {
        let mut disk = self.lock();
        if self.is_stopped() || !self.checkpoints.load(Ordering::Acquire) {
            return false;
        }
        if disk.root.state != RootState::Live {
            return false;
        }
        let mut quiet = KVec::new();
        let mut marked = false;
        for group in 0..disk.words.len() {
            let marks = disk.words.get(group).map_or(0, |w| w & GROUP_MASK);
            if marks == 0 {
                continue;
            }
            marked = true;
            if quiet.len() >= ROUND {
                break;
            }
            let idle = marks & !self.regions.take_touched(group);
            if idle != 0 && quiet.push((group, idle), GFP_KERNEL).is_err() {
                break;
            }
        }
        if !quiet.is_empty() {
            if let Err(e) = self.take_back(&mut disk, &quiet) {
                self.lose(&mut disk, e);
                return false;
            }
        }
        marked
    }

    /// Writes the change map as it is, and keeps all marks: it is final, but until the next file counts
    /// the marks still have to cover what comes.
    pub(crate) fn write_final(&self) -> Result {
        let mut disk = self.lock();
        if self.is_stopped() {
            return Err(EIO);
        }
        let mut groups = KVVec::new();
        for (group, word) in disk.words.iter().enumerate() {
            if word & GROUP_MASK != 0 {
                groups.push(group, GFP_KERNEL)?;
            }
        }
        let result = disk.write_bitmaps(self, &groups, |_, marks| marks);
        if let Err(e) = result {
            self.lose(&mut disk, e);
        }
        result
    }

    fn take_back(&self, disk: &mut OnDisk, quiet: &[(usize, u32)]) -> Result {
        let mut groups = KVec::with_capacity(quiet.len(), GFP_KERNEL)?;
        for &(group, idle) in quiet {
            groups.push(group, GFP_KERNEL)?;
            self.regions.close(group, idle);
        }
        synchronize();
        disk.write_bitmaps(self, &groups, |group, marks| {
            let idle = quiet
                .iter()
                .find(|(g, _)| *g == group)
                .map_or(0, |(_, idle)| *idle);
            marks & !idle
        })
    }
}
