// SPDX-License-Identifier: GPL-2.0-only
use cow_logic::errno::*;

#[test]
fn numbers_are_those_of_linux() {
    for (ours, linux) in [
        (EPERM, libc::EPERM),
        (ENOENT, libc::ENOENT),
        (EINTR, libc::EINTR),
        (EIO, libc::EIO),
        (E2BIG, libc::E2BIG),
        (ENOMEM, libc::ENOMEM),
        (EFAULT, libc::EFAULT),
        (ENOTBLK, libc::ENOTBLK),
        (EBUSY, libc::EBUSY),
        (EEXIST, libc::EEXIST),
        (ENODEV, libc::ENODEV),
        (EISDIR, libc::EISDIR),
        (EINVAL, libc::EINVAL),
        (ETXTBSY, libc::ETXTBSY),
        (EFBIG, libc::EFBIG),
        (ENOSPC, libc::ENOSPC),
        (EROFS, libc::EROFS),
        (EOPNOTSUPP, libc::EOPNOTSUPP),
        (ESTALE, libc::ESTALE),
    ] {
        assert_eq!(ours, Errno(linux));
        assert_eq!(ours.negative(), -linux);
    }
}
