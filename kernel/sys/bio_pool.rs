// SPDX-License-Identifier: GPL-2.0-only
//! Bios of our own, with a payload in front of each and a reserve, so that writeback, which may be
//! waiting for us, always gets on.

use super::{
    bdev::Bdev,
    bio::{push_raw, take_raw, BioList, BioRef, Status},
    ffi,
    page::CopyPages,
};
use core::marker::PhantomData;
use core::mem::{align_of, size_of, ManuallyDrop};
use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::{bindings, prelude::*, types::Opaque};

/// What happens when a bio of the pool completes. Called in interrupt context.
pub(crate) trait EndIo: Sized + Send {
    fn end_io(bio: PoolBio<Self>);
}

/// Tells which pool a bio came from. Only compared, never followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PoolId(*const bindings::bio_set);

// SAFETY: Never followed.
unsafe impl Send for PoolId {}
// SAFETY: Never followed.
unsafe impl Sync for PoolId {}

impl PoolId {
    pub(super) fn matches(self, set: *const bindings::bio_set) -> bool {
        core::ptr::eq(self.0, set)
    }
}

/// Room for the [`PoolId`] of a pool that is made later. Set once.
pub(crate) struct PoolSlot(AtomicPtr<bindings::bio_set>);

impl PoolSlot {
    pub(crate) const fn empty() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    pub(crate) fn set(&self, pool: PoolId) {
        self.0.store(pool.0.cast_mut(), Ordering::Release);
    }

    pub(crate) fn get(&self) -> Option<PoolId> {
        let set = self.0.load(Ordering::Acquire);
        (!set.is_null()).then_some(PoolId(set))
    }
}

/// A `bio_set` whose bios carry a `T` in front.
pub(crate) struct BioPool<T> {
    // Boxed: `bio_set` must not move, it holds list heads and a work item.
    set: KBox<Opaque<bindings::bio_set>>,
    _payload: PhantomData<T>,
}

// SAFETY: A `bio_set` may be used from any task.
unsafe impl<T: Send> Send for BioPool<T> {}
// SAFETY: As above.
unsafe impl<T: Send> Sync for BioPool<T> {}

/// Bytes in front of each bio.
const fn front_pad<T>() -> usize {
    let align = align_of::<bindings::bio>();
    size_of::<T>().div_ceil(align) * align
}

impl<T: EndIo> BioPool<T> {
    /// A pool that can always deliver `reserve` bios, once those in flight complete. With `vecs`
    /// they can hold pages of their own; without, they are only for clones. With `rescuer` they may
    /// be allocated inside a `submit_bio`, where earlier ones are still on the task's list.
    pub(crate) fn new(reserve: u32, vecs: bool, rescuer: bool) -> Result<Self> {
        const {
            assert!(align_of::<T>() <= align_of::<bindings::bio>());
        }
        let set: KBox<Opaque<bindings::bio_set>> = KBox::zeroed(GFP_KERNEL)?;
        let mut flags = 0;
        if vecs {
            flags |= bindings::BIOSET_NEED_BVECS;
        }
        if rescuer {
            flags |= bindings::BIOSET_NEED_RESCUER;
        }
        // SAFETY: Zeroed memory, as `bioset_init` wants it, that stays in place.
        kernel::error::to_result(unsafe {
            bindings::bioset_init(set.get(), reserve, front_pad::<T>() as u32, flags as i32)
        })?;
        Ok(Self { set, _payload: PhantomData })
    }

    pub(crate) fn id(&self) -> PoolId {
        PoolId(self.set.get())
    }

    /// A bio that is ours from the start, charged to nobody.
    fn finish_own(&self, bio: NonNull<bindings::bio>, payload: T) -> PoolBio<T> {
        // SAFETY: Just allocated, for a device: it has the cgroup of the task of now, which is given back.
        unsafe { ffi::dbd_bio_charge_nobody(bio.as_ptr()) };
        self.finish_init(bio, payload)
    }

    fn finish_init(&self, bio: NonNull<bindings::bio>, payload: T) -> PoolBio<T> {
        // SAFETY: The bio was just allocated from our set, with room for a `T` in front of it.
        unsafe {
            payload_ptr::<T>(bio.as_ptr()).write(payload);
            (*bio.as_ptr()).bi_end_io = Some(end_io::<T>);
        }
        PoolBio { bio, _payload: PhantomData }
    }

