// SPDX-License-Identifier: GPL-2.0-only
//! A block device that somebody else keeps open for us.

use super::ffi;
use core::ptr::NonNull;
use kernel::bindings;

/// A `struct block_device` that is known to stay.
///
/// # Invariants
///
/// The pointer is valid for as long as any copy of the value is used: whoever made it with
/// [`Bdev::new`] holds the device open for longer than that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bdev(NonNull<bindings::block_device>);

/// The address of the block device that bios to a tracked one come through. Nobody holds that: it is compared
/// with, and put into bios that came through it, whose submitters hold it. Never followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home(*mut bindings::block_device);

impl Home {
    pub(super) fn new(ptr: *mut bindings::block_device) -> Self {
        Self(ptr)
    }

    pub(super) fn as_ptr(self) -> *mut bindings::block_device {
        self.0
    }
}

// SAFETY: The block layer's structures are made for use from any task.
unsafe impl Send for Bdev {}
// SAFETY: As above; all methods only read fields that do not change while the device is open.
unsafe impl Sync for Bdev {}

impl Bdev {
    /// # Safety
    ///
    /// `ptr` is valid and stays so until the last copy of the result is gone.
    pub(crate) unsafe fn new(ptr: *mut bindings::block_device) -> Option<Self> {
        NonNull::new(ptr).map(Self)
    }

    pub(crate) fn as_ptr(self) -> *mut bindings::block_device {
        self.0.as_ptr()
    }

    /// The disk that this device is a part of (or the whole of).
    pub(crate) fn disk(self) -> *mut bindings::gendisk {
        // SAFETY: Valid by the type invariant; `bd_disk` is fixed while the device is open.
        unsafe { (*self.as_ptr()).bd_disk }
    }

    /// The device of the whole disk.
    pub(crate) fn whole(self) -> Bdev {
        // SAFETY: `bd_disk` is valid while the device is open, and a live disk has its `part0`,
        // which lives as long as the disk.
        let part0 = unsafe { (*self.disk()).part0 };
        NonNull::new(part0).map_or(self, Bdev)
    }

    /// First 512-byte sector, counted from the start of the disk.
    pub(crate) fn start_sector(self) -> u64 {
        // SAFETY: Valid by the type invariant.
        unsafe { (*self.as_ptr()).bd_start_sect }
    }

    /// Size now, in 512-byte sectors.
    pub(crate) fn sectors(self) -> u64 {
        // SAFETY: Valid by the type invariant.
        unsafe { (*self.as_ptr()).bd_nr_sectors }
    }

    /// The disk has been removed: what is sent to it fails.
    pub(crate) fn is_gone(self) -> bool {
        // SAFETY: Valid by the type invariant, and with it the disk.
        unsafe { super::ffi_fs::dbd_bdev_gone(self.as_ptr()) }
    }

    /// Whether it works with requests. Else with bios only, as device mapper and md do.
    pub(crate) fn is_request_based(self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_queue_is_mq(self.as_ptr()) }
    }

    /// Waits for I/O that has entered the queue of a request-based device; no-op for others. May sleep.
    pub(crate) fn drain(self) {
        if self.is_request_based() {
            // SAFETY: Valid by the type invariant, and it has a queue of requests.
            unsafe { ffi::dbd_queue_drain(self.as_ptr()) }
        }
    }

    /// Waits until no write is under way, to it or to its disk, where the caller keeps new ones away from all of that;
    /// at most `ms` milliseconds. False: there still are some. Devices that keep no statistics (`queue/iostats`) never
    /// have any. Sleeps.
    pub(crate) fn writes_settle(self, ms: u32) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_writes_settle(self.as_ptr(), ms) }
    }
}
