// SPDX-License-Identifier: GPL-2.0-only
//! Bios that belong to somebody else: looked at by the probe, or held back for a while.

use super::{bdev::{Bdev, Home}, bio_pool::PoolId, ffi, page::CopyPages};
use core::marker::PhantomData;
use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::bindings;

/// The low bits of `bi_opf`: the operation (`REQ_OP_MASK`, `include/linux/blk_types.h`).
const OP_MASK: u32 = (1 << bindings::REQ_OP_BITS) - 1;

/// Status that a bio is ended with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    IoError,
    /// EBUSY for the reader.
    Busy,
}

impl Status {
    fn raw(self) -> bindings::blk_status_t {
        match self {
            Status::Ok => bindings::BLK_STS_OK as _,
            // `BLK_STS_IOERR`, a cast macro that bindgen skips (`include/linux/blk_types.h`).
            Status::IoError => 10,
            // `BLK_STS_DEV_RESOURCE`, likewise: the one that `blk_errors` turns into EBUSY.
            Status::Busy => 13,
        }
    }
}

/// A bio that somebody else owns, seen for a moment.
#[derive(Clone, Copy)]
pub(crate) struct BioRef<'a>(NonNull<bindings::bio>, PhantomData<&'a bindings::bio>);

impl<'a> BioRef<'a> {
    /// # Safety
    ///
    /// `bio` is valid and only changed through this value during `'a`.
    pub(super) unsafe fn from_raw(bio: *mut bindings::bio) -> Self {
        // SAFETY: Valid, so not null.
        Self(unsafe { NonNull::new_unchecked(bio) }, PhantomData)
    }

    pub(super) fn as_ptr(self) -> *mut bindings::bio {
        self.0.as_ptr()
    }

    /// The operation (`REQ_OP_*`).
    pub(crate) fn op(self) -> u32 {
        // SAFETY: Valid by construction; a plain field.
        unsafe { (*self.as_ptr()).bi_opf & OP_MASK }
    }

    /// Whether the operation changes data (all odd operations do, `op_is_write()`).
    pub(crate) fn is_write(self) -> bool {
        self.op() & 1 != 0
    }

    /// First sector: absolute on the disk once the bio has passed the partition remap.
    pub(crate) fn sector(self) -> u64 {
        // SAFETY: Valid by construction. `bvec_iter` is packed: the copy avoids a reference.
        let iter = unsafe { (*self.as_ptr()).bi_iter };
        iter.bi_sector
    }

    /// Length in 512-byte sectors.
    pub(crate) fn sectors(self) -> u64 {
        // SAFETY: As above.
        let iter = unsafe { (*self.as_ptr()).bi_iter };
        u64::from(iter.bi_size >> 9)
    }

    /// The disk that it is addressed to.
    pub(crate) fn disk(self) -> *mut bindings::gendisk {
        // SAFETY: Valid by construction; a bio in submission has a device, which has a disk.
        unsafe { (*(*self.as_ptr()).bi_bdev).bd_disk }
    }

    /// Whether it was allocated from the given pool of ours.
    pub(crate) fn is_of(self, pool: PoolId) -> bool {
        // SAFETY: Valid by construction.
        pool.matches(unsafe { (*self.as_ptr()).bi_pool })
    }

    /// Sends it to another device: `submit_bio_noacct_nocheck` reads the device again after the
    /// tracepoint. Only from the probe. Polling is given up, as the new device does not poll; and so is EAGAIN,
    /// which that device would give by itself while somebody changes its limits: the bio would not come to us.
    ///
    /// [`HeldBio::restore_device`] has to find the block device again that it came through: its submitter keeps that
    /// one open until the bio has ended, and nobody else does. A rescan of the partitions makes block devices anew,
    /// so it need not be the one that was opened when the tracking began; nor need that one be there when the
    /// bio ends, as a DESTROY lets go of it. What did not come through `home` becomes a bio to the whole disk here,
    /// which outlives all bios: its sector is absolute by now, and so all that it loses with the mark is that the
    /// disk's end is checked once more. It counts in the statistics of the disk, not of the partition; its
    /// cgroup is the same, as those belong to the queue; and that the device is read-only was said before.
    pub(crate) fn redirect(self, to: Bdev, home: Home) {
        const NOT_THERE: u32 =
            1 << bindings::req_flag_bits___REQ_POLLED | 1 << bindings::req_flag_bits___REQ_NOWAIT;
        // SAFETY: The submission path leaves the bio to the probe.
        unsafe {
            (*self.as_ptr()).bi_opf &= !NOT_THERE;
            if (*self.as_ptr()).bi_bdev != home.as_ptr() {
                (*self.as_ptr()).bi_flags &= !(1 << bindings::BIO_REMAPPED);
            }
            (*self.as_ptr()).bi_bdev = to.as_ptr();
        }
    }

