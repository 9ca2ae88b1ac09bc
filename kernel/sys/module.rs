// SPDX-License-Identifier: GPL-2.0-only
//! This module as the kernel sees it: its parameters, its version, and what keeps it in place.

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{c_char, c_int};
use kernel::prelude::*;

#[allow(
    improper_ctypes,
    reason = "struct module contains empty structs (lock_class_key); only a pointer to it passes"
)]
extern "C" {
    // Defined in shim_ctl.c. The kernel's parameter code writes them with plain stores of the same
    // width; `unsigned long` is 64 bits wide on the only supported target.
    static dattobd_cow_max_memory_default: AtomicU64;
    static dattobd_cow_fallocate_percentage_default: AtomicU32;
    static dattobd_max_snap_devices: AtomicU32;
    static dattobd_debug: AtomicI32;
    static dattobd_copy_memory_max: AtomicU64;
    static dattobd_checkpoint_ms: AtomicU32;
    #[cfg(dattobd_test_faults)]
    static dattobd_test_fault: AtomicU32;
    #[cfg(dattobd_test_faults)]
    static dattobd_test_delay: AtomicU32;
    #[cfg(dattobd_test_faults)]
    static dattobd_test_delay_steps: AtomicU32;

    fn dbd_this_module() -> *mut bindings::module;
    fn dbd_version() -> *const c_char;
    fn dbd_device_begins() -> c_int;
    fn dbd_device_ends();
    fn dbd_watch_hibernation() -> c_int;
    fn dbd_unwatch_hibernation();
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

/// Makes sysfs show the default of `copy_memory_max`.
pub(crate) fn set_copy_memory_max(bytes: u64) {
    // SAFETY: as in `cow_max_memory_default`; a C `unsigned long` that is not const.
    unsafe { &dattobd_copy_memory_max }.store(bytes, Ordering::Relaxed)
}

/// Parameter `checkpoint_ms` as given.
pub(crate) fn checkpoint_ms() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_checkpoint_ms }.load(Ordering::Relaxed)
}

/// Parameter `test_fault`, as the number of the name given.
#[cfg(dattobd_test_faults)]
pub(crate) fn test_fault() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_test_fault }.load(Ordering::Relaxed)
}

/// Parameter `test_delay` as given.
#[cfg(dattobd_test_faults)]
pub(crate) fn test_delay() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_test_delay }.load(Ordering::Relaxed)
}

/// Parameter `test_delay_steps` as given.
#[cfg(dattobd_test_faults)]
pub(crate) fn test_delay_steps() -> u32 {
    // SAFETY: as in `cow_max_memory_default`.
    unsafe { &dattobd_test_delay_steps }.load(Ordering::Relaxed)
}

/// The address of this module's `struct module`.
pub(crate) fn this_module() -> *mut bindings::module {
    // SAFETY: no preconditions.
    unsafe { dbd_this_module() }
}

/// The version of the product.
pub(crate) fn version() -> &'static str {
    // SAFETY: returns a NUL-terminated string constant of the module.
    let v = unsafe { CStr::from_char_ptr(dbd_version()) };
    v.to_str().unwrap_or("?")
}

/// What comes with every device: `rmmod` is refused, and so is hibernation.
///
/// It must be dropped by code that something else keeps in memory until it has returned (an ioctl:
/// the open control node), never by a work item as its last deed.
pub(crate) struct DevicePin(());

impl DevicePin {
    /// ENODEV while the module is going away, EBUSY while the machine prepares to hibernate.
    pub(crate) fn new() -> Result<DevicePin> {
        // SAFETY: no preconditions.
        to_result(unsafe { dbd_device_begins() })?;
        Ok(DevicePin(()))
    }
}

impl Drop for DevicePin {
    fn drop(&mut self) {
        // SAFETY: `new` has succeeded once for each value.
        unsafe { dbd_device_ends() }
    }
}

/// Listens for hibernation, for the sake of [`DevicePin`]. The module has one, while it is loaded.
pub(crate) struct HibernationWatch(());

impl HibernationWatch {
    /// # Safety
    ///
    /// No other value exists.
    pub(crate) unsafe fn new() -> Result<Self> {
        // SAFETY: the notifier block is registered by a living value only, and there is none.
        to_result(unsafe { dbd_watch_hibernation() })?;
        Ok(Self(()))
    }
}

impl Drop for HibernationWatch {
    fn drop(&mut self) {
        // SAFETY: registered in `new`. Waits for a callback in progress.
        unsafe { dbd_unwatch_hibernation() }
    }
}
