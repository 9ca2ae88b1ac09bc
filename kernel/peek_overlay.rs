// SPDX-License-Identifier: GPL-2.0-only
//! A device with writes that are only kept in memory: what its blocks hold.

use crate::mem::{Context, LeafBox};
use crate::sys::{
    bdev::Bdev,
    bio::BioRef,
    ffi::NoIo,
    raw_io::{Block, RawIo},
};
use kernel::{prelude::*, rbtree::RBTree};

/// The most blocks that are kept: 256 MiB. A journal that has more than that to say is not replayed.
const MAX_BLOCKS: usize = 256 << 8;

/// Blocks that were written, above a device that stays as it is.
pub(crate) struct Overlay {
    written: RBTree<u64, LeafBox<Block>>,
    count: usize,
    below: RawIo,
}

impl Overlay {
    /// Nothing is written yet. `below` stays valid for as long as the result lives.
    pub(crate) fn new(below: Bdev) -> Result<Self> {
        Ok(Self { written: RBTree::new(), count: 0, below: RawIo::with_room(below, 1)? })
    }

    /// Whether some block of the bio was written.
    pub(crate) fn touches(&self, bio: BioRef<'_>) -> bool {
        let end = bio.sector().saturating_add(bio.sectors()).div_ceil(8);
        (bio.sector() / 8..end).any(|block| self.written.get(&block).is_some())
    }

    /// Does what the bio, a write, says.
    ///
    /// # Errors
    ///
    /// ENOSPC: there would be too many blocks; ENOMEM, EIO. A part may be written, as on any disk.
    pub(crate) fn write(&mut self, bio: BioRef<'_>) -> Result {
        let (start, end) = (bio.sector(), bio.sector().saturating_add(bio.sectors()));
        for block in start / 8..end.div_ceil(8) {
            let first = block.saturating_mul(8);
            let whole = start <= first && first.saturating_add(8) <= end;
            bio.overlay(self.own(block, whole)?, first);
        }
        Ok(())
    }

    /// Fills in the bio, a read.
    pub(crate) fn read(&mut self, bio: BioRef<'_>) -> Result {
        let (start, end) = (bio.sector(), bio.sector().saturating_add(bio.sectors()));
        for block in start / 8..end.div_ceil(8) {
            let first = block.saturating_mul(8);
            // The part of the block that is asked for.
            let from = start.max(first);
            let sectors = end.min(first.saturating_add(8)).saturating_sub(from);
            let content: &Block = match self.written.get(&block) {
                Some(own) => own,
                // Of an odd last block, which is shorter, this fails: no filesystem has its metadata there that has
                // blocks as large as ours.
                None => self.below.read(block)?,
            };
            let at = bytes(from.saturating_sub(first)) as usize;
            let part = content.get(at..).and_then(|b| b.get(..bytes(sectors) as usize)).ok_or(EIO)?;
            bio.give(bytes(from.saturating_sub(start)), part);
        }
        Ok(())
    }

    /// The block in memory. With what lies below, unless `whole` says that all of it will be written.
    fn own(&mut self, block: u64, whole: bool) -> Result<&mut Block> {
        if self.written.get(&block).is_none() {
            if self.count >= MAX_BLOCKS {
                return Err(ENOSPC);
            }
            // A filesystem waits for this, with locks of its own held.
            let _no_io = NoIo::enter();
            let mut own = LeafBox::<Block>::new(Context::Sleep)?;
            if !whole {
                *own = *self.below.read(block)?;
            }
            self.written.try_create_and_insert(block, own, GFP_KERNEL)?;
            self.count = self.count.saturating_add(1);
        }
        Ok(self.written.get_mut(&block).ok_or(EIO)?)
    }
}

/// Sectors of one bio in bytes: they fit, as a bio's size does.
fn bytes(sectors: u64) -> u32 {
    (sectors << 9) as u32
}
