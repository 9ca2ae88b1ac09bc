// SPDX-License-Identifier: GPL-2.0-only
//! The `block_bio_queue` tracepoint: every bio passes it once, before it is queued.

use super::{bio::BioRef, ffi};
use core::ffi::c_void;
use core::ptr::{null_mut, NonNull};
use kernel::{bindings, prelude::*};

/// Runs behind all other probes (the default priority is 10), so that a tracer sees the bio as it
/// was submitted.
const PRIORITY: i32 = -1000;

/// A registered probe; unregistered on drop.
pub(crate) struct BioQueueProbe(NonNull<bindings::tracepoint>);

// SAFETY: Registration may be undone from any task.
unsafe impl Send for BioQueueProbe {}
// SAFETY: No method takes `&self`.
unsafe impl Sync for BioQueueProbe {}

/// What the probe runs for every bio: in the submitter's task, must not sleep.
pub(crate) trait BioHook {
    fn on_bio(bio: BioRef<'_>);
}

unsafe extern "C" fn find(tp: *mut bindings::tracepoint, out: *mut c_void) {
    // SAFETY: The kernel passes live tracepoints whose name is a NUL-terminated string; `out` is
    // the pointer that `register` passed in.
    unsafe {
        if CStr::from_char_ptr((*tp).name.cast()).to_bytes() == b"block_bio_queue" {
            *out.cast::<*mut bindings::tracepoint>() = tp;
        }
    }
}

unsafe extern "C" fn probe<H: BioHook>(_data: *mut c_void, bio: *mut bindings::bio) {
    // SAFETY: The tracepoint passes a live bio that the submission path owns and leaves alone until
    // the probe returns.
    H::on_bio(unsafe { BioRef::from_raw(bio) });
}

impl BioQueueProbe {
    /// Registers `H`. Fails with ENOENT on a kernel without the tracepoint.
    pub(crate) fn register<H: BioHook>() -> Result<Self> {
        let mut tp: *mut bindings::tracepoint = null_mut();
        // SAFETY: `find` writes at most one pointer to `tp`, during the call.
        unsafe {
            bindings::for_each_kernel_tracepoint(Some(find), (&raw mut tp).cast());
        }
        let tp = NonNull::new(tp).ok_or(ENOENT)?;
        // SAFETY: `probe` has the prototype of this tracepoint; no data pointer is needed. The code
        // stays until `drop` has unregistered it and waited.
        kernel::error::to_result(unsafe {
            bindings::tracepoint_probe_register_prio(
                tp.as_ptr(),
                probe::<H> as *mut c_void,
                null_mut(),
                PRIORITY,
            )
        })?;
        Ok(Self(tp))
    }

    /// Unregisters the probe of `H` and waits until none runs any more. May sleep.
    pub(crate) fn unregister<H: BioHook>(self) {
        // SAFETY: Registered in `register` with the same function and data.
        unsafe {
            bindings::tracepoint_probe_unregister(
                self.0.as_ptr(),
                probe::<H> as *mut c_void,
                null_mut(),
            );
            ffi::dbd_tracepoint_sync();
        }
    }
}
