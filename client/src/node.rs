// SPDX-License-Identifier: GPL-2.0-only
//! Which device of the driver a block special file is.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The minor of a snapshot node. By the device number, not by the path: symlinks and copies of the
/// node are fine.
///
/// # Errors
///
/// `NotFound`; `InvalidInput`: not a block device, or not one of the driver's.
pub fn minor_of(path: &Path) -> io::Result<u32> {
    let meta = fs::metadata(path)?;
    if !meta.file_type().is_block_device() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a block device",
        ));
    }
    let dev = meta.rdev();
    let link = format!(
        "/sys/dev/block/{}:{}",
        nix::libc::major(dev),
        nix::libc::minor(dev)
    );
    let target = fs::read_link(&link)?;
    target
        .file_name()
        .and_then(|n| n.to_str())
        .and_then(|n| n.strip_prefix("datto"))
        .and_then(|n| n.parse().ok())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a snapshot node of dattobd",
            )
        })
}
