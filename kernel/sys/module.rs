// SPDX-License-Identifier: GPL-2.0-only
//! This module as the kernel sees it: its parameters and its reference count.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use kernel::bindings;
use kernel::prelude::*;

extern "C" {
    // Defined in shim_ctl.c. The kernel's parameter code writes them with plain stores of the same
    // width; `unsigned long` is 64 bits wide on the only supported target.
    static dattobd_cow_max_memory_default: AtomicU64;
    static dattobd_cow_fallocate_percentage_default: AtomicU32;
    static dattobd_max_snap_devices: AtomicU32;
    static dattobd_debug: AtomicI32;
    static dattobd_copy_memory_max: AtomicU64;
    #[cfg(dattobd_test_faults)]
    static dattobd_test_fault: AtomicU32;

    fn dbd_this_module() -> *mut bindings::module;
}

/// Parameter `cow_max_memory_default` as given.
pub(crate) fn cow_max_memory_default() -> u64 {
    // SAFETY: an initialised C global that lives as long as the module, with the layout of the
    // atomic type.
    unsafe { &dattobd_cow_max_memory_default }.load(Ordering::Relaxed)
}

/// Parameter `cow_fallocate_percentage_default` as given.
pub(crate) fn cow_fallocate_percentage_default() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_cow_fallocate_percentage_default }.load(Ordering::Relaxed)
}

/// Parameter `max_snap_devices` as given.
pub(crate) fn max_snap_devices() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_max_snap_devices }.load(Ordering::Relaxed)
}

/// Makes sysfs show the bounded value of `max_snap_devices`.
pub(crate) fn set_max_snap_devices(n: u32) {
    // SAFETY: as in `cow_max_memory_default`; a C `unsigned int` that is not const.
    unsafe { &dattobd_max_snap_devices }.store(n, Ordering::Relaxed)
}

/// Parameter `debug` as given.
pub(crate) fn debug() -> i32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_debug }.load(Ordering::Relaxed)
}

/// Parameter `copy_memory_max` as given.
pub(crate) fn copy_memory_max() -> u64 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_copy_memory_max }.load(Ordering::Relaxed)
}

/// Parameter `test_fault`, as the number of the name given.
#[cfg(dattobd_test_faults)]
pub(crate) fn test_fault() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_test_fault }.load(Ordering::Relaxed)
}

/// The address of this module's `struct module`.
pub(crate) fn this_module() -> *mut bindings::module {
    // SAFETY: no preconditions.
    unsafe { dbd_this_module() }
}

/// A reference on this module: `rmmod` is refused while one exists.
///
/// It must be dropped by code that something else keeps in memory until it has returned (an ioctl:
/// the open control node), never by a work item as its last deed.
pub(crate) struct ModuleRef(());

impl ModuleRef {
    /// Takes a reference; ENODEV while the module is going away.
    pub(crate) fn get() -> Result<ModuleRef> {
        // SAFETY: `this_module` is this module, which is loaded while its code runs.
        if unsafe { bindings::try_module_get(this_module()) } {
            Ok(ModuleRef(()))
        } else {
            Err(ENODEV)
        }
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: `get` took the reference that is given back here, once.
        unsafe { bindings::module_put(this_module()) }
    }
}
