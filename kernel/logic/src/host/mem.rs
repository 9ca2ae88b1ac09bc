// SPDX-License-Identifier: GPL-2.0-only
//! Memory of the host build. The kernel has its own version with the same names.

use super::sync::{AtomicPtr, AtomicU64};
use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// Words in a page-sized leaf. Tiny when a model is checked: loom counts every atomic.
pub const WORDS: usize = if cfg!(loom) { 2 } else { 512 };

/// There is no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

/// What an allocation may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// May sleep, also for I/O (`GFP_KERNEL`, `__GFP_RETRY_MAYFAIL`): the control side, while no write waits for it.
    Control,
    /// May sleep, never starts I/O (`GFP_NOIO`, `__GFP_RETRY_MAYFAIL`).
    Sleep,
    /// Never sleeps, takes no reserves (`GFP_NOWAIT`, `__GFP_NOMEMALLOC`).
    Atomic,
}

#[cfg(not(loom))]
thread_local! {
    static FAIL: Cell<bool> = const { Cell::new(false) };
}

// loom's threads share the thread of the operating system.
#[cfg(loom)]
loom::thread_local! {
    static FAIL: Cell<bool> = Cell::new(false);
}

/// Runs `f` while every allocation of this thread that goes through this module fails.
pub fn without_memory<R>(f: impl FnOnce() -> R) -> R {
    let before = FAIL.with(|fail| fail.replace(true));
    let r = f();
    FAIL.with(|fail| fail.set(before));
    r
}

fn check() -> Result<(), AllocError> {
    if FAIL.with(Cell::get) {
        Err(AllocError)
    } else {
        Ok(())
    }
}

/// Types whose value may be made of zero bytes.
///
/// # Safety
///
/// All-zero bytes are a valid value, the one that [`Zeroable::zeroed`] returns.
pub unsafe trait Zeroable: Sized {
    /// The value of zero bytes.
    fn zeroed() -> Self;
}

// SAFETY: an atomic has the layout of its integer. (Loom's has not, which is why this module always
// calls `zeroed` and never relies on bytes.)
unsafe impl Zeroable for AtomicU64 {
    fn zeroed() -> Self {
        Self::new(0)
    }
}

// SAFETY: zero bytes are 0.
unsafe impl Zeroable for u64 {
    fn zeroed() -> Self {
        0
    }
}

// SAFETY: as above; the null pointer is zero.
unsafe impl<T> Zeroable for AtomicPtr<T> {
    fn zeroed() -> Self {
        Self::new(std::ptr::null_mut())
    }
}

// SAFETY: an array is its elements.
unsafe impl<T: Zeroable, const N: usize> Zeroable for [T; N] {
    fn zeroed() -> Self {
        std::array::from_fn(|_| T::zeroed())
    }
}

/// A fixed array of elements that start as zero bytes; dropping it drops the elements.
pub struct Slots<T>(Box<[T]>);

impl<T> Slots<T> {
    /// `len` zeroed elements. May sleep.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn new_zeroed(len: usize) -> Result<Self, AllocError>
    where
        T: Zeroable,
    {
        check()?;
        Ok(Self((0..len).map(|_| T::zeroed()).collect()))
    }
}

impl<T> Deref for Slots<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// An owned `T` of at most a page; dropping it drops the `T`.
pub struct LeafBox<T>(Box<T>);

impl<T> LeafBox<T> {
    /// A zeroed `T`.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn new(_context: Context) -> Result<Self, AllocError>
    where
        T: Zeroable,
    {
        check()?;
        Ok(Self(Box::new(T::zeroed())))
    }

    /// Gives up ownership to a pointer that [`LeafBox::from_raw`] takes back.
    pub fn into_raw(self) -> *mut T {
        Box::into_raw(self.0)
    }

    /// Takes ownership back.
    ///
    /// # Safety
    ///
    /// `raw` comes from [`LeafBox::into_raw`] and was not taken back before.
    pub unsafe fn from_raw(raw: *mut T) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { Box::from_raw(raw) })
    }
}

impl<T> Deref for LeafBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for LeafBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// A list whose memory is got all at once.
pub struct List<T>(Vec<T>);

impl<T> List<T> {
    /// Without room.
    pub const fn empty() -> Self {
        Self(Vec::new())
    }

    /// With room for `n`. May sleep.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn with_capacity(n: usize) -> Result<Self, AllocError> {
        check()?;
        Ok(Self(Vec::with_capacity(n)))
    }

    /// How many fit.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// Puts a value at number `at`. False, and it is dropped: no room, or the list is not that long.
    pub fn insert(&mut self, at: usize, value: T) -> bool {
        let fits = self.0.len() < self.0.capacity() && at <= self.0.len();
        if fits {
            self.0.insert(at, value);
        }
        fits
    }

    /// Takes number `at` out.
    pub fn remove(&mut self, at: usize) -> Option<T> {
        (at < self.0.len()).then(|| self.0.remove(at))
    }

    /// Moves all of `other` behind what is here; nothing when they do not all fit.
    pub fn move_from(&mut self, other: &mut List<T>) {
        if self.0.capacity().saturating_sub(self.0.len()) >= other.0.len() {
            self.0.append(&mut other.0);
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
