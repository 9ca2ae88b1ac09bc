// SPDX-License-Identifier: GPL-2.0-only
//! Waiting for delayed work.

use super::ffi;
use kernel::workqueue::{DelayedWork, Work};

/// Runs delayed work at once if it is pending, and waits until it has run. May sleep; not from that
/// work itself.
pub(crate) fn flush_delayed<T, const ID: u64>(work: &DelayedWork<T, ID>) {
    // SAFETY: A valid reference; the first member of a `delayed_work` is its `work_struct`, which
    // `raw_get` points to. The work item keeps its owner alive while it is pending.
    unsafe {
        let work = DelayedWork::raw_as_work(work);
        ffi::dbd_flush_delayed(Work::raw_get(work));
    }
}
