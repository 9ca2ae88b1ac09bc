// SPDX-License-Identifier: GPL-2.0-only
//! One tracked device: its parts, its status, and what the engine and the filesystem tell it.
//!
//! The operations are in `device_setup.rs`, `device_reload.rs`, `device_transition.rs`,
//! `device_destroy.rs` and `auto_expand.rs`; unmounts and mounts in `device_mount.rs`; the lock order is at the top of
//! `devices.rs`.
//!
//! # References in a circle
//!
//! The snapshot and the COW file hold the device (to tell it of failures and of an unmount), and the
//! device holds them. [`Device::take_down`] cuts the circle: every way that leaves the device without a
//! minor goes through it.

use core::sync::atomic::{AtomicI32, Ordering};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{new_mutex, new_spinlock, Arc, Mutex, SpinLock};
use kernel::workqueue::{
    impl_has_delayed_work, impl_has_work, new_delayed_work, new_work, DelayedWork, RawWorkItem, Work,
    WorkItem,
};

use crate::abi::cow::Geometry;
use crate::abi::ioctl::Extent;
use crate::cow_file::CowFile;
use crate::device_status::{AutoExpand, OriginId, Shown, View};
use crate::events::{Failure, Outlet, SnapshotEvents, UnmountHandler};
use crate::logic::change_map::ChangeMap;
use crate::logic::state::Call;
use crate::origin::Origin;
use crate::params;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::snapshot_disk::SnapshotDisk;
use crate::tracker::Tracker;

/// What a device consists of while it is tracked. Guarded by `Device::op`.
pub(crate) struct Live {
    pub(crate) origin: Arc<Origin>,
    /// `None` when a reload has failed: nothing is tracked.
    pub(crate) tracker: Option<Arc<Tracker>>,
    pub(crate) changes: Arc<ChangeMap>,
    pub(crate) geometry: Geometry,
    /// As `tracker`.
    pub(crate) file: Option<CowFile>,
    /// Where changes are recorded for the case of a crash, if they are.
    pub(crate) log: Option<Arc<Log>>,
    /// Path of the COW file within its filesystem.
    pub(crate) cow_path: Arc<CString>,
    /// Where the COW file lies, in order of origin blocks.
    pub(crate) cow_extents: Arc<KVVec<Extent>>,
    /// In snapshot mode, also when it has failed.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    /// Snapshot mode, also when a reload has found no snapshot.
    pub(crate) snapshot_mode: bool,
    /// The node; only in snapshot mode.
    pub(crate) disk: Option<SnapshotDisk>,
    pub(crate) seqid: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) falloc_size: u64,
    pub(crate) freeze_ns: u64,
    /// Blocks that crashes have added to the changes since the snapshot was taken.
    pub(crate) crash_blocks: u64,
    /// The COW file before this one could not be completed yet (`device_mount.rs`).
    pub(crate) behind: bool,
    /// Blocks that were free at the snapshot point, for growing by itself.
    pub(crate) free_at_point: Option<KVVec<Extent>>,
}

/// See the module's description.
#[pin_data]
pub(crate) struct Device {
    minor: u32,
    bdev_path: Arc<CString>,
    pub(crate) outlet: Arc<Outlet>,
    /// Lock 1 of `devices.rs`. `None` before SETUP has succeeded and after DESTROY.
    #[pin]
    pub(crate) op: Mutex<Option<Live>>,
    /// Lock 3 of `devices.rs`.
    #[pin]
    pub(crate) view: SpinLock<View>,
    /// What the tracking has ended with (negative), or 0. Set once, in any context.
    chain: AtomicI32,
    /// What the snapshot has failed with, until it is reported.
    failure: AtomicI32,
    #[pin]
    report_work: Work<Device, REPORT>,
    #[pin]
    release_work: Work<Device, RELEASE>,
    #[pin]
    grow_work: Work<Device, GROW>,
    #[pin]
    mount_work: Work<Device, MOUNT>,
    #[pin]
    pub(crate) poll_work: DelayedWork<Device, POLL>,
}

