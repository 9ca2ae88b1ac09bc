// SPDX-License-Identifier: GPL-2.0-only
//! Who is calling, and random numbers.

use super::ffi;
use kernel::bindings;
use kernel::ffi::c_int;

/// The calling task has CAP_SYS_ADMIN in the initial user namespace.
pub(crate) fn is_admin() -> bool {
    // SAFETY: no preconditions; looks at the current task.
    unsafe { bindings::capable(bindings::CAP_SYS_ADMIN as c_int) }
}

/// The calling task is being killed: it should wait for nothing any more.
pub(crate) fn is_killed() -> bool {
    // SAFETY: no preconditions; looks at the current task.
    unsafe { ffi::dbd_killed() }
}

/// A random version 4 UUID.
pub(crate) fn random_uuid() -> [u8; 16] {
    let mut uuid = [0; 16];
    // SAFETY: writes 16 bytes.
    unsafe { bindings::generate_random_uuid(uuid.as_mut_ptr()) };
    uuid
}

/// A random number.
pub(crate) fn random_u64() -> u64 {
    // SAFETY: no preconditions.
    unsafe { bindings::get_random_u64() }
}
