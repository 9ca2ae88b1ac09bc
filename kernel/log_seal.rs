// SPDX-License-Identifier: GPL-2.0-only
//! Leaving a COW file so that it can be picked up exactly: at a shutdown, before the module is
//! replaced, when an unmounted device has become quiet.
//!
//! The first write afterwards undoes it (`region_log.rs`), so correctness does not depend on what
//! comes after: a device that is written to again is simply live again.

use crate::index_pager::Pager;
use crate::logic::{
    index_page::Run,
    private_format::{put, seal, Block, Kind, RootState, ENVELOPE, ROOT_PIECES},
    regions::GROUP_MASK,
};
use crate::region_log::{Log, OnDisk};
use crate::snapshot::Snapshot;
use crate::sys::raw_io::Durability;
use core::sync::atomic::Ordering;
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
    /// write. Sleeps; writers wait meanwhile. `mounted`: the filesystem may be.
    ///
    /// # Errors
    ///
    /// The record has ended before, or ends now. EBUSY: a transition is on its way, at whose end another file
    /// may count: until then the marks have to stay.
    pub(crate) fn seal(
        this: &Arc<Self>,
        snapshot: Option<&Arc<Snapshot>>,
        keep: Keep,
        mounted: bool,
    ) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() {
            return Err(EIO);
        }
        if disk.root.successor.nonce != 0 || !this.checkpoints.load(Ordering::Acquire) {
            return Err(EBUSY);
        }
        let settled = disk.root.state == RootState::Sealed
            && (keep == Keep::Changes || snapshot.is_none() || disk.root.map_words != 0);
        if settled {
            return Ok(());
        }
        if !matches!(disk.root.state, RootState::Live | RootState::Sealed) {
            return Err(EBUSY);
        }
        let result = this.write_sealed(&mut disk, snapshot, keep, mounted);
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    fn write_sealed(
        &self,
        disk: &mut OnDisk,
        snapshot: Option<&Arc<Snapshot>>,
        keep: Keep,
        mounted: bool,
    ) -> Result {
        if !mounted {
            // Before anything is written.
            disk.same_medium()?;
        }
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
        disk.write_bitmaps(self, &groups, |_, _| 0)?;
        disk.root.map_words = 0;
        if let (Some(snapshot), Keep::Snapshot) = (snapshot, keep) {
            match self.write_copy_map(disk, snapshot) {
                Ok(()) => {}
                Err(e) => pr_warn!(
                    "{}: the snapshot will not be there after a reload (error {}); the change map will\n",
                    self.origin.name(),
                    e.to_errno()
                ),
            }
        }
        disk.at_rest = !mounted;
        disk.read_identity()?;
        disk.root.state = RootState::Sealed;
        disk.write_root(Durability::AfterAllBefore)
    }

    /// Writes where the copies of `snapshot` are, into free blocks of its own COW file.
    fn write_copy_map(&self, disk: &mut OnDisk, snapshot: &Arc<Snapshot>) -> Result {
        if !Snapshot::settle(snapshot) {
            return Err(EBUSY);
        }
        // Nothing moves from now on: no claims, no pages.
        let mut pager = snapshot.index.pager.lock();
        snapshot.index.rest();
        let head = copy_map_head(snapshot)?;
        let mut count = 0u64;
        each_run(&mut pager, snapshot, |_| {
            count = count.saturating_add(1);
            Ok(())
        })?;
        let words = count.saturating_mul(3).saturating_add(head.len() as u64);
        let blocks = words.div_ceil(MAP_WORDS as u64);
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
        places.reverse();
        let mut writer = CopyMapWriter { block: KBox::new([0; 4096], GFP_KERNEL)?, used: 0, places };
        for word in head {
            writer.push(disk, word)?;
        }
        each_run(&mut pager, snapshot, |run| {
            for word in [run.block, run.place, run.len] {
                writer.push(disk, word)?;
            }
            Ok(())
        })?;
        writer.flush(disk)?;
        disk.root.map_words = words;
        disk.root.map_pieces = pieces;
        Ok(())
    }
}

/// The first words of the copy map: free and used room of the file.
///
/// High water mark, number of segments, segments (start, length). Runs (origin block, file block, length)
/// follow to the end, in no order.
fn copy_map_head(snapshot: &Snapshot) -> Result<KVVec<u64>> {
    let mut words = KVVec::new();
    let segments = snapshot.space.segments();
    words.push(snapshot.space.high_water(), GFP_KERNEL)?;
    words.push(segments.clone().count() as u64, GFP_KERNEL)?;
    for s in segments {
        words.push(s.start, GFP_KERNEL)?;
        words.push(s.len, GFP_KERNEL)?;
    }
    Ok(words)
}

/// Calls `f` for all copies, joined as far as they come in a row.
fn each_run(
    pager: &mut Pager,
    snapshot: &Snapshot,
    mut f: impl FnMut(Run) -> Result,
) -> Result {
    let mut last = Run::default();
    pager.for_each(snapshot, |run| {
        if run.block == last.end() && run.place == last.place.saturating_add(last.len) && last.len != 0 {
            last.len = last.len.saturating_add(run.len);
            return Ok(());
        }
        let before = core::mem::replace(&mut last, run);
        if before.len != 0 {
            f(before)?;
        }
        Ok(())
    })?;
    if last.len != 0 {
        f(last)?;
    }
    Ok(())
}

/// Writes the copy map word by word.
struct CopyMapWriter {
    block: KBox<Block>,
    /// Words in `block`.
    used: usize,
    /// Numbers of the blocks to be written, and where they lie; the next one last.
    places: KVVec<(u64, u64)>,
}

impl CopyMapWriter {
    fn push(&mut self, disk: &mut OnDisk, word: u64) -> Result {
        let at = ENVELOPE.saturating_add(self.used.saturating_mul(8));
        put(&mut self.block[..], at, &word.to_le_bytes());
        self.used = self.used.saturating_add(1);
        if self.used == MAP_WORDS {
            self.flush(disk)?;
        }
        Ok(())
    }

    /// Writes what there is.
    fn flush(&mut self, disk: &mut OnDisk) -> Result {
        if self.used == 0 {
            return Ok(());
        }
        let (number, place) = self.places.pop().ok_or(EINVAL)?;
        seal(&mut self.block, Kind::CopyMap, disk.nonce, number, disk.generation);
        let (full, mut once) = (&self.block, Some(place));
        disk.io.write(Durability::Later, |block: &mut Block| {
            let place = once.take()?;
            block.copy_from_slice(&full[..]);
            Some(place)
        })?;
        self.block.fill(0);
        self.used = 0;
        Ok(())
    }
}
