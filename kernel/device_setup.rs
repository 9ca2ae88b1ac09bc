// SPDX-License-Identifier: GPL-2.0-only
//! SETUP: the first snapshot of a device.

use kernel::prelude::*;
use kernel::str::{BStr, CString};
use kernel::sync::Arc;

use crate::abi::cow::Geometry;
use crate::device::{Device, Live, Watch};
use crate::device_point::Wanted;
use crate::device_status::OriginId;
use crate::origin::Origin;
use crate::params;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::snapshot_disk::SnapshotDisk;
use crate::sys::task::random_uuid;
use crate::tracker::Tracker;

/// The arguments of the call.
pub(crate) struct SetupRequest {
    pub(crate) minor: u32,
    pub(crate) bdev: CString,
    pub(crate) cow: CString,
    /// 0: the default share of the device.
    pub(crate) fallocated_mib: u64,
    /// 0: the module's default.
    pub(crate) cache_size: u64,
}

/// What `cache_size` means when it is 0.
pub(crate) fn cache_size_or_default(cache_size: u64) -> u64 {
    match cache_size {
        0 => params::cache_size_default(),
        n => n,
    }
}

impl Device {
    /// Starts tracking and takes the first snapshot. `claim` is asked whether the device may be
    /// tracked, once it is known which one it is. On failure nothing is left behind.
    pub(crate) fn set_up(
        this: &Arc<Self>,
        cow: &CStr,
        fallocated_mib: u64,
        cache_size: u64,
        claim: impl FnOnce(OriginId) -> Result,
    ) -> Result {
        let mut op = this.op.lock();
        let origin = Arc::new(Origin::open(this.bdev_path())?, GFP_KERNEL)?;
        if !origin.is_mounted_writable()? {
            pr_info!(
                "datto{}: {} has no filesystem mounted for writing\n",
                this.minor(),
                BStr::from_bytes(this.bdev_path().to_bytes())
            );
            return Err(EINVAL);
        }
        claim(OriginId::of(&origin))?;
        this.view.lock().cache_size = cache_size_or_default(cache_size);
        match Self::first_snapshot(this, origin, cow, fallocated_mib) {
            Ok(live) => {
                *op = Some(live);
                Ok(())
            }
            Err(e) => {
                this.forget_tracking();
                Err(e)
            }
        }
    }

    fn first_snapshot(
        this: &Arc<Self>,
        origin: Arc<Origin>,
        cow: &CStr,
        fallocated_mib: u64,
    ) -> Result<Live> {
        let events = Arc::new(Watch(this.clone()), GFP_KERNEL)?;
        let tracker = Tracker::new(origin.clone(), this.minor(), events)?;
        let result = Self::first_point(this, &origin, &tracker, cow, fallocated_mib);
        if result.is_err() {
            tracker.stop();
        }
        result
    }

    fn first_point(
        this: &Arc<Self>,
        origin: &Arc<Origin>,
        tracker: &Arc<Tracker>,
        cow: &CStr,
        fallocated_mib: u64,
    ) -> Result<Live> {
        let wanted = Wanted {
            cow,
            fallocated_mib,
            seqid: 1,
            uuid: random_uuid(),
        };
        let (prepared, point) = Self::prepare(this, origin, tracker, &wanted, None)?;
        this.start_tracking(tracker);
        let taken = this
            .take_point(&prepared.file, tracker, point)
            .and_then(|held| {
                let disk = SnapshotDisk::add(this.minor(), prepared.snapshot.clone())?;
                Ok((held, disk))
            });
        let (freeze_ns, disk) = match taken {
            Ok(taken) => taken,
            Err(e) => {
                // Before the file goes: nobody holds writes or copies data for it any more.
                tracker.end();
                Snapshot::shutdown(&prepared.snapshot);
                return Err(e);
            }
        };
        let live = Live {
            geometry: Geometry {
                origin_bytes: origin.bytes(),
            },
            origin: origin.clone(),
            tracker: Some(tracker.clone()),
            seqid: wanted.seqid,
            uuid: wanted.uuid,
            falloc_size: prepared.sizes.reported_bytes,
            freeze_ns,
            changes: prepared.changes,
            cow_path: prepared.cow_path,
            cow_extents: prepared.cow_extents,
            snapshot: Some(prepared.snapshot),
            disk: Some(disk),
            log: prepared.log.keep(),
            file: prepared.file.keep(),
            snapshot_mode: true,
            crash_blocks: 0,
            behind: false,
            free_at_point: None,
        };
        if let Some(log) = live.log.as_ref() {
            let _ = Log::update_root_and_identity(log, |_| {});
        }
        this.show(&live);
        Ok(live)
    }
}
