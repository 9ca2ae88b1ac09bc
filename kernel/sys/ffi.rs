// SPDX-License-Identifier: GPL-2.0-only
//! The functions of `shim.c`.

use core::ffi::{c_char, c_uint, c_void};
use kernel::bindings;

#[allow(
    improper_ctypes,
    reason = "the kernel's structs contain empty ones (lock_class_key); only pointers to them pass"
)]
extern "C" {
    pub(super) fn dbd_tracepoint_sync();
    pub(super) fn dbd_alloc_workqueue(
        name: *const c_char,
        minor: c_uint,
    ) -> *mut bindings::workqueue_struct;
    pub(super) fn dbd_alloc_control_queue() -> *mut bindings::workqueue_struct;
    pub(super) fn dbd_alloc_snapshot_disk(
        origin: *mut bindings::block_device,
    ) -> *mut bindings::gendisk;
    pub(super) fn dbd_alloc_shadow_disk() -> *mut bindings::gendisk;
    pub(super) fn dbd_disk_close_if_unused(
        disk: *mut bindings::gendisk,
        closing: *mut bool,
    ) -> bool;
    pub(super) fn dbd_disk_reopen(disk: *mut bindings::gendisk, closing: *mut bool);
    pub(super) fn dbd_queue_is_mq(bdev: *mut bindings::block_device) -> bool;
    pub(super) fn dbd_queue_drain(bdev: *mut bindings::block_device);
    pub(super) fn dbd_requests_finish(bdev: *mut bindings::block_device);
    pub(super) fn dbd_writes_settle(bdev: *mut bindings::block_device, ms: c_uint) -> bool;
    pub(super) fn dbd_bio_inc_remaining(bio: *mut bindings::bio);
    pub(super) fn dbd_bio_read(bio: *mut bindings::bio, skip: c_uint, len: c_uint, to: *mut u8);
    pub(super) fn dbd_bio_give(bio: *mut bindings::bio, skip: c_uint, len: c_uint, from: *const u8);
    pub(super) fn dbd_bio_set_dev(bio: *mut bindings::bio, bdev: *mut bindings::block_device);
    pub(super) fn dbd_bio_fill(
        bio: *mut bindings::bio,
        skip: c_uint,
        len: c_uint,
        src: *mut bindings::page,
        src_offset: c_uint,
    );
    pub(super) fn dbd_flush_delayed(work: *mut bindings::work_struct);
    pub(super) fn dbd_bio_charge_nobody(bio: *mut bindings::bio);
    pub(super) fn dbd_bio_add_memory(bio: *mut bindings::bio, page: *mut u8);
    pub(super) fn dbd_alloc_pages(order: c_uint) -> *mut bindings::page;
    pub(super) fn dbd_alloc_reserve_page() -> *mut bindings::page;
    pub(super) fn dbd_page_order(page: *mut bindings::page) -> c_uint;
    pub(super) fn dbd_get_page(page: *mut bindings::page);
    pub(super) fn dbd_put_page(page: *mut bindings::page);
    pub(super) fn dbd_page_is_sole(page: *mut bindings::page) -> bool;
    pub(super) fn dbd_memory() -> u64;
    pub(super) fn dbd_zero_rest_of_page(page: *mut bindings::page, offset: c_uint);
    pub(super) fn dbd_gate_wait(count: *mut bindings::atomic64_t);
    pub(super) fn dbd_gate_wake(count: *mut bindings::atomic64_t);
    pub(crate) fn dbd_alloc_leaf(gfp: bindings::gfp_t) -> *mut c_void;
    pub(crate) static dbd_gfp_leaf_atomic: bindings::gfp_t;
    pub(crate) static dbd_gfp_leaf_sleep: bindings::gfp_t;
    pub(crate) static dbd_gfp_leaf_control: bindings::gfp_t;
    pub(super) static dbd_gfp_noio: bindings::gfp_t;
    pub(super) static dbd_gfp_nowait: bindings::gfp_t;
    pub(super) fn dbd_killed() -> bool;
    pub(super) fn dbd_noio_save() -> c_uint;
    pub(super) fn dbd_noio_restore(flags: c_uint);
}

/// No allocation below this guard starts I/O, whatever flags it asks for.
pub(crate) struct NoIo(c_uint, kernel::types::NotThreadSafe);

impl NoIo {
    pub(crate) fn enter() -> Self {
        // SAFETY: Sets a flag of the current task; undone on drop, by the same task.
        Self(unsafe { dbd_noio_save() }, kernel::types::NotThreadSafe)
    }
}

impl Drop for NoIo {
    fn drop(&mut self) {
        // SAFETY: `self.0` is what `dbd_noio_save` returned in this task (not `Send`).
        unsafe { dbd_noio_restore(self.0) }
    }
}