    /// Tells it from all other bios that are on their way now.
    pub(crate) fn key(self) -> usize {
        self.as_ptr() as usize
    }

    /// Does to `block`, the content of the disk from `sector` on, what the bio does. What carries no data
    /// leaves zeros.
    pub(crate) fn overlay(self, block: &mut [u8; 4096], sector: u64) {
        let data = self.op() == bindings::req_op_REQ_OP_WRITE;
        let before = sector.saturating_sub(self.sector());
        let at = self.sector().saturating_sub(sector);
        let len = self.sectors().saturating_sub(before).min(8u64.saturating_sub(at.min(8)));
        let (at, len) = ((at << 9) as usize, (len << 9) as usize);
        let Some(part) = block.get_mut(at..).and_then(|b| b.get_mut(..len)) else { return };
        if !data {
            part.fill(0);
            return;
        }
        // SAFETY: The bio is valid; `part` has room for `len` bytes, and the C side ends at the bio's size.
        unsafe { ffi::dbd_bio_read(self.as_ptr(), (before << 9) as u32, len as u32, part.as_mut_ptr()) }
    }

    /// Puts `len` bytes of `pages` (zeros when `None`), from byte `offset` of them, into the bio's
    /// buffers, `skip` bytes behind its start.
    ///
    /// `offset + len` stays within the pages, `skip + len` within the bio.
    pub(crate) fn fill(self, skip: u32, len: u32, pages: Option<&CopyPages>, offset: u32) {
        let src = pages.map_or(null_mut(), CopyPages::as_ptr);
        // SAFETY: The bio is valid; the C side ends at its size; the pages are held by the caller.
        unsafe { ffi::dbd_bio_fill(self.as_ptr(), skip, len, src, offset) }
    }

    /// Puts `data` into the bio's buffers, `skip` bytes behind its start.
    ///
    /// `skip + data.len()` stays within the bio.
    pub(crate) fn give(self, skip: u32, data: &[u8]) {
        // SAFETY: The bio is valid; the C side ends at its size, and reads no more than `data` has. No bio is
        // larger than its 32-bit size.
        unsafe { ffi::dbd_bio_give(self.as_ptr(), skip, data.len() as u32, data.as_ptr()) }
    }
}

/// A bio that we own for now: it must be resubmitted or ended, exactly once. Dropping ends it with
/// an I/O error, so that a mistake never hangs its submitter.
pub(crate) struct HeldBio(NonNull<bindings::bio>);

// SAFETY: A bio belongs to no task.
unsafe impl Send for HeldBio {}

impl HeldBio {
    /// # Safety
    ///
    /// `bio` is valid and the caller passes on its ownership.
    pub(super) unsafe fn from_raw(bio: *mut bindings::bio) -> Self {
        // SAFETY: Valid, so not null.
        Self(unsafe { NonNull::new_unchecked(bio) })
    }

    fn into_raw(self) -> *mut bindings::bio {
        let p = self.0.as_ptr();
        core::mem::forget(self);
        p
    }

