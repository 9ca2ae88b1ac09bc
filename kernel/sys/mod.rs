// SPDX-License-Identifier: GPL-2.0-only
//! Thin safe wrappers over the C interfaces that the `kernel` crate does not wrap yet. Nearly all
//! `unsafe` of the module lives here; what uses these wrappers contains none.

pub(crate) mod bdev;
pub(crate) mod bio;
pub(crate) mod bio_pool;
pub(crate) mod block_device;
#[cfg(dattobd_test_faults)]
mod defects;
pub(crate) mod delayed;
pub(crate) mod disk;
pub(crate) mod errno;
pub(crate) mod ffi;
pub(crate) mod ffi_fs;
pub(crate) mod fsnotify;
pub(crate) mod gate;
pub(crate) mod getfsmap;
pub(crate) mod kobject;
pub(crate) mod miscdev;
pub(crate) mod module;
pub(crate) mod page;
pub(crate) mod plug;
pub(crate) mod procfs;
pub(crate) mod queues;
pub(crate) mod raw_io;
pub(crate) mod rcu_cell;
pub(crate) mod shutdown;
pub(crate) mod superblock;
pub(crate) mod swap_extents;
pub(crate) mod task;
pub(crate) mod tracepoint;
pub(crate) mod uaccess;
pub(crate) mod vfs;
