// SPDX-License-Identifier: GPL-2.0-only
//! Where a file lies on its device, by the contract that swap files use.

use super::{ffi_fs as ffi, vfs::OpenFile};
use crate::logic::extents::{merge_push, FileExtent};
use kernel::{bindings, error::to_result, ffi::c_int, ffi::c_void, prelude::*};

const _: () = assert!(
    kernel::page::PAGE_SIZE as u64 == crate::abi::cow::BLOCK_SIZE,
    "swap extents are in pages, ours in blocks"
);

/// # Safety
///
/// `ctx` points to a `KVVec<FileExtent>` that nobody else uses.
unsafe extern "C" fn add(ctx: *mut c_void, page: u64, block: u64, pages: u64) -> c_int {
    // SAFETY: By the contract.
    let list = unsafe { &mut *ctx.cast::<KVVec<FileExtent>>() };
    let next = FileExtent {
        file_block: page,
        origin_block: block,
        len: pages,
    };
    let Some(next) = merge_push(list.last_mut(), next) else {
        return 0;
    };
    match list.push(next, GFP_KERNEL) {
        Ok(()) => 0,
        Err(_) => ENOMEM.to_errno(),
    }
}

/// The extents of a protected file, in the order of the file, and the device that they are on: those
/// blocks of the device that lie within one piece of the file, *counted* ([`crate::logic::extents`]).
/// The last part of the file is left out if it is less than a block.
///
/// Syncs the file. Any task. EOPNOTSUPP: the filesystem cannot tell, or only for a while; EINVAL: the
/// file has holes, blocks shared with other files, or not one whole block.
pub(crate) fn load(file: &OpenFile) -> Result<(KVVec<FileExtent>, bindings::dev_t)> {
    let mut list: KVVec<FileExtent> = KVVec::new();
    let mut dev = 0;
    // SAFETY: The file is open; `add` gets the list, which nothing else uses during the call.
    to_result(unsafe { ffi::dbd_map_file(file.as_ptr(), &mut dev, add, (&raw mut list).cast()) })?;
    Ok((list, dev))
}
