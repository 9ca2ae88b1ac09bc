// SPDX-License-Identifier: GPL-2.0-only
//! The functions of `shim_fs.c`.

use core::ffi::c_char;
use core::marker::{PhantomData, PhantomPinned};
use kernel::bindings;
use kernel::ffi::{c_int, c_long, c_uint, c_ulong, c_void};

pub(super) const BDEV_ZONED: c_uint = 1;
pub(super) const BDEV_DAX: c_uint = 2;
pub(super) const BDEV_LARGE_BLOCKS: c_uint = 4;
pub(super) const BDEV_OURS: c_uint = 8;

pub(super) const INODE_REGULAR: c_uint = 1;
pub(super) const INODE_DIRECTORY: c_uint = 2;
pub(super) const INODE_SWAPFILE: c_uint = 4;
pub(super) const INODE_ENCRYPTED: c_uint = 8;
pub(super) const INODE_VERITY: c_uint = 16;
pub(super) const INODE_DAX: c_uint = 32;
pub(super) const INODE_WRITERS: c_uint = 64;
pub(super) const INODE_LOCKED_DOWN: c_uint = 128;

/// `struct fs_context`.
#[repr(C)]
pub(super) struct FsContext {
    _data: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `struct dbd_watch`.
#[repr(C)]
pub(super) struct DbdWatch {
    _data: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

/// `struct dbd_watch_ops`.
#[repr(C)]
pub(super) struct WatchOps {
    pub(super) unmounted: unsafe extern "C" fn(*mut c_void),
    pub(super) release: unsafe extern "C" fn(*mut c_void),
}

pub(super) type ExtentFn = unsafe extern "C" fn(*mut c_void, u64, u64, u64) -> c_int;

#[allow(
    improper_ctypes,
    reason = "kernel structs hold empty ones (lock classes); they only cross as pointers"
)]
extern "C" {
    pub(super) fn dbd_bdev_open(dev: bindings::dev_t) -> *mut bindings::file;
    pub(super) fn dbd_bdev_traits(bdev: *mut bindings::block_device) -> c_uint;
    pub(super) fn dbd_bdev_sectors_now(bdev: *mut bindings::block_device) -> u64;
    pub(super) fn dbd_bdev_same_entry(
        a: *mut bindings::block_device,
        b: *mut bindings::block_device,
    ) -> bool;
    pub(super) fn dbd_bdev_is_deleted(bdev: *mut bindings::block_device) -> bool;

    pub(super) fn dbd_block_filesystems(
        out: *mut *mut bindings::file_system_type,
        room: c_uint,
    ) -> c_uint;
    pub(super) fn dbd_sb_is_on(
        sb: *mut bindings::super_block,
        bdev: *mut bindings::block_device,
    ) -> bool;
    pub(super) fn dbd_sb_is_at(
        sb: *mut bindings::super_block,
        bdev: *mut bindings::block_device,
    ) -> bool;
    pub(super) fn dbd_sb_is_simple(sb: *mut bindings::super_block) -> bool;
    pub(super) fn dbd_sb_read_only(sb: *mut bindings::super_block) -> bool;
    pub(super) fn dbd_sb_get_active(sb: *mut bindings::super_block) -> bool;
    pub(super) fn dbd_sb_writes_stopped(sb: *mut bindings::super_block) -> bool;
    pub(super) fn dbd_sb_block_size(sb: *mut bindings::super_block) -> c_ulong;
    pub(super) fn dbd_sb_sync(sb: *mut bindings::super_block);
    pub(super) fn dbd_sb_disk(sb: *mut bindings::super_block) -> *const c_void;
    pub(super) fn dbd_sb_disk_syncs(sb: *mut bindings::super_block) -> bool;
    pub(super) fn dbd_sb_is_frozen(sb: *mut bindings::super_block) -> bool;
    pub(super) fn dbd_sb_freeze(sb: *mut bindings::super_block) -> c_int;
    pub(super) fn dbd_sb_thaw(sb: *mut bindings::super_block) -> c_int;
    pub(super) fn dbd_sb_private_mount(sb: *mut bindings::super_block) -> *mut bindings::vfsmount;

    pub(super) fn dbd_mount_begin(fs_type: *const c_char, source: *const c_char) -> *mut FsContext;
    pub(super) fn dbd_mount_option(fc: *mut FsContext, option: *const c_char) -> c_int;
    pub(super) fn dbd_mount_finish(fc: *mut FsContext) -> *mut bindings::vfsmount;
    pub(super) fn dbd_mount_abort(fc: *mut FsContext);

    pub(super) fn dbd_lookup_dir(path: *const c_char, out: *mut bindings::path) -> c_int;
    pub(super) fn dbd_lookup_in(
        dir: *const bindings::path,
        name: *const c_char,
        out: *mut bindings::path,
    ) -> c_int;
    pub(super) fn dbd_lookup_below(
        root: *const bindings::path,
        path: *const c_char,
        out: *mut bindings::path,
    ) -> c_int;
    pub(super) fn dbd_free_space(
        path: *const bindings::path,
        all: *mut u64,
        available: *mut u64,
    ) -> c_int;
    pub(super) fn dbd_open_path(path: *const bindings::path, flags: c_int) -> *mut bindings::file;
    pub(super) fn dbd_open_inode(
        mnt: *mut bindings::vfsmount,
        inode: *mut bindings::inode,
        flags: c_int,
    ) -> *mut bindings::file;
    pub(super) fn dbd_named_dentry(
        mnt: *mut bindings::vfsmount,
        inode: *mut bindings::inode,
        path: *const c_char,
    ) -> *mut bindings::dentry;
    pub(super) fn dbd_unlink(mnt: *mut bindings::vfsmount, dentry: *mut bindings::dentry) -> c_int;

    pub(super) fn dbd_file_path(file: *mut bindings::file) -> *const bindings::path;
    pub(super) fn dbd_file_inode(file: *mut bindings::file) -> *mut bindings::inode;
    pub(super) fn dbd_inode_number(inode: *mut bindings::inode) -> u64;
    pub(super) fn dbd_inode_generation(inode: *mut bindings::inode) -> u32;
    pub(super) fn dbd_adopt_inode(
        sb: *mut bindings::super_block,
        ino: u64,
        generation: u32,
        out: *mut *mut bindings::inode,
    ) -> c_int;
    pub(super) fn dbd_bdev_claimed(bdev: *mut bindings::block_device) -> bool;
    pub(super) fn dbd_bdev_gone(bdev: *mut bindings::block_device) -> bool;
    pub(super) fn dbd_inode_traits(inode: *mut bindings::inode) -> c_uint;
    pub(super) fn dbd_inode_size(inode: *mut bindings::inode) -> u64;
    pub(super) fn dbd_inode_blocks(inode: *mut bindings::inode) -> u64;
    pub(super) fn dbd_inode_protect(inode: *mut bindings::inode) -> c_int;
    pub(super) fn dbd_inode_unprotect(inode: *mut bindings::inode);
    pub(super) fn dbd_set_size_protected(file: *mut bindings::file, size: u64) -> c_int;
    pub(super) fn dbd_fallocate_protected(file: *mut bindings::file, start: u64, len: u64)
        -> c_int;
    pub(super) fn dbd_map_file(
        file: *mut bindings::file,
        dev: *mut bindings::dev_t,
        extent: ExtentFn,
        ctx: *mut c_void,
    ) -> c_int;

    pub(super) fn dbd_getfsmap(dir: *mut bindings::file, user: c_ulong) -> c_long;
    pub(super) fn dbd_user_map(len: usize) -> c_ulong;
    pub(super) fn dbd_user_unmap(addr: c_ulong, len: usize);

    pub(super) fn dbd_watch_init(ops: *const WatchOps) -> c_int;
    pub(super) fn dbd_watch_exit();
    pub(super) fn dbd_watch_add(
        inode: *mut bindings::inode,
        owner: *mut c_void,
        out: *mut *mut DbdWatch,
    ) -> c_int;
    pub(super) fn dbd_watch_remove(watch: *mut DbdWatch);
}