pub(crate) const REPORT: u64 = 0;
pub(crate) const RELEASE: u64 = 1;
const GROW: u64 = 2;
pub(crate) const MOUNT: u64 = 3;
pub(crate) const POLL: u64 = 4;

impl_has_work! {
    impl HasWork<Device, 0> for Device { self.report_work }
    impl HasWork<Device, 1> for Device { self.release_work }
    impl HasWork<Device, 2> for Device { self.grow_work }
    impl HasWork<Device, 3> for Device { self.mount_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Device, 4> for Device { self.poll_work }
}

impl Device {
    /// A device that tracks nothing yet.
    pub(crate) fn new(minor: u32, bdev_path: CString, outlet: Arc<Outlet>) -> Result<Arc<Self>> {
        let bdev_path = Arc::new(bdev_path, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                minor,
                bdev_path,
                outlet,
                op <- new_mutex!(None, "dattobd_op"),
                view <- new_spinlock!(View::new(), "dattobd_view"),
                chain: AtomicI32::new(0),
                failure: AtomicI32::new(0),
                report_work <- new_work!("dattobd_report"),
                release_work <- new_work!("dattobd_release"),
                grow_work <- new_work!("dattobd_grow"),
                mount_work <- new_work!("dattobd_mount"),
                poll_work <- new_delayed_work!("dattobd_poll"),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn minor(&self) -> u32 {
        self.minor
    }

    /// Path of the block device, as the user gave it.
    pub(crate) fn bdev_path(&self) -> &Arc<CString> {
        &self.bdev_path
    }

    /// Whether a part of `origin` is tracked here.
    pub(crate) fn tracks(&self, origin: &OriginId) -> bool {
        self.view
            .lock()
            .origin
            .is_some_and(|own| own.overlaps(origin))
    }

    pub(crate) fn set_origin(&self, origin: Option<OriginId>) {
        self.view.lock().origin = origin;
    }

    /// What the tracking has ended with (negative), or 0.
    pub(crate) fn chain_error(&self) -> i32 {
        self.chain.load(Ordering::Acquire)
    }

    /// The filesystem is not mounted, as far as we know.
    pub(crate) fn unmounted(&self) -> bool {
        self.view.lock().unmounted
    }

    /// Limit of the index in memory, in bytes.
    pub(crate) fn cache_size(&self) -> u64 {
        self.view.lock().cache_size
    }

    pub(crate) fn auto_expand(&self) -> Option<AutoExpand> {
        self.view.lock().auto_expand
    }

    /// From now on an unmount makes `tracker` look for the next mount.
    pub(crate) fn start_tracking(&self, tracker: &Arc<Tracker>) {
        let old = core::mem::replace(&mut self.view.lock().tracker, Some(tracker.clone()));
        drop(old);
    }

    /// Nothing is tracked any more: for an unmount there is nothing left to stop.
    pub(crate) fn forget_tracking(&self) {
        let mut view = self.view.lock();
        view.origin = None;
        let old = (view.tracker.take(), view.running.take(), view.log.take());
        drop(view);
        // Outside the spinlock: these may be the last references, and sleep when they go.
        drop(old);
    }

    /// Makes the state of the device's parts visible.
    pub(crate) fn show(&self, live: &Live) {
        self.replace_shown(Some(live.shown()));
    }

    pub(crate) fn replace_shown(&self, shown: Option<Shown>) {
        let mut view = self.view.lock();
        let old = core::mem::replace(&mut view.shown, shown);
        drop(view);
        // Outside the spinlock: it may hold last references.
        drop(old);
    }

    /// ENOENT when the device was destroyed; see [`State::may`].
    pub(crate) fn may(&self, call: Call) -> Result {
        self.state()?
            .may(call)
            .map_err(|e| Error::from_errno(e.negative()))
    }

    /// Queues a work item; one that is queued already stays queued once.
    pub(crate) fn queue<const ID: u64>(this: &Arc<Self>)
    where
        Arc<Self>: RawWorkItem<ID>,
    {
        let _ = this.outlet.queue().enqueue::<_, ID>(this.clone());
    }

    /// Notes that the change map is no longer to be trusted; false when that was known. Any context.
    pub(crate) fn break_chain(&self, errno: i32) -> bool {
        let first = self
            .chain
            .compare_exchange(0, errno, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if first {
            self.failure.store(errno, Ordering::Release);
        }
        first
    }

    /// Logs a step of an operation, with the parameter `debug`.
    pub(crate) fn step(&self, what: &str) {
        if params::debug() {
            pr_info!("datto{}: {}\n", self.minor, what);
        }
    }

    /// Lets the COW file grow, in a work item.
    pub(crate) fn wake_grow(this: &Arc<Self>) {
        Self::queue::<GROW>(this);
    }

    /// Makes a failure known, in a work item.
    pub(crate) fn report(&self) {
        let failure = self.failure.swap(0, Ordering::AcqRel);
        let (errno, what) = match self.chain_error() {
            0 => (failure, Failure::Snapshot),
            chain => (chain, Failure::Chain),
        };
        if failure != 0 {
            self.outlet
                .report_failure(self.minor, &self.bdev_path, errno, what);
        }
    }
}

impl Live {
    /// What is to be shown. Cannot fail: it is called behind points of no return.
    fn shown(&self) -> Shown {
        Shown {
            cow_path: self.cow_path.clone(),
            cow_bytes: self.file.as_ref().map_or(0, CowFile::size),
            cow_nonce: self.file.as_ref().map_or(0, |file| file.ext.nonce),
            cow_extents: self.cow_extents.clone(),
            origin_bytes: self.geometry.origin_bytes,
            seqid: self.seqid,
            uuid: self.uuid,
            falloc_size: self.falloc_size,
            freeze_ns: self.freeze_ns,
            changes: self.changes.clone(),
            snapshot: self.snapshot.clone(),
            snapshot_mode: self.snapshot_mode,
            log: self.log.clone(),
            crash_blocks: self.crash_blocks,
        }
    }

    /// The block device is not as large any more as when it was set up.
    pub(crate) fn outgrown(&self) -> bool {
        self.origin.has_other_size()
    }

    /// Shuts the node to openers, waiting up to 5 s for passing ones; EBUSY, EINTR. A device
    /// without a node is not open.
    pub(crate) fn close_node(&self) -> Result {
        self.disk.as_ref().map_or(Ok(()), SnapshotDisk::close)
    }

    /// Lets openers in again.
    pub(crate) fn reopen_node(&self) {
        if let Some(disk) = self.disk.as_ref() {
            disk.reopen();
        }
    }
}

impl WorkItem<REPORT> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.report();
    }
}

impl WorkItem<RELEASE> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::let_go(&this);
    }
}

