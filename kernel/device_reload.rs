// SPDX-License-Identifier: GPL-2.0-only
//! RELOAD: picking up a COW file of a former life, before its filesystem is mounted.
//!
//! Order: the file is found without replaying the journal, its private blocks are read raw, the change
//! map is rebuilt, and the rules for writes are published; only then the call returns. So the journal
//! replay of the mount that follows is tracked, and recorded, like any other write. When the filesystem
//! is mounted the file is looked at again and protected (`device_mount.rs`).
//!
//! The call succeeds also when the file is bad: the device is there then, failed, tracks nothing and says
//! why. The mode is the file's own, whichever of the two calls was made.

use crate::sys::errno::{ESTALE, EUCLEAN};
use kernel::prelude::*;
use kernel::str::{BStr, CString};
use kernel::sync::Arc;

use crate::abi::cow::{self, Geometry};
use crate::cow_file::{CowFile, Layout, OriginPlace};
use crate::cow_seal::decode_extension;
use crate::device::{Device, Live, Watch};
use crate::device_point::{guard, mark_all, origin_extents, private_extents};
use crate::device_setup::cache_size_or_default;
use crate::device_status::OriginId;
use crate::device_transition::incremental_epoch;
use crate::epoch::Epoch;
use crate::events::Failure;
use crate::faults::{self, Fault};
use crate::identity;
use crate::log_load::{read_extents, read_root, Loaded, Reason};
use crate::logic::change_map::ChangeMap;
use crate::logic::extents::FileExtent;
use crate::logic::private_format::{Root, RootState};
use crate::origin::Origin;
use crate::params;
use crate::peek;
use crate::region_log::{Log, LogSetup};
use crate::snapshot::Snapshot;
use crate::sys::raw_io::RawIo;
use crate::sys::vfs::FileId;
use crate::tracker::Tracker;

/// The arguments of the call.
pub(crate) struct ReloadRequest {
    pub(crate) minor: u32,
    pub(crate) bdev: CString,
    /// From the root of the filesystem.
    pub(crate) cow: CString,
    /// 0: the module's default.
    pub(crate) cache_size: u64,
    /// RELOAD_SNAP.
    pub(crate) snapshot: bool,
}

/// Why a file cannot be picked up.
type Bad = (Error, Reason);

fn because(reason: Reason) -> impl Fn(Error) -> Bad {
    move |e| (e, reason)
}

impl Device {
    /// RELOAD_SNAP and RELOAD_INC. `claim` as in [`Device::set_up`].
    pub(crate) fn reload(
        this: &Arc<Self>,
        request: &ReloadRequest,
        claim: impl FnOnce(OriginId) -> Result,
    ) -> Result {
        let mut op = this.op.lock();
        let origin = Arc::new(Origin::open(this.bdev_path())?, GFP_KERNEL)?;
        // A read-only mount replays the journal too. Of ext4 that shows in the superblock; of xfs it need not.
        let mounted = origin.is_mounted_writable()? || origin.fs_type().to_bytes() == b"xfs";
        if mounted {
            pr_info!(
                "datto{}: {} is mounted: a reload comes before the first mount, a read-only one included\n",
                this.minor(),
                BStr::from_bytes(this.bdev_path().to_bytes())
            );
            return Err(EINVAL);
        }
        claim(OriginId::of(&origin))?;
        {
            let mut view = this.view.lock();
            view.unmounted = true;
            view.unverified = true;
            view.cache_size = cache_size_or_default(request.cache_size);
        }
        let live = match Self::pick_up(this, &origin, request) {
            Ok(live) => live,
            Err((e, why)) => {
                this.forget_tracking();
                let live = Self::nothing_to_pick_up(&origin, request)?;
                this.show(&live);
                pr_err!(
                    "datto{}: {} on {} cannot be picked up: {}. Nothing is tracked. Next: dbdctl destroy {}, \
                     then setup-snapshot; the next backup must be a full one\n",
                    this.minor(),
                    BStr::from_bytes(request.cow.to_bytes()),
                    BStr::from_bytes(this.bdev_path().to_bytes()),
                    why,
                    this.minor()
                );
                this.break_chain(e.to_errno());
                this.outlet.announce(this.minor(), e.to_errno(), Failure::Chain);
                live
            }
        };
        // Nobody is to find the device busy because of us.
        origin.close();
        let tracking = live.tracker.is_some();
        *op = Some(live);
        drop(op);
        if tracking {
            Self::look_later(this);
        }
        Ok(())
    }

