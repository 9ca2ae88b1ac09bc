// SPDX-License-Identifier: GPL-2.0-only
//! Errno numbers and their names.

use nix::errno::Errno;

/// The name of an errno, as `ENOENT`.
pub fn name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("errno-{errno}"),
        known => format!("{known:?}"),
    }
}
