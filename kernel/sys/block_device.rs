// SPDX-License-Identifier: GPL-2.0-only
//! Opening a block device without claiming it.

use super::{bdev::{Bdev, Home}, ffi, ffi_fs};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kernel::{bindings, error::from_err_ptr, error::to_result, prelude::*};

/// The device number that `path` names, as seen by the calling process. ENOENT, ENOTBLK.
pub(crate) fn lookup(path: &CStr) -> Result<bindings::dev_t> {
    let mut dev = 0;
    // SAFETY: The path is NUL-terminated, `dev` is written to at most.
    to_result(unsafe { bindings::lookup_bdev(path.as_char_ptr(), &mut dev) })?;
    Ok(dev)
}

/// What speaks against tracking a device.
#[derive(Clone, Copy)]
pub(crate) struct Traits {
    pub(crate) zoned: bool,
    pub(crate) dax: bool,
    /// Logical blocks of more than 4096 bytes.
    pub(crate) large_blocks: bool,
    /// A disk of this module.
    pub(crate) ours: bool,
}

/// A block device opened for reading, without a holder: neither a mounted filesystem nor the ban on
/// writing to mounted devices minds.
///
/// # Invariants
///
/// `bdev` is valid for as long as `self` lives: a reference on its `bd_device` is held, which also
/// holds the disk. `file` is null or an open file that `self` owns, of `bdev` or of what a rescan of the
/// partitions has put in its place.
pub(crate) struct OpenDevice {
    bdev: Bdev,
    file: AtomicPtr<bindings::file>,
    /// Its number: another one since a rescan of the partitions has made the device anew in its place.
    dev: AtomicU32,
    /// The block device in its place, as far as we know. Not held: only compared with.
    home: AtomicPtr<bindings::block_device>,
}

// SAFETY: Files and block devices may be used and released from any task.
unsafe impl Send for OpenDevice {}
// SAFETY: As above; `file` is atomic.
unsafe impl Sync for OpenDevice {}

impl OpenDevice {
    pub(crate) fn open(dev: bindings::dev_t) -> Result<Self> {
        // SAFETY: No preconditions.
        let file = from_err_ptr(unsafe { ffi_fs::dbd_bdev_open(dev) })?;
        // SAFETY: An open file of a block device; its device stays while `self` lives, see below.
        let Some(bdev) = (unsafe { Bdev::new(bindings::file_bdev(file)) }) else {
            // SAFETY: Opened above, not used again.
            unsafe { bindings::__fput_sync(file) };
            return Err(ENXIO);
        };
        // SAFETY: Valid while the file is open.
        unsafe { bindings::get_device(&raw mut (*bdev.as_ptr()).bd_device) };
        // INVARIANT: The reference on the device was just taken, the file is ours.
        Ok(Self {
            bdev,
            file: AtomicPtr::new(file),
            dev: AtomicU32::new(dev),
            home: AtomicPtr::new(bdev.as_ptr()),
        })
    }

    /// Gives the handle back, as far as the device's users can see it: nobody finds it busy because of
    /// us any more. The structures stay, but no I/O may be started.
    pub(crate) fn close(&self) {
        let file = self.file.swap(core::ptr::null_mut(), Ordering::AcqRel);
        if !file.is_null() {
            // SAFETY: By the type invariant; nobody else got the pointer out. There is no holder, so
            // there is no claim to give up first (`bdev_fput`).
            unsafe { bindings::__fput_sync(file) };
        }
    }

    /// Takes a handle again, on the device number `dev`, which is the same place of the same disk. There is no
    /// second handle; the number counts from now on, also when this fails.
    pub(crate) fn reopen(&self, dev: bindings::dev_t) -> Result {
        self.dev.store(dev, Ordering::Relaxed);
        if !self.file.load(Ordering::Acquire).is_null() {
            return Ok(());
        }
        // SAFETY: No preconditions.
        let file = from_err_ptr(unsafe { ffi_fs::dbd_bdev_open(dev) })?;
        // SAFETY: An open file of a block device, which is valid while it is open.
        let now = unsafe { bindings::file_bdev(file) };
        // SAFETY: As above; ours is valid by the type invariant.
        if unsafe { ffi_fs::dbd_bdev_same_entry(now, self.bdev.as_ptr()) } {
            self.home.store(now, Ordering::Release);
        }
        let old = self.file.swap(file, Ordering::AcqRel);
        if !old.is_null() {
            // SAFETY: By the type invariant; nobody else got the pointer out.
            unsafe { bindings::__fput_sync(old) };
        }
        Ok(())
    }

    /// The device. Valid for as long as `self` lives.
    pub(crate) fn bdev(&self) -> Bdev {
        self.bdev
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::block_device {
        self.bdev.as_ptr()
    }

    /// Somebody has claimed it: a mounted filesystem, a mount in progress, a program that has opened it with O_EXCL.
    pub(crate) fn is_claimed(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { super::ffi_fs::dbd_bdev_claimed(self.bdev.as_ptr()) }
    }

    /// The block device that bios to it come through, as far as we know.
    pub(crate) fn home(&self) -> Home {
        Home::new(self.home.load(Ordering::Acquire))
    }

    /// Size of what is in its place now, in sectors; 0: nothing is.
    pub(crate) fn sectors_now(&self) -> u64 {
        // SAFETY: Valid by the type invariant, and with it the disk.
        unsafe { ffi_fs::dbd_bdev_sectors_now(self.bdev.as_ptr()) }
    }

    /// The number of the device in its place.
    pub(crate) fn dev(&self) -> bindings::dev_t {
        self.dev.load(Ordering::Relaxed)
    }

    pub(crate) fn traits(&self) -> Traits {
        // SAFETY: Valid by the type invariant, and open or was open, so that it has a queue.
        let bits = unsafe { ffi_fs::dbd_bdev_traits(self.bdev.as_ptr()) };
        Traits {
            zoned: bits & ffi_fs::BDEV_ZONED != 0,
            dax: bits & ffi_fs::BDEV_DAX != 0,
            large_blocks: bits & ffi_fs::BDEV_LARGE_BLOCKS != 0,
            ours: bits & ffi_fs::BDEV_OURS != 0,
        }
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        self.close();
        // SAFETY: Valid until the reference is given back below.
        if unsafe { ffi_fs::dbd_bdev_is_deleted(self.bdev.as_ptr()) } {
            // It may go with us, and our own bios went through it to the end. They have all ended: whoever
            // has the last reference to `self` has waited for them.
            // SAFETY: As above, and with it the disk and its queue.
            unsafe { ffi::dbd_requests_finish(self.bdev.as_ptr()) };
        }
        // SAFETY: Taken in `open`.
        unsafe { bindings::put_device(&raw mut (*self.bdev.as_ptr()).bd_device) };
    }
}