    /// A device that only says what went wrong.
    fn nothing_to_pick_up(origin: &Arc<Origin>, request: &ReloadRequest) -> Result<Live> {
        let geometry = Geometry { origin_bytes: origin.bytes() };
        Ok(Live {
            origin: origin.clone(),
            tracker: None,
            changes: Arc::new(ChangeMap::new(geometry.blocks())?, GFP_KERNEL)?,
            geometry,
            file: None,
            log: None,
            cow_path: Arc::new(CString::try_from(&*request.cow)?, GFP_KERNEL)?,
            cow_extents: Arc::new(KVVec::new(), GFP_KERNEL)?,
            snapshot: None,
            snapshot_mode: request.snapshot,
            disk: None,
            seqid: 0,
            uuid: [0; 16],
            falloc_size: 0,
            freeze_ns: 0,
            crash_blocks: 0,
            behind: false,
            free_at_point: None,
        })
    }

    fn pick_up(
        this: &Arc<Self>,
        origin: &Arc<Origin>,
        request: &ReloadRequest,
    ) -> Result<Live, Bad> {
        let events = Arc::new(Watch(this.clone()), GFP_KERNEL).map_err(|e| (e.into(), "there is no memory"))?;
        // From here on it sees every bio, and tells of writes that no rule covers yet.
        let tracker = Tracker::new(origin.clone(), this.minor(), events)
            .map_err(because("it cannot be tracked"))?;
        let result = Self::pick_up_with(this, origin, request, &tracker);
        if result.is_err() {
            tracker.stop();
        }
        result
    }

    fn pick_up_with(
        this: &Arc<Self>,
        origin: &Arc<Origin>,
        request: &ReloadRequest,
        tracker: &Arc<Tracker>,
    ) -> Result<Live, Bad> {
        this.step("looking for the COW file");
        let ext = find(origin, this.minor(), &request.cow)?;
        this.step("reading what it says");
        let loaded = Loaded::read(origin.device(), origin.bytes(), ext.nonce, ext.roots)?;
        let mut io = RawIo::new(origin.device()).map_err(because("there is no memory"))?;
        let abandoned = check_state(&mut io, &loaded.root, origin)?;
        // Before anything is written to blocks that may belong to others by now. Those who write meanwhile, a mount
        // or a check of the filesystem, are seen by the tracker: reading the map of a large device takes its time.
        identity::compare(&mut io, &loaded.root).map_err(|why| (ESTALE, why))?;
        if tracker.was_written_to() && !faults::active(Fault::NoReloadCheck) {
            return Err((ESTALE, "somebody wrote to the device while it was looked at: it was being mounted, or checked"));
        }
        if loaded.root.snapshot != request.snapshot {
            pr_info!(
                "datto{}: {} is in {} mode, and goes on in it\n",
                this.minor(),
                BStr::from_bytes(request.cow.to_bytes()),
                if loaded.root.snapshot { "snapshot" } else { "incremental" }
            );
        }
        Self::publish(this, origin, request, tracker, ext, loaded, &abandoned)
            .map_err(because("there is no memory"))
            .and_then(|live| {
                // Once more, now that every write is tracked: whoever wrote before shows.
                let log = live.log.as_ref().ok_or((EINVAL, "it has no log"))?;
                let same = identity::compare(&mut io, &log.lock().root);
                if same.is_err() {
                    // As in `take_down`: the snapshot may be at work already.
                    tracker.end();
                    Log::stop(log);
                    if let Some(snapshot) = live.snapshot.as_ref() {
                        Snapshot::shutdown(snapshot);
                    }
                    Log::finish(log);
                }
                same.map_err(|why| (ESTALE, why))?;
                Ok(live)
            })
    }

