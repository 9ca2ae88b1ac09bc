// SPDX-License-Identifier: GPL-2.0-only
//! uevents.

use core::ptr::{null_mut, NonNull};
use kernel::bindings;
use kernel::ffi::c_char;
use kernel::prelude::*;

/// A counted reference to a kernel object that events are sent from.
pub(crate) struct EventSource(NonNull<bindings::kobject>);

// SAFETY: reference counting and uevents of a kobject may happen in any task.
unsafe impl Send for EventSource {}
// SAFETY: as above.
unsafe impl Sync for EventSource {}

impl EventSource {
    /// Takes a reference.
    ///
    /// # Safety
    ///
    /// `kobj` is valid during the call.
    pub(super) unsafe fn new(kobj: *mut bindings::kobject) -> Option<Self> {
        // SAFETY: valid, says the caller; the reference is given back in `drop`.
        NonNull::new(unsafe { bindings::kobject_get(kobj) }).map(Self)
    }

    /// Sends a "change" event with extra variables (`NAME=value`). May sleep.
    pub(crate) fn changed<const N: usize>(&self, vars: [&CStr; N]) -> Result {
        // `N + 1` cannot be written as an array length; no event of this module has more variables.
        const ROOM: usize = 8;
        let mut envp: [*mut c_char; ROOM + 1] = [null_mut(); ROOM + 1];
        for (slot, var) in envp.iter_mut().take(ROOM).zip(vars) {
            *slot = var.as_ptr().cast::<c_char>().cast_mut();
        }
        // SAFETY: the object is alive (reference held); `envp` is a null-terminated array of
        // NUL-terminated strings that outlive the call, which only reads them.
        kernel::error::to_result(unsafe {
            bindings::kobject_uevent_env(
                self.0.as_ptr(),
                bindings::kobject_action_KOBJ_CHANGE,
                envp.as_mut_ptr(),
            )
        })
    }
}

impl Drop for EventSource {
    fn drop(&mut self) {
        // SAFETY: gives back the reference that `new` took.
        unsafe { bindings::kobject_put(self.0.as_ptr()) }
    }
}
