// SPDX-License-Identifier: GPL-2.0-only
//! The INFO call. It waits for no operation: it reads the device's status fields only.

use kernel::prelude::*;

use crate::abi::cow;
use crate::abi::ioctl::Info;
use crate::devices::Devices;
use crate::sys::uaccess;

/// Copies a path with its NUL. Paths are at most `PATH_MAX` long where they come in; a longer one
/// would be cut off, never overrun.
fn put_path(to: &mut [u8], path: &CStr) {
    let room = to.len().saturating_sub(1);
    for (to, from) in to.iter_mut().zip(path.to_bytes().iter().take(room)) {
        *to = *from;
    }
}

/// Answers the call; `arg` is the user address of an [`Info`], which begins with the minor.
pub(crate) fn info(devices: &Devices, arg: u64) -> Result {
    let minor: u32 = uaccess::read(arg)?;
    let status = devices.get(minor)?.status()?;
    // 8 KiB of paths do not belong on the stack.
    let mut out = uaccess::zeroed_box::<Info>()?;
    out.minor = minor;
    out.state = status.state;
    out.error = status.error;
    out.cache_size = status.cache_size;
    out.falloc_size = status.falloc_size;
    out.seqid = status.seqid;
    out.uuid = status.uuid;
    put_path(&mut out.cow, &status.cow_path);
    put_path(&mut out.bdev, &status.bdev_path);
    out.version = cow::VERSION;
    out.nr_changed_blocks = status.nr_changed_blocks;
    uaccess::write(arg, &*out)
}
