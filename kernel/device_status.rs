// SPDX-License-Identifier: GPL-2.0-only
//! What is shown of a device. Reading it waits for no operation.

use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

use crate::abi::ioctl::{self as abi, Extent};
use crate::device::Device;
use crate::logic::change_map::ChangeMap;
use crate::logic::errno::Errno;
use crate::logic::state::State;
use crate::origin::Origin;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::tracker::Tracker;

/// Where a tracked device lies: sectors of a disk. Two `block_device`s of the same place are the
/// same device.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct OriginId {
    /// Address of the disk; valid as an identity while the device is held open.
    pub(crate) disk: usize,
    pub(crate) start: u64,
    pub(crate) sectors: u64,
}

impl OriginId {
    /// Where `origin` lies.
    pub(crate) fn of(origin: &Origin) -> Self {
        Self {
            disk: origin.device().disk() as usize,
            start: origin.device().start_sector(),
            sectors: origin.device().sectors(),
        }
    }

    /// Some sector belongs to both.
    pub(crate) fn overlaps(&self, other: &OriginId) -> bool {
        let end = self.start.saturating_add(self.sectors);
        let other_end = other.start.saturating_add(other.sectors);
        self.disk == other.disk && self.start < other_end && other.start < end
    }
}

/// How a COW file grows by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AutoExpand {
    pub(crate) step_mib: u64,
    pub(crate) reserve_mib: u64,
}

/// What changes with an operation. Replaced as a whole, so that what it refers to is never dropped
/// under the spinlock; read in place, so that no reader ever holds the last reference to an engine
/// part and takes it down.
pub(crate) struct Shown {
    pub(crate) cow_path: Arc<CString>,
    pub(crate) cow_bytes: u64,
    pub(crate) cow_nonce: u64,
    /// Where the COW file lies on the origin, in order of origin blocks.
    pub(crate) cow_extents: Arc<KVVec<Extent>>,
    pub(crate) origin_bytes: u64,
    pub(crate) seqid: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) falloc_size: u64,
    pub(crate) freeze_ns: u64,
    pub(crate) changes: Arc<ChangeMap>,
    /// In snapshot mode, running or failed.
    pub(crate) snapshot: Option<Arc<Snapshot>>,
    pub(crate) snapshot_mode: bool,
    pub(crate) log: Option<Arc<Log>>,
    /// Blocks that crashes have added to the changes.
    pub(crate) crash_blocks: u64,
}

/// The fields behind `Device::view`.
pub(crate) struct View {
    /// What is tracked, while it is.
    pub(crate) origin: Option<OriginId>,
    /// The filesystem is not mounted, as far as we know.
    pub(crate) unmounted: bool,
    /// It is mounted, and what a mount brings back is not all there yet.
    pub(crate) joining: bool,
    /// Reloaded, and its COW file not seen yet.
    pub(crate) unverified: bool,
    /// Looks for a mount while the device is unmounted.
    pub(crate) tracker: Option<Arc<Tracker>>,
    /// The snapshot of the published epoch.
    pub(crate) running: Option<Arc<Snapshot>>,
    /// The log of the published epoch.
    pub(crate) log: Option<Arc<Log>>,
    pub(crate) cache_size: u64,
    pub(crate) auto_expand: Option<AutoExpand>,
    /// `None` until the device is set up and after it was destroyed.
    pub(crate) shown: Option<Shown>,
}

/// A copy of the status fields of one moment.
pub(crate) struct DeviceStatus {
    pub(crate) minor: u32,
    pub(crate) state: u64,
    pub(crate) error: i32,
    pub(crate) cache_size: u64,
    pub(crate) falloc_size: u64,
    pub(crate) cow_bytes: u64,
    pub(crate) seqid: u64,
    pub(crate) uuid: [u8; 16],
    pub(crate) nr_changed_blocks: u64,
    pub(crate) auto_expand: Option<AutoExpand>,
    pub(crate) cow_path: Arc<CString>,
    pub(crate) bdev_path: Arc<CString>,
    /// Its COW file has not been seen since a reload.
    pub(crate) unverified: bool,
}

impl View {
    pub(crate) fn new() -> Self {
        Self {
            origin: None,
            unmounted: false,
            joining: false,
            unverified: false,
            tracker: None,
            running: None,
            log: None,
            cache_size: 0,
            auto_expand: None,
            shown: None,
        }
    }
}