    /// A bio with room for `vecs` pages, addressed to `sector` of `bdev`. May sleep until one is
    /// given back; never fails. No cgroup is charged for it.
    pub(crate) fn alloc(
        &self,
        bdev: Bdev,
        vecs: u16,
        opf: u32,
        sector: u64,
        payload: T,
    ) -> PoolBio<T> {
        // SAFETY: The set and the device are valid. GFP_NOIO may sleep, so it cannot return null.
        let bio = unsafe {
            NonNull::new_unchecked(bindings::bio_alloc_bioset(
                bdev.as_ptr(),
                vecs,
                opf,
                ffi::dbd_gfp_noio,
                self.set.get(),
            ))
        };
        set_sector(bio, sector);
        self.finish_own(bio, payload)
    }

    /// The same without sleeping; the payload comes back when none is to be had now.
    pub(crate) fn try_alloc(
        &self,
        bdev: Bdev,
        vecs: u16,
        opf: u32,
        sector: u64,
        payload: T,
    ) -> Result<PoolBio<T>, T> {
        // SAFETY: The set and the device are valid.
        let bio = NonNull::new(unsafe {
            bindings::bio_alloc_bioset(bdev.as_ptr(), vecs, opf, ffi::dbd_gfp_nowait, self.set.get())
        });
        match bio {
            Some(bio) => {
                set_sector(bio, sector);
                Ok(self.finish_own(bio, payload))
            }
            None => Err(payload),
        }
    }

    /// A clone of the part of `src` that starts `skip` sectors behind its start and is `sectors`
    /// long, sent to `sector` of `bdev`. May sleep; `None` only when `src` cannot be cloned
    /// (integrity or encryption data that finds no memory).
    pub(crate) fn clone_part(
        &self,
        src: BioRef<'_>,
        skip: u64,
        sectors: u64,
        bdev: Bdev,
        sector: u64,
        payload: T,
    ) -> Option<PoolBio<T>> {
        // SAFETY: The source, the set and the device are valid. The clone shares the page table of
        // the source, which outlives it (its owner keeps a `Parent`).
        let bio = unsafe {
            let bio = NonNull::new(bindings::bio_alloc_clone(
                bdev.as_ptr(),
                src.as_ptr(),
                ffi::dbd_gfp_noio,
                self.set.get(),
            ))?;
            bindings::bio_trim(bio.as_ptr(), skip, sectors);
            bio
        };
        set_sector(bio, sector);
        Some(self.finish_init(bio, payload))
    }
}

impl<T> Drop for BioPool<T> {
    fn drop(&mut self) {
        // SAFETY: Initialised in `new`. All bios have come back: whoever drops the pool has waited.
        unsafe { bindings::bioset_exit(self.set.get()) }
    }
}

/// Addresses a fresh bio of ours.
fn set_sector(bio: NonNull<bindings::bio>, sector: u64) {
    // SAFETY: Ours alone. `bvec_iter` is packed: it is copied out and back.
    unsafe {
        let mut iter = (*bio.as_ptr()).bi_iter;
        iter.bi_sector = sector;
        (*bio.as_ptr()).bi_iter = iter;
    }
}

unsafe fn payload_ptr<T>(bio: *mut bindings::bio) -> *mut T {
    // SAFETY: The caller's bio has `front_pad::<T>()` bytes in front.
    unsafe { bio.byte_sub(front_pad::<T>()).cast() }
}

unsafe extern "C" fn end_io<T: EndIo>(bio: *mut bindings::bio) {
    // SAFETY: Set as `bi_end_io` only by `finish_init`; completion gives the bio back to us.
    T::end_io(PoolBio {
        bio: unsafe { NonNull::new_unchecked(bio) },
        _payload: PhantomData,
    });
}

/// A bio of a [`BioPool`], owned. Dropping frees it and its payload (not its pages).
pub(crate) struct PoolBio<T> {
    bio: NonNull<bindings::bio>,
    _payload: PhantomData<T>,
}

// SAFETY: A bio belongs to no task, and the payload may be sent.
unsafe impl<T: Send> Send for PoolBio<T> {}

impl<T> PoolBio<T> {
    pub(crate) fn payload(&self) -> &T {
        // SAFETY: Written by `finish_init`; we own it.
        unsafe { &*payload_ptr::<T>(self.bio.as_ptr()) }
    }

    pub(crate) fn payload_mut(&mut self) -> &mut T {
        // SAFETY: As above, and we own it alone.
        unsafe { &mut *payload_ptr::<T>(self.bio.as_ptr()) }
    }

    /// How it went, after completion.
    pub(crate) fn status(&self) -> Status {
        // SAFETY: We own the bio.
        if unsafe { (*self.bio.as_ptr()).bi_status } == 0 {
            Status::Ok
        } else {
            Status::IoError
        }
    }

