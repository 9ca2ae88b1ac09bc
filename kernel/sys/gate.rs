// SPDX-License-Identifier: GPL-2.0-only
//! A counter of things under way that one can wait on.

use super::ffi;
use core::sync::atomic::{AtomicI64, Ordering};
use kernel::bindings;

/// Counts things under way.
pub(crate) struct Gate(AtomicI64);

impl Gate {
    pub(crate) const fn new() -> Self {
        Self(AtomicI64::new(0))
    }

    /// One more under way. Any context.
    pub(crate) fn enter(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// One less. Any context. What the caller did before is visible to a waiter that sees zero.
    pub(crate) fn leave(&self) {
        if self.0.fetch_sub(1, Ordering::AcqRel) == 1 {
            // SAFETY: Only the address is used, as the key of the hashed wait queue.
            unsafe { ffi::dbd_gate_wake(self.raw()) }
        }
    }

    pub(crate) fn count(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    /// Sleeps until nothing is under way. The caller has made sure that nothing new comes.
    pub(crate) fn wait_empty(&self) {
        // SAFETY: `AtomicI64` has the layout of `atomic64_t`, and `self` outlives the call.
        unsafe { ffi::dbd_gate_wait(self.raw()) }
    }

    fn raw(&self) -> *mut bindings::atomic64_t {
        self.0.as_ptr().cast()
    }
}