impl View {
    /// The state of the device, and what is shown of it; `None` while it is not set up. `chain` is
    /// what the tracking has ended with (negative), or 0.
    fn state(&self, chain: i32) -> Option<(State, &Shown)> {
        let shown = self.shown.as_ref()?;
        let mut state = State::new_snapshot();
        if !shown.snapshot_mode {
            state.became_incremental();
        }
        if let Some(errno) = shown.snapshot.as_ref().and_then(|s| s.error()) {
            state.fail_snapshot(errno_of(errno));
        }
        if chain != 0 {
            state.break_chain(errno_of(chain));
        }
        state.mounted = !self.unmounted && !self.joining;
        state.unverified = self.unverified;
        Some((state, shown))
    }
}

/// From the kernel's way of writing an errno.
fn errno_of(negative: i32) -> Errno {
    Errno(negative.saturating_neg())
}

impl Device {
    /// The state; ENOENT when the device was destroyed.
    pub(crate) fn state(&self) -> Result<State> {
        let view = self.view.lock();
        view.state(self.chain_error())
            .map(|(state, _)| state)
            .ok_or(ENOENT)
    }

    /// The status fields of this moment; ENOENT when the device was destroyed.
    pub(crate) fn status(&self) -> Result<DeviceStatus> {
        let view = self.view.lock();
        let (state, shown) = view.state(self.chain_error()).ok_or(ENOENT)?;
        Ok(DeviceStatus {
            minor: self.minor(),
            state: state.bits(),
            error: state.error(),
            cache_size: view.cache_size,
            falloc_size: shown.falloc_size,
            cow_bytes: shown.cow_bytes,
            seqid: shown.seqid,
            uuid: shown.uuid,
            nr_changed_blocks: shown.changes.count(),
            auto_expand: view.auto_expand,
            cow_path: shown.cow_path.clone(),
            bdev_path: self.bdev_path().clone(),
            unverified: view.unverified,
        })
    }

    /// The figures of the STATUS call, but `size` and `minor`; ENOENT when the device was destroyed.
    pub(crate) fn figures(&self) -> Result<abi::Status> {
        let view = self.view.lock();
        let (state, shown) = view.state(self.chain_error()).ok_or(ENOENT)?;
        let mut out = abi::Status {
            state: state.bits(),
            error: state.error(),
            origin_bytes: shown.origin_bytes,
            cow_bytes: shown.cow_bytes,
            cow_nonce: shown.cow_nonce,
            map_memory: shown.changes.memory_bytes(),
            freeze_ns: shown.freeze_ns,
            nr_changed_blocks: shown.changes.count(),
            ..abi::Status::default()
        };
        if !state.chain_intact {
            out.flags |= abi::STATUS_CHAIN_BROKEN;
        }
        if shown.log.as_ref().is_none_or(|log| log.is_stopped()) {
            out.flags |= abi::STATUS_NOT_RECORDED;
        }
        out.crash_blocks = shown.crash_blocks;
        if let Some(log) = shown.log.as_ref() {
            out.map_memory = out.map_memory.saturating_add(log.memory_bytes());
        }
        if let Some(auto) = view.auto_expand {
            out.auto_expand_step = auto.step_mib;
            out.auto_expand_reserve = auto.reserve_mib;
        }
        if let Some(snapshot) = shown.snapshot.as_ref() {
            out.cow_blocks_total = snapshot.space.total_blocks();
            out.cow_blocks_used = snapshot.space.used_blocks();
            (out.copy_memory_used, out.copy_memory_max) = snapshot.copy_memory();
            let (bits, index) = snapshot.map_memory();
            out.map_memory = out.map_memory.saturating_add(bits).saturating_add(index.memory);
            (out.index_memory, out.index_on_disk) = (index.memory, index.on_disk);
            out.writes_held = snapshot.counters.held.load(Ordering::Relaxed);
            out.discards_dropped = snapshot.counters.discards.load(Ordering::Relaxed);
        }
        Ok(out)
    }

    /// What the EXTENTS call lists: the change map and the COW file's places. ENOENT when the device
    /// was destroyed.
    pub(crate) fn extents(&self) -> Result<(Arc<ChangeMap>, Arc<KVVec<Extent>>)> {
        let view = self.view.lock();
        let shown = view.shown.as_ref().ok_or(ENOENT)?;
        Ok((shown.changes.clone(), shown.cow_extents.clone()))
    }
}
