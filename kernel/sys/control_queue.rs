// SPDX-License-Identifier: GPL-2.0-only
//! The work queue of the control side: reports, growing COW files, letting go of unmounted devices.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;
use kernel::workqueue::Queue;

extern "C" {
    fn dbd_alloc_control_queue() -> *mut bindings::workqueue_struct;
}

/// A work queue of this module.
///
/// Must not be dropped by one of its own work items: destroying waits for them.
pub(crate) struct ControlQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: a work queue may be used and destroyed from any task.
unsafe impl Send for ControlQueue {}
// SAFETY: as above.
unsafe impl Sync for ControlQueue {}

impl ControlQueue {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: no preconditions; may sleep.
        NonNull::new(unsafe { dbd_alloc_control_queue() })
            .map(Self)
            .ok_or(ENOMEM)
    }

    /// The queue, to put work on.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: the queue lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Waits for all work queued so far, until its functions have returned. May sleep; not from one
    /// of its work items.
    pub(crate) fn flush(&self) {
        // SAFETY: the queue is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) }
    }
}

impl Drop for ControlQueue {
    fn drop(&mut self) {
        // SAFETY: nobody else refers to the queue any more; destroying drains it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}
