// SPDX-License-Identifier: GPL-2.0-only
//! A pointer that probes read under RCU and that is replaced as a whole.

use core::ptr::{null_mut, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};
use kernel::{bindings, prelude::*, sync::rcu};

/// Holds an optional boxed `T`. Readers never wait; a writer gets the old value back once no reader
/// can see it any more.
pub(crate) struct RcuCell<T>(AtomicPtr<T>);

impl<T: Send + Sync> RcuCell<T> {
    pub(crate) const fn empty() -> Self {
        Self(AtomicPtr::new(null_mut()))
    }

    /// The value, for as long as the RCU guard is held.
    pub(crate) fn read<'a>(&'a self, _guard: &'a rcu::Guard) -> Option<&'a T> {
        // Acquire pairs with the release in `replace`: the value is seen complete.
        let p = NonNull::new(self.0.load(Ordering::Acquire))?;
        // SAFETY: The pointer came from a box that `replace` put in. It is freed only after a grace
        // period that starts after it was taken out, and the guard holds that off.
        Some(unsafe { p.as_ref() })
    }

    /// Puts in a new value: one store, no allocation, any context. The old value comes back wrapped:
    /// it must be waited for.
    pub(crate) fn replace(&self, new: Option<KBox<T>>) -> Retired<T> {
        let new = new.map_or(null_mut(), KBox::into_raw);
        Retired(NonNull::new(self.0.swap(new, Ordering::AcqRel)))
    }
}

impl<T> Drop for RcuCell<T> {
    fn drop(&mut self) {
        if let Some(p) = NonNull::new(*self.0.get_mut()) {
            // SAFETY: From a box; `&mut self` shows that there is no reader left.
            drop(unsafe { KBox::from_raw(p.as_ptr()) });
        }
    }
}

/// A value that readers may still see.
#[must_use = "dropping it sleeps for a grace period: say when"]
pub(crate) struct Retired<T>(Option<NonNull<T>>);

// SAFETY: Owns the value, which may be sent.
unsafe impl<T: Send> Send for Retired<T> {}

impl<T> Retired<T> {
    /// Sleeps for a grace period; then no reader sees the old value, and whatever readers did with it
    /// is done.
    pub(crate) fn wait(mut self) -> Option<KBox<T>> {
        synchronize();
        // SAFETY: From a box; the grace period is over and the pointer was unpublished before.
        self.0.take().map(|p| unsafe { KBox::from_raw(p.as_ptr()) })
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        if let Some(p) = self.0.take() {
            synchronize();
            // SAFETY: As in `wait`.
            drop(unsafe { KBox::from_raw(p.as_ptr()) });
        }
    }
}

/// Waits until every RCU reader that runs now has finished. May sleep.
pub(crate) fn synchronize() {
    // SAFETY: Called from process context, outside any RCU read side.
    unsafe { bindings::synchronize_rcu() }
}
