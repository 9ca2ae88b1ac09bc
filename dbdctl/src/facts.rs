// SPDX-License-Identifier: GPL-2.0-only
//! What an explanation is built on: the driver's word and the system's. The tests make theirs up.

use crate::mounts::{self, Mount};
use dattobd_client::control::Control;
use ioctl_abi::ioctl::{Info, Status};
use nix::errno::Errno;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Folder,
    /// A block device, with its device number.
    Block(u64),
    /// Anything else.
    Other,
}

/// Where facts come from.
pub trait Facts {
    /// The driver's INFO.
    fn info(&self, minor: u32) -> Result<Info, Errno>;
    /// The driver's STATUS, where it answers.
    fn status(&self, minor: u32) -> Option<Status>;
    /// The lowest free minor.
    fn free_minor(&self) -> Option<i32>;
    /// The module's `max_snap_devices`.
    fn max_devices(&self) -> Option<u32>;
    /// What lies at a path; `None`: nothing.
    fn kind(&self, path: &Path) -> Option<Kind>;
    /// Size of a block device in bytes.
    fn device_bytes(&self, bdev: &Path) -> Option<u64>;
    /// Where the filesystem on a block device is mounted.
    fn mount_of_device(&self, bdev: &Path) -> Option<Mount>;
    /// The mount that a path lies in.
    fn mount_of_path(&self, path: &Path) -> Option<Mount>;
}

impl Facts for Control {
    fn info(&self, minor: u32) -> Result<Info, Errno> {
        Control::info(self, minor)
    }

    fn status(&self, minor: u32) -> Option<Status> {
        Control::status(self, minor).ok()
    }

    fn free_minor(&self) -> Option<i32> {
        Control::free_minor(self).ok()
    }

    fn max_devices(&self) -> Option<u32> {
        fs::read_to_string("/sys/module/dattobd/parameters/max_snap_devices")
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        let meta = fs::metadata(path).ok()?;
        Some(if meta.is_file() {
            Kind::File
        } else if meta.is_dir() {
            Kind::Folder
        } else if meta.file_type().is_block_device() {
            Kind::Block(meta.rdev())
        } else {
            Kind::Other
        })
    }

    fn device_bytes(&self, bdev: &Path) -> Option<u64> {
        let Some(Kind::Block(dev)) = self.kind(bdev) else {
            return None;
        };
        let size =
            fs::read_to_string(format!("/sys/dev/block/{}/size", mounts::number(dev))).ok()?;
        // Sysfs counts in 512 bytes, whatever the device does.
        size.trim().parse::<u64>().ok()?.checked_mul(512)
    }

    fn mount_of_device(&self, bdev: &Path) -> Option<Mount> {
        mounts::of_device(bdev)
    }

    fn mount_of_path(&self, path: &Path) -> Option<Mount> {
        mounts::of_path(path)
    }
}
