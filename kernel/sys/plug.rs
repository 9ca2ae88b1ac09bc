// SPDX-License-Identifier: GPL-2.0-only
//! Batching of bios that one worker submits in a row.

use core::mem::MaybeUninit;
use kernel::bindings;

/// Runs `f` below a block plug, so that adjacent bios that it submits can merge.
pub(crate) fn plugged<R>(f: impl FnOnce() -> R) -> R {
    let mut plug = MaybeUninit::<bindings::blk_plug>::uninit();
    // SAFETY: `blk_start_plug` initialises the plug, which stays in place on this stack until
    // `blk_finish_plug`. Should the task sleep in between, the scheduler flushes the plug.
    unsafe { bindings::blk_start_plug(plug.as_mut_ptr()) };
    let result = f();
    // SAFETY: Started above by this task.
    unsafe { bindings::blk_finish_plug(plug.as_mut_ptr()) };
    result
}
