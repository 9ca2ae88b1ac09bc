// SPDX-License-Identifier: GPL-2.0-only
//! Leaving a COW file so that it can be picked up exactly: at a shutdown, before the module is
//! replaced, when an unmounted device has become quiet.
//!
//! The first write afterwards undoes it (`region_log.rs`), so correctness does not depend on what
//! comes after: a device that is written to again is simply live again.

use crate::logic::{
    block_map::Entry,
    private_format::{put, seal, Block, Kind, RootState, ENVELOPE, ROOT_PIECES},
    regions::GROUP_MASK,
};
use crate::region_log::{Log, OnDisk};
use crate::snapshot::Snapshot;
use crate::sys::{raw_io::Durability, rcu_cell::synchronize};
use kernel::{prelude::*, sync::Arc};

/// 64-bit words of a block of the copy map.
pub(crate) const MAP_WORDS: usize = (4096 - ENVELOPE) / 8;

/// What becomes of a running snapshot.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Its copies can be found again. Takes some room in the COW file each time.
    Snapshot,
    /// Only the changes: a reload shows it as failed.
    Changes,
}

impl Log {
    /// Seals the file. On success nothing on disk has to be believed but the bitmap, until the next
    /// write. Sleeps; writers wait meanwhile.
    ///
    /// # Errors
    ///
    /// The record has ended before, or ends now.
    pub(crate) fn seal(&self, snapshot: Option<&Arc<Snapshot>>, keep: Keep) -> Result {
        let mut disk = self.lock();
        if self.is_stopped() {
            return Err(EIO);
        }
        let settled = disk.root.state == RootState::Sealed
            && (keep == Keep::Changes || snapshot.is_none() || disk.root.map_words != 0);
        if settled {
            return Ok(());
        }
        if !matches!(disk.root.state, RootState::Live | RootState::Sealed) {
            return Err(EBUSY);
        }
        let result = self.write_sealed(&mut disk, snapshot, keep);
        if let Err(e) = result {
            self.lose(&mut disk, e);
        }
        result
    }

    fn write_sealed(
        &self,
        disk: &mut OnDisk,
        snapshot: Option<&Arc<Snapshot>>,
        keep: Keep,
    ) -> Result {
        let mut groups = KVVec::new();
        for (group, word) in disk.words.iter().enumerate() {
            let marks = word.marks & GROUP_MASK;
            if marks != 0 {
                self.regions.close(group, marks);
                groups.push(group, GFP_KERNEL)?;
            }
        }
        // Whoever found a region open has its blocks in the map now; everybody else is parked, and the
        // mark work waits for the lock that we hold.
        synchronize();
        disk.write_bitmaps(self, &groups, |_, _| 0)?;
        disk.root.map_words = 0;
        if let (Some(snapshot), Keep::Snapshot) = (snapshot, keep) {
            match self.write_copy_map(disk, snapshot) {
                Ok(()) => {}
                Err(e) => pr_warn!(
                    "the snapshot will not be there after a reload (error {}); the change map will\n",
                    e.to_errno()
                ),
            }
        }
        disk.read_identity()?;
        disk.root.state = RootState::Sealed;
        disk.write_root(Durability::AfterAllBefore)
    }

    /// Writes where the copies of `snapshot` are, into free blocks of its own COW file.
    fn write_copy_map(&self, disk: &mut OnDisk, snapshot: &Arc<Snapshot>) -> Result {
        if !snapshot.settle() {
            return Err(EBUSY);
        }
        let words = copy_map_words(snapshot)?;
        let blocks = words.len().div_ceil(MAP_WORDS) as u64;
        let mut pieces = [(0, 0); ROOT_PIECES];
        let mut missing = blocks;
        for piece in &mut pieces {
            if missing == 0 {
                break;
            }
            let (start, len) = snapshot.space.take(missing).ok_or(ENOSPC)?;
            *piece = (start, len);
            missing = missing.saturating_sub(len);
        }
        if missing != 0 {
            return Err(EFBIG);
        }
        let file = snapshot.file_map();
        let mut places = KVVec::new();
        for &(start, len) in &pieces {
            for number in start..start.saturating_add(len) {
                let (place, _) = Snapshot::locate(&file, number).ok_or(EINVAL)?;
                places.push((number, place), GFP_KERNEL)?;
            }
        }
        let (nonce, generation) = (disk.nonce, disk.generation);
        let mut left = places.iter().zip(words.chunks(MAP_WORDS));
        disk.io.write(Durability::Later, |block: &mut Block| {
            let (&(number, place), chunk) = left.next()?;
            block.fill(0);
            for (i, word) in chunk.iter().enumerate() {
                let at = ENVELOPE.saturating_add(i.saturating_mul(8));
                put(block, at, &word.to_le_bytes());
            }
            seal(block, Kind::CopyMap, nonce, number, generation);
            Some(place)
        })?;
        disk.root.map_words = words.len() as u64;
        disk.root.map_pieces = pieces;
        Ok(())
    }
}

/// The copy map: free and used room of the file, then where each run of old blocks is.
///
/// High water mark, number of segments, segments (start, length), then runs (origin block, file
/// block, length) to the end.
fn copy_map_words(snapshot: &Snapshot) -> Result<KVVec<u64>> {
    let mut words = KVVec::new();
    let segments = snapshot.space.segments();
    words.push(snapshot.space.high_water(), GFP_KERNEL)?;
    words.push(segments.clone().count() as u64, GFP_KERNEL)?;
    for s in segments {
        words.push(s.start, GFP_KERNEL)?;
        words.push(s.len, GFP_KERNEL)?;
    }
    let mut at = 0;
    while at < snapshot.map.blocks() {
        let run = snapshot.map.run(at, u64::MAX);
        if run.len == 0 {
            break;
        }
        match run.entry {
            Entry::Unclaimed => {}
            Entry::Disk(file_block) => {
                for word in [at, file_block, run.len] {
                    words.push(word, GFP_KERNEL)?;
                }
            }
            // `settle` has seen to it that there is none.
            Entry::Claimed(_) | Entry::Memory(_) => return Err(EBUSY),
        }
        at = at.saturating_add(run.len);
    }
    Ok(words)
}
