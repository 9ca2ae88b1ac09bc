// SPDX-License-Identifier: GPL-2.0-only
//! FS_IOC_GETFSMAP, which only takes a buffer in user memory: one is mapped into the calling process.

use super::{ffi_fs as ffi, uaccess, vfs::OpenFile};
use kernel::{ffi::c_int, prelude::*};

/// Anonymous memory of the calling process, for a moment.
///
/// # Invariants
///
/// `addr` is the start of a mapping of `len` bytes that this task's process made for us. (The process
/// may take it away itself: then accesses fail with EFAULT.)
pub(crate) struct UserBuffer {
    addr: usize,
    len: usize,
    _task: kernel::types::NotThreadSafe,
}

impl UserBuffer {
    /// EINVAL: not called for a process.
    pub(crate) fn new(len: usize) -> Result<Self> {
        // SAFETY: No preconditions.
        let addr = unsafe { ffi::dbd_user_map(len) };
        // As IS_ERR_VALUE().
        if addr >= usize::MAX.saturating_sub(4094) {
            return Err(Error::from_errno(
                c_int::try_from(addr as isize).unwrap_or(-12),
            ));
        }
        // INVARIANT: Just mapped.
        Ok(Self {
            addr,
            len,
            _task: kernel::types::NotThreadSafe,
        })
    }

    fn at(&self, offset: usize, len: usize) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.addr.saturating_add(offset) as u64),
            _ => Err(EINVAL),
        }
    }

    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) -> Result {
        uaccess::read_bytes(self.at(offset, to.len())?, to)
    }

    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result {
        uaccess::write_bytes(self.at(offset, from.len())?, from)
    }

    /// FS_IOC_GETFSMAP on the filesystem of `dir`, with a `struct fsmap_head` at the start of the buffer
    /// whose count of records the caller has made fit.
    pub(crate) fn getfsmap(&self, dir: &OpenFile) -> Result {
        // SAFETY: The file is open. The filesystem checks all access to the buffer.
        let result = unsafe { ffi::dbd_getfsmap(dir.as_ptr(), self.addr) };
        match c_int::try_from(result) {
            Ok(0) => Ok(()),
            Ok(e) if e < 0 => Err(Error::from_errno(e)),
            _ => Err(EIO),
        }
    }
}

impl Drop for UserBuffer {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the same task (not `Send`).
        unsafe { ffi::dbd_user_unmap(self.addr, self.len) }
    }
}
