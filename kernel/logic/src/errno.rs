// SPDX-License-Identifier: GPL-2.0-only
//! Linux error numbers, for logic that has no kernel types. The host tests compare them with libc's.

/// An error number, positive as in `errno.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The number as the kernel returns it and as INFO reports it.
    pub const fn negative(self) -> i32 {
        self.0.wrapping_neg()
    }
}

/// Operation not permitted.
pub const EPERM: Errno = Errno(1);
/// No such device or file.
pub const ENOENT: Errno = Errno(2);
/// Interrupted by a signal.
pub const EINTR: Errno = Errno(4);
/// I/O error.
pub const EIO: Errno = Errno(5);
/// Argument too big.
pub const E2BIG: Errno = Errno(7);
/// No memory.
pub const ENOMEM: Errno = Errno(12);
/// Bad address.
pub const EFAULT: Errno = Errno(14);
/// Not a block device.
pub const ENOTBLK: Errno = Errno(15);
/// Busy.
pub const EBUSY: Errno = Errno(16);
/// File exists.
pub const EEXIST: Errno = Errno(17);
/// No such device (any more).
pub const ENODEV: Errno = Errno(19);
/// Is a directory.
pub const EISDIR: Errno = Errno(21);
/// Invalid argument.
pub const EINVAL: Errno = Errno(22);
/// File is in use by the kernel.
pub const ETXTBSY: Errno = Errno(26);
/// File too large; also: the COW file is full.
pub const EFBIG: Errno = Errno(27);
/// No space.
pub const ENOSPC: Errno = Errno(28);
/// Read-only file system.
pub const EROFS: Errno = Errno(30);
/// Operation not supported.
pub const EOPNOTSUPP: Errno = Errno(95);
/// Stale file.
pub const ESTALE: Errno = Errno(116);
