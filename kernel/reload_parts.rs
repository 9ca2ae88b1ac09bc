// SPDX-License-Identifier: GPL-2.0-only
//! RELOAD, second half: what was read of a COW file, put to work again.
//!
//! Everything is made in memory first ([`Parts::new`]); then the rules for writes are published
//! (`device_reload.rs`), and only behind them the file is written to ([`Parts::start`]).

use crate::sys::errno::ESTALE;
use kernel::prelude::*;
use kernel::str::{BStr, CString};
use kernel::sync::Arc;

use crate::abi::cow::{self, Geometry};
use crate::cow_file::{CowFile, Layout, OriginPlace};
use crate::device::{Device, Live};
use crate::device_point::{guard, mark_all, origin_extents, private_extents};
use crate::device_reload::ReloadRequest;
use crate::device_transition::steady_epoch;
use crate::epoch::Epoch;
use crate::log_load::{CopyMap, Loaded};
use crate::logic::change_map::ChangeMap;
use crate::logic::extents::FileExtent;
use crate::logic::private_format::Sibling;
use crate::origin::Origin;
use crate::params;
use crate::region_log::{Log, LogSetup};
use crate::snapshot::Snapshot;
use crate::sys::vfs::FileId;
use crate::tracker::Tracker;

/// What was loaded, made ready. Nothing was written, and nothing is tracked yet.
pub(crate) struct Parts {
    file: CowFile,
    private: KVVec<FileExtent>,
    changes: Arc<ChangeMap>,
    pub(crate) log: Arc<Log>,
    /// In snapshot mode.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Of a snapshot that was sealed.
    copies: Option<CopyMap>,
    geometry: Geometry,
    seqid: u64,
    uuid: [u8; 16],
    falloc_size: u64,
    crash_blocks: u64,
}

impl Parts {
    pub(crate) fn new(
        device: &Device,
        origin: &Arc<Origin>,
        request: &ReloadRequest,
        tracker: &Arc<Tracker>,
        ext: cow::Extension,
        loaded: Loaded,
    ) -> Result<Self> {
        let geometry = Geometry { origin_bytes: origin.bytes() };
        let Loaded { root, generation, words, changes, added, extents, copies } = loaded;
        let changes = Arc::new(changes, GFP_KERNEL)?;
        // Marks that no checkpoint has taken back between two crashes add the same blocks twice.
        let crash_blocks = root.crash_blocks.saturating_add(added).min(changes.count());
        let (seqid, uuid, falloc_size) = (root.seqid, root.uuid, root.falloc_size);
        let snapshot_mode = root.snapshot;
        let file = CowFile {
            bytes: root.file_bytes,
            data_offset: geometry.data_offset(),
            path_in_fs: with_slash(&request.cow)?,
            place: OriginPlace { dev: origin.dev(), blocks: origin.blocks() },
            id: FileId { ino: root.ino, generation: root.igen },
            ext,
            layout: if root.counted {
                Layout::Counted { first_data: geometry.first_data_position() }
            } else {
                Layout::Whole
            },
            watch: None,
            extents,
        };
        let private = private_extents(file.extents(), geometry)?;
        let log = Log::new(LogSetup {
            origin,
            tracker,
            changes: &changes,
            nonce: ext.nonce,
            roots: ext.roots,
            root,
            generation,
            words,
        })?;
        let snapshot = if snapshot_mode {
            let segments = copies.as_ref().map(copy_segments).transpose()?;
            let snapshot = tracker.new_snapshot(
                file.extents(),
                geometry.private().end,
                params::copy_memory_max(),
                segments,
            )?;
            snapshot.set_mounted(false);
            Snapshot::set_cache_limit(&snapshot, device.cache_size());
            Some(snapshot)
        } else {
            None
        };
        Ok(Self {
            file,
            private,
            changes,
            log,
            snapshot,
            copies,
            geometry,
            seqid,
            uuid,
            falloc_size,
            crash_blocks,
        })
    }

    /// The rules until the snapshot is at work: all is tracked and recorded, in `early` too. For an incremental
    /// they are those that stay.
    pub(crate) fn first_rules(&self, early: &Arc<ChangeMap>) -> Result<KBox<Epoch>> {
        let mut epoch = steady_epoch(&self.changes, Some(&self.log), None, &self.private)?;
        if let Some(snapshot) = &self.snapshot {
            epoch.previous = Some(early.clone());
            epoch.coming = Some(snapshot.clone());
            epoch.guard = guard(&[self.file.extents()])?;
        }
        Ok(epoch)
    }

    /// Puts the snapshot to work, if there is one, and makes the device of all.
    pub(crate) fn start(
        self,
        device: &Device,
        origin: &Arc<Origin>,
        tracker: &Arc<Tracker>,
        early: &ChangeMap,
        abandoned: &[FileExtent],
    ) -> Result<Live> {
        let Self { file, changes, log, snapshot, .. } = self;
        // Copies may have been put there for a snapshot that nobody has seen.
        mark_all(&changes, Some(&log), abandoned);
        if !abandoned.is_empty() {
            // Before the filesystem can give its blocks to others: whatever lies there later is not asked.
            let _ = Log::update_root(&log, |root| root.successor = Sibling::default());
        }
        let snapshot_mode = snapshot.is_some();
        if let Some(snapshot) = &snapshot {
            match &self.copies {
                Some(copies) => Snapshot::restore(snapshot, copies, || Log::break_seal(&log))?,
                None => {
                    pr_warn!(
                        "datto{}: the snapshot has not outlived the crash; its changes have: dbdctl \
                         drop-snapshot {} once {} is mounted\n",
                        device.minor(),
                        device.minor(),
                        BStr::from_bytes(device.bdev_path().to_bytes())
                    );
                    Snapshot::fail(snapshot.as_arc_borrow(), EIO);
                    // Nobody knows which blocks of the file held copies.
                    mark_all(&changes, Some(&log), file.extents());
                }
            }
            let epoch = steady_epoch(&changes, Some(&log), Some(snapshot), file.extents())?;
            drop(device.switch(tracker, epoch)?.wait());
            if early.count() != 0 && snapshot.error().is_none() {
                pr_err!(
                    "datto{}: somebody wrote to the device before the snapshot was at work again\n",
                    device.minor()
                );
                Snapshot::fail(snapshot.as_arc_borrow(), ESTALE);
            }
        }
        let cow_extents = Arc::new(origin_extents(file.extents())?, GFP_KERNEL)?;
        let cow_path = Arc::new(CString::try_from(file.path_in_fs())?, GFP_KERNEL)?;
        Ok(Live {
            origin: origin.clone(),
            tracker: Some(tracker.clone()),
            changes,
            geometry: self.geometry,
            file: Some(file),
            log: Some(log),
            cow_path,
            cow_extents,
            snapshot,
            snapshot_mode,
            disk: None,
            seqid: self.seqid,
            uuid: self.uuid,
            falloc_size: self.falloc_size,
            freeze_ns: 0,
            crash_blocks: self.crash_blocks,
            behind: false,
            free_at_point: None,
        })
    }
}

fn copy_segments(copies: &CopyMap) -> Result<KVVec<crate::logic::space::Segment>> {
    let mut out = KVVec::new();
    out.extend_from_slice(&copies.segments, GFP_KERNEL)?;
    Ok(out)
}

fn with_slash(path: &CStr) -> Result<CString> {
    if path.to_bytes().first() == Some(&b'/') {
        return Ok(CString::try_from(path)?);
    }
    CString::try_from_fmt(fmt!("/{}", BStr::from_bytes(path.to_bytes())))
}
