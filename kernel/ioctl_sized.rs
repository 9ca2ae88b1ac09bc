// SPDX-License-Identifier: GPL-2.0-only
//! ioctls of this project (from 32 on): arguments that carry their own size, so that either side
//! may be the older one. The kernel reads `min(size, known)` bytes, takes the missing ones as zero
//! and refuses non-zero bytes that it does not know (E2BIG).

use core::mem::{offset_of, size_of};
use kernel::prelude::*;

use crate::abi::ioctl::{self as abi, Plain};
use crate::devices::Devices;
use crate::sys::uaccess;

/// Bits of an ioctl number that hold the argument's size.
const SIZE_BITS: u32 = 0x3fff << 16;
/// No argument is longer; what claims to be is a mistake.
const MAX_BYTES: usize = 4096;
/// What the first version of every sized argument holds: size and minor.
const MIN_BYTES: usize = 8;

/// A call's number with the size taken out: what a sized call is known by.
pub(crate) const fn without_size(cmd: u32) -> u32 {
    cmd & !SIZE_BITS
}

pub(crate) const DROP_SNAPSHOT: u32 = without_size(abi::DROP_SNAPSHOT);
pub(crate) const RELEASE: u32 = without_size(abi::RELEASE);
pub(crate) const STATUS: u32 = without_size(abi::STATUS);
pub(crate) const EXTENTS: u32 = without_size(abi::EXTENTS);

/// Reads a sized argument; the number of bytes that both sides know comes with it.
pub(crate) fn read<T: Plain + Default>(arg: u64) -> Result<(T, usize)> {
    let size: u32 = uaccess::read(arg)?;
    let size = usize::try_from(size).map_err(|_| E2BIG)?;
    if size < MIN_BYTES {
        return Err(EINVAL);
    }
    if size > MAX_BYTES {
        return Err(E2BIG);
    }
    let common = size.min(size_of::<T>());
    let mut value = T::default();
    if let Some(bytes) = uaccess::as_bytes_mut(&mut value).get_mut(..common) {
        uaccess::read_bytes(arg, bytes)?;
    }
    let mut at = common;
    while at < size {
        let mut chunk = [0; 64];
        let n = chunk.len().min(size - at);
        if let Some(bytes) = chunk.get_mut(..n) {
            let addr = arg.checked_add(at as u64).ok_or(EFAULT)?;
            uaccess::read_bytes(addr, bytes)?;
            if bytes.iter().any(|b| *b != 0) {
                return Err(E2BIG);
            }
        }
        at += n;
    }
    Ok((value, common))
}

/// Writes back the part of a sized argument that both sides know.
pub(crate) fn write<T: Plain>(arg: u64, value: &T, common: usize) -> Result {
    let bytes = uaccess::as_bytes(value).get(..common).ok_or(EINVAL)?;
    uaccess::write_bytes(arg, bytes)
}

/// Answers [`abi::DROP_SNAPSHOT`].
pub(crate) fn drop_snapshot(devices: &Devices, arg: u64) -> Result {
    let (p, _) = read::<abi::DropSnapshotParams>(arg)?;
    devices.get(p.minor)?.drop_snapshot()
}

/// Answers [`abi::RELEASE`].
pub(crate) fn release(devices: &Devices, arg: u64) -> Result {
    let (p, _) = read::<abi::ReleaseParams>(arg)?;
    devices.let_go(p.minor)
}

/// Answers [`abi::STATUS`]. As [`abi::INFO`] it waits for no operation.
pub(crate) fn status(devices: &Devices, arg: u64) -> Result {
    let (p, common) = read::<abi::Status>(arg)?;
    let mut s = devices.get(p.minor)?.figures()?;
    s.size = u32::try_from(common).map_err(|_| EINVAL)?;
    s.minor = p.minor;
    write(arg, &s, common)
}

const _: () = {
    assert!(offset_of!(abi::DropSnapshotParams, minor) == 4);
    assert!(offset_of!(abi::Status, minor) == 4);
    assert!(offset_of!(abi::ReleaseParams, minor) == 4);
    assert!(offset_of!(abi::ExtentsParams, minor) == 4);
};