    pub(crate) fn view(&self) -> BioRef<'_> {
        BioRef(self.0, PhantomData)
    }

    /// Takes back the redirection to a shadow disk: `home` as it was then, or `whole`, its disk.
    ///
    /// A bio that came through the partition `home` is still marked as remapped, others are not. The device is
    /// stored directly: `bio_set_dev` would clear that mark, and the sector, absolute by now, would be
    /// remapped a second time.
    ///
    /// It is the same `home` as in [`BioRef::redirect`]: it changes only when a partition has been made anew,
    /// with the same number. The one before had been taken out of the disk's table then, which is not done to one
    /// that is open, and who waits for a bio has it open. (It is when a disk goes away, but nothing comes then.)
    pub(crate) fn restore_device(&mut self, home: Home, whole: Bdev) {
        // SAFETY: We own the bio. If it is marked it came through `home`, which its submitter holds.
        unsafe {
            let bio = self.0.as_ptr();
            let remapped = (*bio).bi_flags & (1 << bindings::BIO_REMAPPED) != 0;
            (*bio).bi_bdev = if remapped { home.as_ptr() } else { whole.as_ptr() };
        }
    }

    /// Addresses it to another device, at the same sector. Only inside the `submit_bio` of the disk that
    /// it was addressed to.
    pub(crate) fn set_device(&mut self, to: Bdev) {
        // SAFETY: We own the bio; the device is valid.
        unsafe { ffi::dbd_bio_set_dev(self.0.as_ptr(), to.as_ptr()) }
    }

    /// Sends it on its way. The probe does not see it again. May sleep.
    pub(crate) fn resubmit(self) {
        // SAFETY: We own the bio and give it up here.
        unsafe { bindings::submit_bio_noacct(self.into_raw()) }
    }

    /// Completes it. Any context.
    pub(crate) fn end(self, status: Status) {
        let bio = self.into_raw();
        // SAFETY: We owned the bio and give it up here.
        unsafe {
            if status != Status::Ok {
                (*bio).bi_status = status.raw();
            }
            bindings::bio_endio(bio);
        }
    }

    /// Turns it into the first part of itself (see [`Parent`]).
    pub(crate) fn into_parent(self) -> Parent {
        let bio = self.0;
        core::mem::forget(self);
        Parent(bio)
    }
}

impl Drop for HeldBio {
    fn drop(&mut self) {
        // SAFETY: We own the bio and give it up here.
        unsafe {
            (*self.0.as_ptr()).bi_status = Status::IoError.raw();
            bindings::bio_endio(self.0.as_ptr());
        }
    }
}

/// One outstanding part of a bio that was split up. The bio completes with its last part; dropping a
/// part without [`Parent::complete`] fails the bio.
pub(crate) struct Parent(NonNull<bindings::bio>);

// SAFETY: A bio belongs to no task; parts only touch its status and its atomic counter.
unsafe impl Send for Parent {}

impl Parent {
    /// The bio, whose buffers this part may fill.
    pub(crate) fn view(&self) -> BioRef<'_> {
        BioRef(self.0, PhantomData)
    }

    /// Adds one part that has to be completed before the bio is.
    pub(crate) fn split(&self) -> Parent {
        // SAFETY: Our part keeps the bio from completing.
        unsafe { ffi::dbd_bio_inc_remaining(self.0.as_ptr()) };
        Parent(self.0)
    }

    /// This part is done. Any context.
    pub(crate) fn complete(self, status: Status) {
        let bio = self.0.as_ptr();
        core::mem::forget(self);
        // SAFETY: Our part keeps the bio alive until `bio_endio` drops it.
        unsafe {
            if status != Status::Ok {
                // Parts may race here; any of their errors will do (as in `bio_chain_endio`).
                core::ptr::addr_of_mut!((*bio).bi_status).write_volatile(status.raw());
            }
            bindings::bio_endio(bio);
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        Parent(self.0).complete(Status::IoError);
    }
}

/// A lock-free stack of bios, linked through `bi_next`. Any context may push.
pub(crate) struct BioStack(AtomicPtr<bindings::bio>);

impl BioStack {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    pub(crate) fn push(&self, bio: HeldBio) {
        // SAFETY: We own the bio.
        unsafe { push_raw(&self.0, bio.into_raw()) }
    }

    /// Whether there is nothing to take.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Acquire).is_null()
    }

    /// Takes everything, oldest first.
    pub(crate) fn take(&self) -> BioList {
        // SAFETY: The chain consists of bios that `push` gave up, nobody else reaches them now.
        unsafe { take_raw(&self.0) }
    }
}

