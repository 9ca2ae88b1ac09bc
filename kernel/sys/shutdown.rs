// SPDX-License-Identifier: GPL-2.0-only
//! Being told that the machine goes down.

use core::ffi::c_void;
use kernel::error::to_result;
use kernel::ffi::c_int;
use kernel::prelude::*;
use kernel::sync::Arc;

/// What is done then. May sleep.
pub(crate) trait OnShutdown: Send + Sync + 'static {
    fn shut_down(&self);
}

extern "C" {
    fn dbd_watch_shutdown(call: unsafe extern "C" fn(*mut c_void), arg: *mut c_void) -> c_int;
    fn dbd_unwatch_shutdown();
}

/// # Safety
///
/// `arg` points to a live `T`.
unsafe extern "C" fn call<T: OnShutdown>(arg: *mut c_void) {
    // SAFETY: By the contract.
    unsafe { &*arg.cast::<T>() }.shut_down();
}

/// Listens while it exists. The module has one.
pub(crate) struct ShutdownWatch<T: OnShutdown>(Arc<T>);

impl<T: OnShutdown> ShutdownWatch<T> {
    /// # Safety
    ///
    /// No other value exists.
    pub(crate) unsafe fn new(target: Arc<T>) -> Result<Self> {
        let arg = core::ptr::from_ref::<T>(&target).cast_mut().cast();
        // SAFETY: `target` lives until `drop` has taken the call back; there is no other value, so the
        // notifier is not registered.
        to_result(unsafe { dbd_watch_shutdown(call::<T>, arg) })?;
        Ok(Self(target))
    }
}

impl<T: OnShutdown> Drop for ShutdownWatch<T> {
    fn drop(&mut self) {
        // SAFETY: Registered in `new`. Waits for a call in progress; then `self.0` may go.
        unsafe { dbd_unwatch_shutdown() }
        let _ = &self.0;
    }
}
