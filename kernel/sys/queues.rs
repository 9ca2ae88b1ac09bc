// SPDX-License-Identifier: GPL-2.0-only
//! Work queues: those of one tracked device, and that of the control side.

use super::ffi;
use core::ptr::NonNull;
use kernel::{bindings, prelude::*, workqueue::Queue};

/// A work queue of our own.
///
/// Must not be dropped by one of its own work items: destroying waits for them.
pub(crate) struct OwnQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue may be used and destroyed from any task.
unsafe impl Send for OwnQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnQueue {}

impl OwnQueue {
    /// One for I/O: it has a rescuer. `name` and the minor are what it is called.
    pub(crate) fn new(name: &CStr, minor: u32) -> Result<Self> {
        // SAFETY: `name` is NUL-terminated and only read during the call.
        NonNull::new(unsafe { ffi::dbd_alloc_workqueue(name.as_ptr().cast(), minor) })
            .map(Self)
            .ok_or(ENOMEM)
    }

    /// One for what may wait for filesystems: reports, growing COW files, letting go of unmounted devices.
    pub(crate) fn control() -> Result<Self> {
        // SAFETY: No preconditions; may sleep.
        NonNull::new(unsafe { ffi::dbd_alloc_control_queue() })
            .map(Self)
            .ok_or(ENOMEM)
    }

    /// The queue, to put work on.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: The queue lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }

    /// Waits for all work queued so far, until its functions have returned. May sleep; not from one
    /// of its work items.
    pub(crate) fn flush(&self) {
        // SAFETY: The queue is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) }
    }
}

impl Drop for OwnQueue {
    fn drop(&mut self) {
        // SAFETY: Nobody else refers to the queue any more; destroying drains it.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) }
    }
}

/// The queues of a tracked device. Several, because work that waits for a bio of a bounded pool, or for
/// a write, must not occupy the rescuer that the work which frees those bios needs.
pub(crate) struct Queues {
    /// Work that allocates bios: claiming, copying, repeating reads.
    pub(crate) issue: OwnQueue,
    /// Work that only frees and hands back: what `issue` may be waiting for.
    pub(crate) finish: OwnQueue,
    /// The region log: waits for its own writes.
    pub(crate) log: OwnQueue,
}

impl Queues {
    pub(crate) fn new(minor: u32) -> Result<Self> {
        Ok(Self {
            issue: OwnQueue::new(c"dattobd-issue", minor)?,
            finish: OwnQueue::new(c"dattobd-finish", minor)?,
            log: OwnQueue::new(c"dattobd-log", minor)?,
        })
    }

    /// Waits for all work queued so far; two rounds, as each queue may feed the others.
    pub(crate) fn flush(&self) {
        for _ in 0..2 {
            self.log.flush();
            self.issue.flush();
            self.finish.flush();
        }
    }
}