/// # Safety
///
/// The caller owns `bio` and gives it up.
pub(super) unsafe fn push_raw(stack: &AtomicPtr<bindings::bio>, bio: *mut bindings::bio) {
    let mut head = stack.load(Ordering::Relaxed);
    loop {
        // SAFETY: Owned by the caller until the exchange below succeeds.
        unsafe { (*bio).bi_next = head };
        // Release: whoever takes the stack sees the bio complete. There is no ABA: nobody pops one.
        match stack.compare_exchange_weak(head, bio, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(h) => head = h,
        }
    }
}

/// # Safety
///
/// The stack holds only owned bios, pushed by [`push_raw`].
pub(super) unsafe fn take_raw(stack: &AtomicPtr<bindings::bio>) -> BioList {
    let mut newest = stack.swap(null_mut(), Ordering::Acquire);
    let mut list = BioList::new();
    while let Some(bio) = NonNull::new(newest) {
        // SAFETY: Part of the chain that we took.
        unsafe {
            newest = (*bio.as_ptr()).bi_next;
            list.push_front_raw(bio);
        }
    }
    list
}

/// A list of owned bios, first in first out, linked through `bi_next`.
pub(crate) struct BioList {
    head: *mut bindings::bio,
    tail: *mut bindings::bio,
}

// SAFETY: Owns its bios, which belong to no task.
unsafe impl Send for BioList {}

impl BioList {
    pub(crate) const fn new() -> Self {
        Self { head: null_mut(), tail: null_mut() }
    }

    /// # Safety
    ///
    /// The list takes over the ownership of `bio`.
    unsafe fn push_front_raw(&mut self, bio: NonNull<bindings::bio>) {
        // SAFETY: Owned.
        unsafe { (*bio.as_ptr()).bi_next = self.head };
        self.head = bio.as_ptr();
        if self.tail.is_null() {
            self.tail = bio.as_ptr();
        }
    }

    pub(crate) fn push_back(&mut self, bio: HeldBio) {
        let bio = bio.into_raw();
        // SAFETY: Owned; the tail is one of ours.
        unsafe {
            (*bio).bi_next = null_mut();
            if self.tail.is_null() {
                self.head = bio;
            } else {
                (*self.tail).bi_next = bio;
            }
        }
        self.tail = bio;
    }

    pub(crate) fn pop_front(&mut self) -> Option<HeldBio> {
        let bio = self.pop_front_raw()?;
        // SAFETY: The list owned it.
        Some(unsafe { HeldBio::from_raw(bio.as_ptr()) })
    }

    pub(super) fn pop_front_raw(&mut self) -> Option<NonNull<bindings::bio>> {
        let bio = NonNull::new(self.head)?;
        // SAFETY: One of ours. `bi_next` is cleared: the submission path insists on it.
        unsafe {
            self.head = (*bio.as_ptr()).bi_next;
            (*bio.as_ptr()).bi_next = null_mut();
        }
        if self.head.is_null() {
            self.tail = null_mut();
        }
        Some(bio)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// Shows all of them, oldest first.
    pub(crate) fn for_each(&self, mut f: impl FnMut(BioRef<'_>)) {
        let mut at = self.head;
        while let Some(bio) = NonNull::new(at) {
            f(BioRef(bio, PhantomData));
            // SAFETY: One of ours; `&self` keeps the chain as it is.
            at = unsafe { (*bio.as_ptr()).bi_next };
        }
    }

    /// Appends all of `other`.
    pub(crate) fn append(&mut self, other: &mut BioList) {
        while let Some(bio) = other.pop_front() {
            self.push_back(bio);
        }
    }

    /// Takes out the bios that `pred` picks; the others keep their order.
    pub(crate) fn extract(&mut self, mut pred: impl FnMut(BioRef<'_>) -> bool) -> BioList {
        let mut picked = BioList::new();
        let mut kept = BioList::new();
        while let Some(bio) = self.pop_front() {
            if pred(bio.view()) {
                picked.push_back(bio);
            } else {
                kept.push_back(bio);
            }
        }
        core::mem::swap(self, &mut kept);
        picked
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while self.pop_front().is_some() {}
    }
}
