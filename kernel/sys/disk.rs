// SPDX-License-Identifier: GPL-2.0-only
//! Bio-based disks: the hidden shadow that held-back writes pass through, and the snapshot node.

use super::{bdev::Bdev, bio::HeldBio, ffi};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::{null_mut, NonNull};
use core::time::Duration;
use kernel::{
    bindings,
    error::{from_err_ptr, to_result},
    prelude::*,
    sync::{Arc, ArcBorrow},
    time::{Instant, Monotonic},
};

/// `BLK_OPEN_WRITE`, a cast macro that bindgen skips (`include/linux/blkdev.h`).
const OPEN_WRITE: bindings::blk_mode_t = 1 << 1;

/// What answers the bios of a disk.
pub(crate) trait BioDriver: Send + Sync + 'static {
    /// Takes a bio. Called in the submitter's task, possibly inside another `submit_bio`: must not
    /// wait for other bios.
    fn submit(this: ArcBorrow<'_, Self>, bio: HeldBio);

    /// Whether somebody may open the disk now; the error is what the opener gets.
    fn may_open(&self, _for_writing: bool) -> Result {
        Ok(())
    }
}

struct DiskData<T> {
    driver: Arc<T>,
    /// No further opener. Written and read under the disk's `open_mutex`.
    closing: UnsafeCell<bool>,
}

/// A disk that was added; removed on drop.
pub(crate) struct BioDisk<T: BioDriver> {
    disk: NonNull<bindings::gendisk>,
    data: NonNull<DiskData<T>>,
}

// SAFETY: Disks may be used and removed from any task; the driver is `Send + Sync`.
unsafe impl<T: BioDriver> Send for BioDisk<T> {}
// SAFETY: As above.
unsafe impl<T: BioDriver> Sync for BioDisk<T> {}

unsafe extern "C" fn submit<T: BioDriver>(bio: *mut bindings::bio) {
    // SAFETY: The block layer hands over a live bio addressed to a disk made by `BioDisk::add`, whose
    // data stays until the disk is gone.
    unsafe {
        let data = (*(*(*bio).bi_bdev).bd_disk).private_data.cast::<DiskData<T>>();
        T::submit((*data).driver.as_arc_borrow(), HeldBio::from_raw(bio));
    }
}

