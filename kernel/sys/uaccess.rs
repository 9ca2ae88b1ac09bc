// SPDX-License-Identifier: GPL-2.0-only
//! Plain structs and strings from and to the calling process.

use core::mem::{size_of, MaybeUninit};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::uaccess::{UserPtr, UserSlice};

use crate::abi::ioctl::{Plain, PATH_MAX};

fn user(addr: u64, len: usize) -> Result<UserSlice> {
    let addr = usize::try_from(addr).map_err(|_| EFAULT)?;
    Ok(UserSlice::new(UserPtr::from_addr(addr), len))
}

/// The bytes of a plain value.
pub(crate) fn as_bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` promises that there is no padding, so all `size_of::<T>()` bytes behind the
    // reference are initialised; the slice borrows `value`.
    unsafe { core::slice::from_raw_parts((value as *const T).cast(), size_of::<T>()) }
}

/// The bytes of a plain value, to be overwritten.
pub(crate) fn as_bytes_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: as `as_bytes`; every bit pattern is valid for a `Plain` type, so whatever is written
    // through the slice leaves a valid value.
    unsafe { core::slice::from_raw_parts_mut((value as *mut T).cast(), size_of::<T>()) }
}

/// A value with all bytes zero, on the heap (for structs too large for the stack).
pub(crate) fn zeroed_box<T: Plain>() -> Result<KBox<T>> {
    let mut b = KBox::<T>::new_uninit(GFP_KERNEL)?;
    let p: *mut MaybeUninit<T> = &mut *b;
    // SAFETY: `p` points to `size_of::<T>()` writable bytes; all of them are zero afterwards, which
    // is a valid `Plain` value.
    unsafe {
        p.cast::<u8>().write_bytes(0, size_of::<T>());
        Ok(b.assume_init())
    }
}

/// Reads a plain value at user address `addr`; EFAULT.
pub(crate) fn read<T: Plain + Default>(addr: u64) -> Result<T> {
    let mut value = T::default();
    user(addr, size_of::<T>())?
        .reader()
        .read_slice(as_bytes_mut(&mut value))?;
    Ok(value)
}

/// Writes a plain value to user address `addr`; EFAULT.
pub(crate) fn write<T: Plain>(addr: u64, value: &T) -> Result {
    write_bytes(addr, as_bytes(value))
}

/// Reads `buf.len()` bytes at user address `addr`; EFAULT.
pub(crate) fn read_bytes(addr: u64, buf: &mut [u8]) -> Result {
    user(addr, buf.len())?.reader().read_slice(buf)
}

/// Writes `bytes` to user address `addr`; EFAULT.
pub(crate) fn write_bytes(addr: u64, bytes: &[u8]) -> Result {
    user(addr, bytes.len())?.writer().write_slice(bytes)
}

/// Reads a path: EINVAL for a null address or more than [`PATH_MAX`] bytes with the NUL, EFAULT.
pub(crate) fn read_path(addr: u64) -> Result<CString> {
    if addr == 0 {
        return Err(EINVAL);
    }
    // One byte more than allowed, so that a string that was cut off can be told from one that
    // just fits.
    const ROOM: usize = PATH_MAX + 1;
    let mut buf = KVVec::new();
    buf.resize(ROOM, 0u8, GFP_KERNEL)?;
    let s = user(addr, ROOM)?.reader().strcpy_into_buf(&mut buf)?;
    if s.to_bytes_with_nul().len() > PATH_MAX {
        return Err(EINVAL);
    }
    Ok(CString::try_from(s)?)
}