impl WorkItem<MOUNT> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::look_soon(&this);
    }
}

impl WorkItem<POLL> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        Self::poll_for_mount(&this);
    }
}

impl WorkItem<GROW> for Device {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.grow_by_itself();
    }
}

/// A device as the snapshot and the COW file know it.
pub(crate) struct Watch(pub(crate) Arc<Device>);

impl SnapshotEvents for Watch {
    fn failed(&self, errno: i32) {
        self.0.failure.store(errno, Ordering::Release);
        Device::queue::<REPORT>(&self.0);
    }

    fn chain_broken(&self, errno: i32) {
        if self.0.break_chain(errno) {
            Device::queue::<REPORT>(&self.0);
        }
    }

    fn other_medium(&self, errno: i32) {
        let running = self.0.view.lock().running.clone();
        if let Some(snapshot) = running {
            // Its copies and index pages go nowhere any more.
            Snapshot::fail(snapshot.as_arc_borrow(), Error::from_errno(errno));
        }
        self.chain_broken(errno);
    }

    fn space_low(&self) {
        Device::queue::<GROW>(&self.0);
    }

    fn used_while_unmounted(&self) {
        Device::queue::<MOUNT>(&self.0);
    }
}

impl UnmountHandler for Watch {
    fn unmounted(&self) {
        Device::filesystem_gone(&self.0);
    }
}
