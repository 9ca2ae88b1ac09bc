// SPDX-License-Identifier: GPL-2.0-only
//! Module parameters with their bounds applied. The variables are in shim_ctl.c.

use crate::logic::state;
use crate::sys::{module, page};

/// Least memory for copies of one device: two of the largest writes of copies (1 MiB), so that one
/// can be filled while the other is written.
const MIN_COPY_MEMORY: u64 = 2 << 20;
/// Most: beyond it the table of the copies alone would be too large to allocate, and the kernel warns of that.
const MAX_COPY_MEMORY: u64 = 4 << 30;

/// Bounds `max_snap_devices` (0 means the default) and makes sysfs show what is used.
pub(crate) fn settle_max_devices() -> u32 {
    let n = state::max_devices(module::max_snap_devices());
    module::set_max_snap_devices(n);
    n
}

/// Cache limit of a device that was set up without one, in bytes: see `index_table.rs`.
pub(crate) fn cache_size_default() -> u64 {
    module::cow_max_memory_default()
}

/// Size of a COW file that was asked for without one, in percent of the device.
pub(crate) fn fallocate_percentage() -> u32 {
    module::cow_fallocate_percentage_default()
}

/// 32 MiB: at 500 MB/s of first overwrites that is 60 ms of slack for the COW writes, and 24 devices together
/// stay below 1 GiB.
///
/// No more than 1/16 of the memory, as nobody can reclaim a copy before it is written: a machine of 206 MiB
/// ran out of memory over 32 MiB of them (`s2-memory`).
fn default_copy_memory() -> u64 {
    (32 << 20).min(page::memory() / 16)
}

/// Makes sysfs show the default of `copy_memory_max`, when nobody gave one.
pub(crate) fn settle_copy_memory() {
    if module::copy_memory_max() == 0 {
        module::set_copy_memory_max(default_copy_memory());
    }
}

/// Bytes of old data that one device may keep in memory before writers wait. Read when a snapshot
/// is taken. 0 means the default.
pub(crate) fn copy_memory_max() -> u64 {
    let bytes = match module::copy_memory_max() {
        0 => default_copy_memory(),
        given => given,
    };
    bytes.clamp(MIN_COPY_MEMORY, MAX_COPY_MEMORY)
}

/// Time between two checkpoints of a device, while there is something to do: how old a mark gets that no
/// write renews, in milliseconds. Ten seconds by default: what was busy in the last ten seconds before a
/// crash is copied once more, and writers that come and go pay for a mark that often at most.
pub(crate) fn checkpoint_ms() -> u32 {
    module::checkpoint_ms().clamp(100, 86_400_000)
}

/// Log each step of an operation.
pub(crate) fn debug() -> bool {
    module::debug() != 0
}

/// The longest delay that a test wants between the steps of a first overwrite, in microseconds, and between
/// which (`delays.rs`).
#[cfg(dattobd_test_faults)]
pub(crate) fn test_delay() -> (u32, u32) {
    (module::test_delay(), module::test_delay_steps())
}

/// Which deliberate defect a counter-test has switched on (`faults.rs`); 0: none.
#[cfg(dattobd_test_faults)]
pub(crate) fn test_fault() -> u32 {
    module::test_fault()
}
