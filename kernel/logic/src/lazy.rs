// SPDX-License-Identifier: GPL-2.0-only
//! A page that is allocated when it is first needed, by whoever comes first. Lock-free.
//!
//! A [`Lazy`] leaves its empty state once and for all: it gets either a page or the mark "full",
//! which stands for a page without memory. Nothing is ever taken away before the `Lazy` itself is
//! dropped, so a page found once stays valid as long as the `Lazy` is borrowed.
//!
//! This is the only `unsafe` of the pure logic.

use super::mem::{AllocError, Context, LeafBox, Zeroable};
use super::sync::{AtomicPtr, Ordering};
use core::ptr;

/// See the module's description.
///
/// Invariant of the pointer: null, or [`full`], or a pointer out of [`LeafBox::into_raw`] that this
/// `Lazy` owns. It changes only from null to something else, until it is dropped.
#[repr(transparent)]
pub struct Lazy<T>(AtomicPtr<T>);

/// What a [`Lazy`] holds.
pub enum Content<'a, T> {
    /// Nothing yet.
    Empty,
    /// The mark that stands for a page with everything set.
    Full,
    /// A page.
    Page(&'a T),
}

/// The pointer that means "full". It points nowhere and is never followed: addresses below a page
/// are not handed out by any allocator, neither here nor in the kernel.
fn full<T>() -> *mut T {
    ptr::without_provenance_mut(1)
}

// SAFETY: `repr(transparent)` over a pointer, and null is a state of its own (empty).
unsafe impl<T> Zeroable for Lazy<T> {
    fn zeroed() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }
}

// `AtomicPtr` is `Send` and `Sync` whatever it points to, and a page made by one thread is read and
// dropped by others: hence the bounds.
impl<T: Zeroable + Send + Sync> Lazy<T> {
    fn content(&self, p: *mut T) -> Content<'_, T> {
        if p.is_null() {
            Content::Empty
        } else if ptr::eq(p, full()) {
            Content::Full
        } else {
            // It was read with Acquire, the page was stored with Release: its zeroes are visible.
            // SAFETY: by the invariant `p`, read from `self.0`, is a page that `self` owns: freed only by
            // `drop`, which the borrow of `self` excludes; only shared references to it are ever made.
            Content::Page(unsafe { &*p })
        }
    }

    /// What is there now. Any context.
    pub fn load(&self) -> Content<'_, T> {
        // Acquire: pairs with the Release of `get_or_alloc`, so that the page's zeroes are seen.
        self.content(self.0.load(Ordering::Acquire))
    }

    /// The page, if there is one. Any context.
    pub fn page(&self) -> Option<&T> {
        match self.load() {
            Content::Page(page) => Some(page),
            Content::Empty | Content::Full => None,
        }
    }

    /// Marks an empty one as full; true when this call did it. Any context.
    pub fn fill(&self) -> bool {
        self.install(full()).is_ok()
    }

    /// What is there, after putting a page there if it was empty; true when this call put it there.
    /// The context is the caller's to choose.
    ///
    /// # Errors
    ///
    /// It was empty and there is no memory.
    pub fn get_or_alloc(&self, context: Context) -> Result<(Content<'_, T>, bool), AllocError> {
        let now = self.0.load(Ordering::Acquire);
        if !now.is_null() {
            return Ok((self.content(now), false));
        }
        let new = LeafBox::into_raw(LeafBox::<T>::new(context)?);
        match self.install(new) {
            Ok(()) => Ok((self.content(new), true)),
            Err(winner) => {
                // SAFETY: `new` came from `into_raw` above, and `install` did not store it.
                drop(unsafe { LeafBox::from_raw(new) });
                Ok((self.content(winner), false))
            }
        }
    }

    /// From empty to `p`. On failure: what somebody else put there first.
    fn install(&self, p: *mut T) -> Result<(), *mut T> {
        // Release: the page's zeroes before the pointer. Acquire in both cases: a loser uses the
        // winner's page, whose zeroes it must see.
        self.0
            .compare_exchange(ptr::null_mut(), p, Ordering::AcqRel, Ordering::Acquire)
            .map(|_| ())
    }
}

impl<T> Drop for Lazy<T> {
    fn drop(&mut self) {
        // `&mut self`: nobody else is left, and whoever handed us over has synchronised with us.
        let p = self.0.load(Ordering::Acquire);
        if !p.is_null() && !ptr::eq(p, full()) {
            // SAFETY: by the invariant `p` is ours and came from `into_raw`; `self` is gone now.
            drop(unsafe { LeafBox::from_raw(p) });
        }
    }
}
