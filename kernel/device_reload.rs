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
use crate::cow_seal::decode_extension;
use crate::device::{Device, Live, Watch};
use crate::device_setup::cache_size_or_default;
use crate::device_status::OriginId;
use crate::events::Failure;
use crate::faults::{self, Fault};
use crate::identity;
use crate::log_load::{read_extents, read_root, Loaded, Reason};
use crate::logic::change_map::ChangeMap;
use crate::logic::extents::FileExtent;
use crate::logic::private_format::{Root, RootState};
use crate::origin::Origin;
use crate::peek;
use crate::region_log::Log;
use crate::reload_parts::Parts;
use crate::snapshot::Snapshot;
use crate::sys::raw_io::RawIo;
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
        if origin.is_claimed().map_err(because("it cannot be tracked"))? {
            // Its first writes may have come before the tracker.
            return Err((EBUSY, "somebody is mounting or checking its filesystem"));
        }
        let ext = find(origin, this.minor(), &request.cow)?;
        this.step("reading what it says");
        let loaded = Loaded::read(origin.device(), origin.bytes(), ext.nonce, ext.roots)?;
        let mut io = RawIo::new(origin.device()).map_err(because("there is no memory"))?;
        let abandoned = check_state(&mut io, &loaded.root, origin)?;
        if loaded.root.snapshot != request.snapshot {
            pr_info!(
                "datto{}: {} is in {} mode, and goes on in it\n",
                this.minor(),
                BStr::from_bytes(request.cow.to_bytes()),
                if loaded.root.snapshot { "snapshot" } else { "incremental" }
            );
        }
        // Before anything of ours can be written to blocks that may belong to others by now.
        unchanged(tracker, &mut io, &loaded.root)?;
        let parts = Parts::new(this, origin, request, tracker, ext, loaded)
            .map_err(because("there is no memory"))?;
        let (log, snapshot) = (parts.log.clone(), parts.snapshot.clone());
        let result = Self::take_over(this, origin, tracker, parts, &mut io, &abandoned);
        if result.is_err() {
            // As in `take_down`: the snapshot may be at work already.
            tracker.end();
            Log::stop(&log);
            if let Some(snapshot) = &snapshot {
                Snapshot::shutdown(snapshot);
            }
            Log::finish(&log);
        }
        result
    }

    /// Publishes the rules for writes, and makes sure that nobody has written before they were there.
    fn take_over(
        this: &Arc<Self>,
        origin: &Arc<Origin>,
        tracker: &Arc<Tracker>,
        parts: Parts,
        io: &mut RawIo,
        abandoned: &[FileExtent],
    ) -> Result<Live, Bad> {
        // Not that of the change map: these writes find a snapshot that is not at work yet.
        let early = ChangeMap::new(origin.blocks())
            .and_then(|map| Arc::new(map, GFP_KERNEL))
            .map_err(Error::from)
            .map_err(because("there is no memory"))?;
        this.start_tracking(tracker);
        tracker.listen(true);
        parts
            .first_rules(&early)
            .and_then(|epoch| this.switch(tracker, epoch))
            .map_err(because("there is no memory"))?
            .wait();
        // Once more, now that every write is tracked: whoever wrote before shows.
        unchanged(tracker, io, &parts.log.lock().root)?;
        let live = parts
            .start(this, origin, tracker, &early, abandoned)
            .map_err(because("it could not be taken over: memory is short, or the disk fails"))?;
        this.show(&live);
        Ok(live)
    }
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

/// Nobody has written to the device since it was last tracked: neither before the tracker was there, nor since then,
/// without a rule. Reading the map of a large device takes its time, in which a mount or a check may begin.
fn unchanged(tracker: &Tracker, io: &mut RawIo, root: &Root) -> Result<(), Bad> {
    if tracker.was_written_to() && !faults::active(Fault::NoReloadCheck) {
        let why = "somebody wrote to the device while it was looked at: it was being mounted, or checked";
        return Err((ESTALE, why));
    }
    identity::compare(io, root).map_err(|why| (ESTALE, why))
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
        Ok((next, _)) if next.state == RootState::Prepared => read_extents(io, &next, nonce, &layout)
            .map_err(because("the extents of the next file are bad")),
        // It counted, or does: who gives one up takes its name back first.
        Ok(_) => Err((ESTALE, "another COW file has taken over")),
        // It was good when it was named.
        Err(e) if e == EUCLEAN => Err((EUCLEAN, "another COW file was about to take over, and cannot be read")),
        Err(e) => Err((e, "the roots of the next file cannot be read")),
    }
}
