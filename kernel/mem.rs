// SPDX-License-Identifier: GPL-2.0-only
//! Memory for the pure logic (`kernel/logic`), under the names that its host build has too.

use crate::sys::ffi;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU64};
use kernel::bindings;
use kernel::prelude::*;
pub(crate) use kernel::alloc::AllocError;

/// Words in a page-sized leaf.
pub(crate) const WORDS: usize = 512;

/// What an allocation may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// May sleep, also for I/O (`GFP_KERNEL`, `__GFP_RETRY_MAYFAIL`): the control side, while no write waits for it.
    Control,
    /// May sleep, never starts I/O (`GFP_NOIO`, `__GFP_RETRY_MAYFAIL`).
    Sleep,
    /// Never sleeps, takes no reserves (`GFP_NOWAIT`, `__GFP_NOMEMALLOC`).
    Atomic,
}

impl Context {
    /// The flags for a page of zeros, [`ffi::dbd_alloc_leaf`].
    pub(crate) fn gfp(self) -> bindings::gfp_t {
        // SAFETY: Constants.
        unsafe {
            match self {
                Context::Control => ffi::dbd_gfp_leaf_control,
                Context::Sleep => ffi::dbd_gfp_leaf_sleep,
                Context::Atomic => ffi::dbd_gfp_leaf_atomic,
            }
        }
    }
}

/// Types whose value may be made of zero bytes.
///
/// # Safety
///
/// All-zero bytes are a valid value, the one that [`Zeroable::zeroed`] returns.
pub(crate) unsafe trait Zeroable: Sized {
    /// The value of zero bytes.
    #[allow(dead_code, reason = "the host build makes its values with it; here zeroed memory is enough")]
    fn zeroed() -> Self;
}

// SAFETY: An atomic has the layout of its integer.
unsafe impl Zeroable for AtomicU64 {
    fn zeroed() -> Self {
        Self::new(0)
    }
}

// SAFETY: Zero bytes are 0.
unsafe impl Zeroable for u8 {
    fn zeroed() -> Self {
        0
    }
}

// SAFETY: Zero bytes are 0.
unsafe impl Zeroable for u64 {
    fn zeroed() -> Self {
        0
    }
}

// SAFETY: As above; the null pointer is zero.
unsafe impl<T> Zeroable for AtomicPtr<T> {
    fn zeroed() -> Self {
        Self::new(core::ptr::null_mut())
    }
}

// SAFETY: An array is its elements.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {
    fn zeroed() -> Self {
        core::array::from_fn(|_| T::zeroed())
    }
}

/// A fixed array of elements that start as zero bytes; dropping it drops the elements.
pub(crate) struct Slots<T>(KVVec<T>);

impl<T> Slots<T> {
    /// `len` zeroed elements. May sleep; not for the write path.
    pub(crate) fn new_zeroed(len: usize) -> Result<Self, AllocError>
    where
        T: Zeroable,
    {
        let mut v = KVVec::with_capacity(len, GFP_KERNEL | __GFP_ZERO)?;
        // SAFETY: There is room for `len` elements, all of them zero bytes, which `T: Zeroable`
        // makes values.
        unsafe { v.inc_len(len) };
        Ok(Self(v))
    }
}

impl<T> Deref for Slots<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// An owned `T` of at most a page; dropping it drops the `T`.
///
/// # Invariants
///
/// The pointer is a page from `dbd_alloc_leaf` that holds a valid `T`.
pub(crate) struct LeafBox<T>(NonNull<T>);

impl<T> LeafBox<T> {
    /// A zeroed `T`.
    pub(crate) fn new(context: Context) -> Result<Self, AllocError>
    where
        T: Zeroable,
    {
        const {
            assert!(core::mem::size_of::<T>() <= 4096 && core::mem::align_of::<T>() <= 4096);
        }
        // SAFETY: Plain allocation.
        let page = unsafe { ffi::dbd_alloc_leaf(context.gfp()) };
        // INVARIANT: A zeroed page, which `T: Zeroable` makes a `T` (it fits, see above).
        NonNull::new(page.cast()).map(Self).ok_or(AllocError)
    }

    /// Gives up ownership to a pointer that [`LeafBox::from_raw`] takes back.
    pub(crate) fn into_raw(self) -> *mut T {
        let p = self.0.as_ptr();
        core::mem::forget(self);
        p
    }

    /// Takes ownership back.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`LeafBox::into_raw`] and was not taken back before.
    pub(crate) unsafe fn from_raw(raw: *mut T) -> Self {
        // SAFETY: The caller's promise: not null.
        Self(unsafe { NonNull::new_unchecked(raw) })
    }
}

impl<T> Drop for LeafBox<T> {
    fn drop(&mut self) {
        // SAFETY: By the invariant a `T` in a page of its own; both are given up here.
        unsafe {
            self.0.as_ptr().drop_in_place();
            kernel::bindings::free_pages(self.0.as_ptr() as usize, 0);
        }
    }
}

// SAFETY: It owns its `T`, as a box does.
unsafe impl<T: Send> Send for LeafBox<T> {}
// SAFETY: As above.
unsafe impl<T: Sync> Sync for LeafBox<T> {}

impl<T> Deref for LeafBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the invariant a valid `T`, which `self` owns.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for LeafBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: As above, and `self` is borrowed alone.
        unsafe { self.0.as_mut() }
    }
}

/// A list whose memory is got all at once.
pub(crate) struct List<T>(KVVec<T>);

impl<T> List<T> {
    /// Without room.
    pub(crate) const fn empty() -> Self {
        Self(KVVec::new())
    }

    /// With room for `n`. May sleep, never starts I/O.
    pub(crate) fn with_capacity(n: usize) -> Result<Self, AllocError> {
        let _no_io = ffi::NoIo::enter();
        Ok(Self(KVVec::with_capacity(n, GFP_KERNEL)?))
    }

    /// How many fit.
    pub(crate) fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Puts a value at number `at`. False, and it is dropped: no room, or the list is not that long.
    pub(crate) fn insert(&mut self, at: usize, value: T) -> bool {
        self.0.insert_within_capacity(at, value).is_ok()
    }

    /// Takes number `at` out.
    pub(crate) fn remove(&mut self, at: usize) -> Option<T> {
        self.0.remove(at).ok()
    }

    /// Moves all of `other` behind what is here; nothing when they do not all fit.
    pub(crate) fn move_from(&mut self, other: &mut List<T>) {
        let room = self.0.capacity().saturating_sub(self.0.len());
        if room >= other.0.len() {
            for value in other.0.drain_all() {
                // Never full: see above.
                let _ = self.0.push_within_capacity(value);
            }
        }
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