unsafe extern "C" fn open<T: BioDriver>(
    disk: *mut bindings::gendisk,
    mode: bindings::blk_mode_t,
) -> c_int {
    // SAFETY: As in `submit`; called under `open_mutex`, which guards `closing`.
    let data = unsafe { &*(*disk).private_data.cast::<DiskData<T>>() };
    // SAFETY: As above.
    if unsafe { *data.closing.get() } {
        return ENXIO.to_errno();
    }
    match data.driver.may_open(mode & OPEN_WRITE != 0) {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}

struct Fops<T>(PhantomData<T>);

impl<T: BioDriver> Fops<T> {
    // The module is pinned by each device, so the disk needs no owner.
    const TABLE: bindings::block_device_operations = bindings::block_device_operations {
        submit_bio: Some(submit::<T>),
        open: Some(open::<T>),
        // SAFETY: All zero is a valid table: no further operations.
        ..unsafe { core::mem::zeroed() }
    };
}

/// Which sort of disk to make.
pub(crate) enum Kind {
    /// `/dev/<name>`, read-only, without partitions, with the limits of the origin.
    Snapshot,
    /// The same, but not marked read-only: a filesystem that is mounted read-only writes to it all the same, to
    /// replay its journal.
    Overlay,
    /// Hidden: no node, cannot be opened.
    Shadow,
}

impl<T: BioDriver> BioDisk<T> {
    /// Makes a disk called `name` of the size of `origin` and adds it. May sleep; udev sees it at
    /// once.
    pub(crate) fn add(kind: Kind, name: &CStr, origin: Bdev, sectors: u64, driver: Arc<T>) -> Result<Self> {
        let data = KBox::new(
            DiskData { driver, closing: UnsafeCell::new(false) },
            GFP_KERNEL,
        )?;
        // SAFETY: The origin is valid; the functions only read its limits.
        let disk = from_err_ptr(unsafe {
            match kind {
                Kind::Snapshot | Kind::Overlay => ffi::dbd_alloc_snapshot_disk(origin.as_ptr()),
                Kind::Shadow => ffi::dbd_alloc_shadow_disk(),
            }
        })?;
        let data = KBox::into_raw(data);
        // SAFETY: A fresh disk that nobody else knows yet; `name` fits with its NUL (checked).
        let added = unsafe {
            (*disk).private_data = data.cast();
            (*disk).fops = &Fops::<T>::TABLE;
            (*disk).flags |= bindings::GENHD_FL_NO_PART as c_int;
            if matches!(kind, Kind::Shadow) {
                (*disk).flags |= bindings::GENHD_FL_HIDDEN as c_int;
            }
            for (dst, src) in (*disk).disk_name.iter_mut().zip(name.to_bytes()).take(31) {
                *dst = *src as _;
            }
            if matches!(kind, Kind::Snapshot) {
                bindings::set_disk_ro(disk, true);
            }
            bindings::set_capacity(disk, sectors);
            to_result(bindings::device_add_disk(null_mut(), disk, null_mut()))
        };
        if let Err(e) = added {
            // SAFETY: Never added, so nobody uses the disk or its data.
            unsafe {
                bindings::put_disk(disk);
                drop(KBox::from_raw(data));
            }
            return Err(e);
        }
        // SAFETY: Both pointers come from successful allocations.
        unsafe {
            Ok(Self {
                disk: NonNull::new_unchecked(disk),
                data: NonNull::new_unchecked(data),
            })
        }
    }

    /// The device of the whole disk. Valid while `self` lives.
    pub(crate) fn bdev(&self) -> Option<Bdev> {
        // SAFETY: A live disk has its `part0`, for as long as it lives.
        unsafe { Bdev::new((*self.disk.as_ptr()).part0) }
    }

    /// Shuts out further openers if there is none now.
    fn close_if_unused(&self) -> bool {
        // SAFETY: Disk and data are valid; the C side takes `open_mutex`.
        unsafe { ffi::dbd_disk_close_if_unused(self.disk.as_ptr(), (*self.data.as_ptr()).closing.get()) }
    }

    /// Lets openers in again.
    pub(crate) fn reopen(&self) {
        // SAFETY: Disk and data are valid.
        unsafe { ffi::dbd_disk_reopen(self.disk.as_ptr(), (*self.data.as_ptr()).closing.get()) }
    }

    /// Waits until nobody holds the disk open, for at most `patience`, and shuts out further
    /// openers. Passing openers such as udev's probes come and go within moments.
    ///
    /// # Errors
    ///
    /// EBUSY when the time is up, EINTR on a signal; openers are let in again then.
    pub(crate) fn close_within(&self, patience: Duration) -> Result {
        const STEP_MS: u32 = 20;
        let start = Instant::<Monotonic>::now();
        let patience = patience.as_nanos();
        loop {
            if self.close_if_unused() {
                return Ok(());
            }
            let waited = u128::try_from(start.elapsed().as_nanos()).unwrap_or(u128::MAX);
            if waited >= patience {
                return Err(EBUSY);
            }
            // SAFETY: Plain sleep, interruptible.
            if unsafe { bindings::msleep_interruptible(STEP_MS) } != 0 {
                return Err(EINTR);
            }
        }
    }
}

impl<T: BioDriver> Drop for BioDisk<T> {
    fn drop(&mut self) {
        // SAFETY: Added in `add`. After `del_gendisk` no bio enters `submit` any more; whoever drops
        // the disk has waited for the bios that its driver took.
        unsafe {
            bindings::del_gendisk(self.disk.as_ptr());
            bindings::put_disk(self.disk.as_ptr());
            drop(KBox::from_raw(self.data.as_ptr()));
        }
    }
}