    /// Publishes the rules for writes that follow from what was loaded.
    fn publish(
        this: &Arc<Self>,
        origin: &Arc<Origin>,
        request: &ReloadRequest,
        tracker: &Arc<Tracker>,
        ext: cow::Extension,
        loaded: Loaded,
        abandoned: &[FileExtent],
    ) -> Result<Live> {
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
        // Copies may have been put there for a snapshot that nobody has seen.
        mark_all(&changes, Some(&log), abandoned);
        let snapshot = if snapshot_mode {
            let segments = copies.as_ref().map(copy_segments).transpose()?;
            let snapshot = tracker.new_snapshot(
                file.extents(),
                geometry.private().end,
                params::copy_memory_max(),
                segments,
            )?;
            snapshot.set_mounted(false);
            Snapshot::set_cache_limit(&snapshot, this.cache_size());
            match &copies {
                Some(copies) => Snapshot::restore(&snapshot, copies, || log.break_seal())?,
                None => {
                    pr_warn!(
                        "datto{}: the snapshot has not outlived the crash; its changes have: dbdctl \
                         drop-snapshot {} once {} is mounted\n",
                        this.minor(),
                        this.minor(),
                        BStr::from_bytes(this.bdev_path().to_bytes())
                    );
                    Snapshot::fail(snapshot.as_arc_borrow(), EIO);
                    // Nobody knows which blocks of the file held copies.
                    mark_all(&changes, Some(&log), file.extents());
                }
            }
            Some(snapshot)
        } else {
            None
        };
        let epoch = match &snapshot {
            Some(snapshot) => KBox::new(
                Epoch {
                    changes: changes.clone(),
                    previous: None,
                    log: Some(log.clone()),
                    previous_log: None,
                    snapshot: Some(snapshot.clone()),
                    guard: guard(&[file.extents()])?,
                },
                GFP_KERNEL,
            )?,
            None => incremental_epoch(&changes, Some(&log), &private)?,
        };
        let cow_extents = Arc::new(origin_extents(file.extents())?, GFP_KERNEL)?;
        let cow_path = Arc::new(CString::try_from(file.path_in_fs())?, GFP_KERNEL)?;
        let live = Live {
            origin: origin.clone(),
            tracker: Some(tracker.clone()),
            changes,
            geometry,
            file: Some(file),
            log: Some(log),
            cow_path,
            cow_extents,
            snapshot,
            snapshot_mode,
            disk: None,
            seqid,
            uuid,
            falloc_size,
            freeze_ns: 0,
            crash_blocks,
            behind: false,
            free_at_point: None,
        };
        this.start_tracking(tracker);
        tracker.listen(true);
        drop(this.switch(tracker, epoch)?.wait());
        this.show(&live);
        Ok(live)
    }
}

fn copy_segments(copies: &crate::log_load::CopyMap) -> Result<KVVec<crate::logic::space::Segment>> {
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

/// What the header of the file says about where its private blocks are.
fn find(origin: &Arc<Origin>, minor: u32, path: &CStr) -> Result<cow::Extension, Bad> {
    let mut block = KBox::new([0u8; 4096], GFP_KERNEL).map_err(|e| (e.into(), "there is no memory"))?;
    peek::first_block(origin, minor, path, &mut block).map_err(|e| {
        let why = if e == ENOENT {
            "there is no such file"
        } else if e == EINVAL {
            "it is no COW file, or the device holds neither ext4 nor xfs"
        } else {
            "its filesystem could not be looked at"
        };
        (e, why)
    })?;
    let header = block
        .first_chunk()
        .and_then(|bytes| cow::Header::decode(bytes).ok())
        .ok_or((EINVAL, "it is no COW file"))?;
    if header.is_sealed() {
        return Err((ESTALE, "it was handed over: it is the next one that is in use"));
    }
    let ext = decode_extension(&block[..]).ok_or((EINVAL, "it was made by another driver"))?;
    if ext.state != cow::EXT_STATE_ROOTED {
        return Err((EUCLEAN, "it was made in so many pieces that it cannot be found again"));
    }
    if ext.origin_bytes != origin.bytes() {
        return Err((EINVAL, "the device has another size than when it was set up"));
    }
    Ok(ext)
}

/// The root allows the file to be picked up. Returns where a file lies that was to take over, and has not.
fn check_state(
    io: &mut RawIo,
    root: &Root,
    origin: &Origin,
) -> Result<KVVec<FileExtent>, Bad> {
    match root.state {
        RootState::Live | RootState::Sealed => {}
        RootState::Prepared => {
            return Err((ESTALE, "its snapshot was not taken: it is the file before it that counts"))
        }
        RootState::Closed => return Err((ESTALE, "another COW file has taken over")),
        RootState::Poisoned => {
            return Err((EUCLEAN, "its record had ended before: it says so itself"))
        }
    }
    if root.successor.nonce == 0 {
        return Ok(KVVec::new());
    }
    let geometry = Geometry { origin_bytes: origin.bytes() };
    if root.successor.roots.iter().any(|r| *r >= geometry.blocks()) {
        return Err((EUCLEAN, "its root is damaged"));
    }
    let layout = geometry.private();
    let nonce = root.successor.nonce;
    match read_root(io, nonce, root.successor.roots, &layout) {
        Ok((next, _)) if matches!(next.state, RootState::Prepared | RootState::Poisoned) => {
            read_extents(io, &next, nonce, &layout)
                .map_err(because("the extents of the next file are bad"))
        }
        Ok(_) => Err((ESTALE, "another COW file has taken over")),
        // Never completed: it was not announced before that.
        Err(e) if e == EUCLEAN => Ok(KVVec::new()),
        Err(e) => Err((e, "the roots of the next file cannot be read")),
    }
}