    /// Adds the first `len` bytes of `pages`; the bio must have room. The reference moves into the
    /// bio and must be taken out again with [`PoolBio::take_pages`].
    pub(crate) fn add_pages(&mut self, pages: CopyPages, len: u32) {
        // SAFETY: The caller asked for enough room; buffers are never merged into one entry, so entry
        // n is buffer n.
        unsafe { bindings::__bio_add_page(self.bio.as_ptr(), pages.into_raw().as_ptr(), len, 0) }
    }

    /// Adds a page of memory that the caller keeps until the bio has completed; the bio must have
    /// room.
    pub(super) fn add_memory(&mut self, page: NonNull<u8>) {
        // SAFETY: The caller asked for room and keeps the page, which is a kernel address.
        unsafe { ffi::dbd_bio_add_memory(self.bio.as_ptr(), page.as_ptr()) }
    }

    /// Number of buffers that were added.
    pub(crate) fn buffers(&self) -> u16 {
        // SAFETY: We own the bio.
        unsafe { (*self.bio.as_ptr()).bi_vcnt }
    }

    /// How many bytes were added with buffer `n`.
    pub(crate) fn buffer_bytes(&self, n: u16) -> u32 {
        if n >= self.buffers() {
            return 0;
        }
        // SAFETY: `n` is within the table, which completion leaves alone.
        unsafe { (*(*self.bio.as_ptr()).bi_io_vec.add(usize::from(n))).bv_len }
    }

    /// Drops all buffers that were not taken.
    pub(crate) fn drop_pages(&mut self) {
        for n in 0..self.buffers() {
            drop(self.take_pages(n));
        }
    }

    /// Takes buffer `n` out, once.
    pub(crate) fn take_pages(&mut self, n: u16) -> Option<CopyPages> {
        if n >= self.buffers() {
            return None;
        }
        // SAFETY: `n` is within the table, which completion leaves alone.
        unsafe {
            let vec = (*self.bio.as_ptr()).bi_io_vec.add(usize::from(n));
            let page = NonNull::new((*vec).bv_page)?;
            (*vec).bv_page = null_mut();
            Some(CopyPages::from_raw(page))
        }
    }

    /// Submits it; `T::end_io` gets it back.
    pub(crate) fn submit(self) {
        let bio = ManuallyDrop::new(self).bio;
        // SAFETY: Fully set up; ownership goes to the block layer until `end_io`.
        unsafe { bindings::submit_bio_noacct(bio.as_ptr()) }
    }

    /// Frees the bio and returns the payload.
    pub(crate) fn into_payload(self) -> T {
        let bio = ManuallyDrop::new(self).bio;
        // SAFETY: Owned; the payload is read out once, before its memory is given back.
        unsafe {
            let payload = payload_ptr::<T>(bio.as_ptr()).read();
            bindings::bio_put(bio.as_ptr());
            payload
        }
    }
}

impl<T> Drop for PoolBio<T> {
    fn drop(&mut self) {
        // SAFETY: Owned; as in `into_payload`. The pool is still there: the payload, which may hold
        // the last reference to it, is dropped after the bio.
        unsafe {
            let payload = payload_ptr::<T>(self.bio.as_ptr()).read();
            bindings::bio_put(self.bio.as_ptr());
            drop(payload);
        }
    }
}

/// A lock-free stack of completed bios; pushed to in interrupt context, emptied by a worker.
pub(crate) struct DoneStack<T>(AtomicPtr<bindings::bio>, PhantomData<T>);

// SAFETY: Owns its bios.
unsafe impl<T: Send> Send for DoneStack<T> {}
// SAFETY: As above; pushing and taking are atomic.
unsafe impl<T: Send> Sync for DoneStack<T> {}

impl<T: EndIo> DoneStack<T> {
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(null_mut()), PhantomData)
    }

    pub(crate) fn push(&self, bio: PoolBio<T>) {
        let bio = ManuallyDrop::new(bio).bio;
        // SAFETY: Owned, given up here.
        unsafe { push_raw(&self.0, bio.as_ptr()) }
    }

    /// Takes all, oldest first.
    pub(crate) fn take(&self) -> DoneList<T> {
        // SAFETY: Only `push` fills the stack.
        DoneList(unsafe { take_raw(&self.0) }, PhantomData)
    }
}

/// Completed bios, oldest first.
pub(crate) struct DoneList<T>(BioList, PhantomData<T>);

impl<T> Iterator for DoneList<T> {
    type Item = PoolBio<T>;

    fn next(&mut self) -> Option<PoolBio<T>> {
        self.0.pop_front_raw().map(|bio| PoolBio { bio, _payload: PhantomData })
    }
}

impl<T> Drop for DoneList<T> {
    fn drop(&mut self) {
        for bio in self.by_ref() {
            drop(bio);
        }
    }
}
