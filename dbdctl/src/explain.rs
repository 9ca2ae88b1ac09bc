// SPDX-License-Identifier: GPL-2.0-only
//! From an errno to a sentence that says what to do.

use crate::mounts;
use dattobd_client::control::{text, Control};
use ioctl_abi::ioctl::STATE_SNAPSHOT;
use nix::errno::Errno;
use std::io;
use std::path::Path;

/// What was asked for.
#[derive(Debug)]
pub enum Asked<'a> {
    /// setup-snapshot.
    Setup {
        /// The block device.
        bdev: &'a Path,
        /// The COW file.
        cow: &'a Path,
    },
    /// A reload command.
    Reload {
        /// The block device.
        bdev: &'a Path,
    },
    /// transition-to-snapshot.
    Snap {
        /// The COW file.
        cow: &'a Path,
    },
    /// transition-to-incremental.
    Inc,
    /// destroy.
    Destroy,
    /// reconfigure.
    Reconfigure,
    /// expand-cow-file.
    Expand,
    /// reconfigure-auto-expand.
    AutoExpand,
    /// drop-snapshot.
    Drop,
    /// info, changed.
    Ask,
    /// free-minor.
    Free,
}

/// Why the control node cannot be opened.
pub fn open(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "the dattobd module is not loaded: run `modprobe dattobd`".to_owned()
        }
        io::ErrorKind::PermissionDenied => "only root may do this: use sudo".to_owned(),
        _ => format!("cannot open /dev/datto-ctl: {error}"),
    }
}

fn highest_minor() -> String {
    std::fs::read_to_string("/sys/module/dattobd/parameters/max_snap_devices")
        .ok()
        .and_then(|t| t.trim().parse::<u32>().ok())
        .map_or("the module's max_snap_devices".to_owned(), |n| {
            format!("0 to {}", n.saturating_sub(1))
        })
}

/// A sentence about `errno`, with the next step.
pub fn call(control: &Control, asked: &Asked<'_>, minor: u32, errno: Errno) -> String {
    let specific = match asked {
        Asked::Setup { bdev, cow } => setup(control, bdev, cow, minor, errno),
        Asked::Reload { bdev } => reload(control, bdev, minor, errno),
        Asked::Snap { cow } => cow_path(cow, None, errno),
        _ => None,
    };
    specific
        .or_else(|| device(control, asked, minor, errno))
        .unwrap_or_else(|| {
            format!(
                "{} ({errno:?}); the kernel log may say more (dmesg)",
                errno.desc()
            )
        })
}

fn setup(c: &Control, bdev: &Path, cow: &Path, minor: u32, errno: Errno) -> Option<String> {
    let dev = bdev.display();
    if let Some(why) = minor_in_use(c, minor, errno) {
        return Some(why);
    }
    match errno {
        Errno::EBUSY => Some(match tracked_as(c, bdev) {
            Some(n) => format!(
                "{dev} is tracked already, as device {n}: use transition-to-snapshot, or `dbdctl \
                 destroy {n}` first"
            ),
            None => format!(
                "{dev} is tracked already, or held frozen by somebody else: see `dbdctl info`"
            ),
        }),
        Errno::ENOENT if !bdev.exists() => Some(format!("{dev} does not exist: see `lsblk`")),
        Errno::ENOTBLK => Some(format!("{dev} is not a block device: see `lsblk`")),
        Errno::EINVAL => {
            let Some(mount) = mounts::of_device(bdev) else {
                return Some(format!("{dev} is not mounted: mount it first"));
            };
            if mount.read_only {
                return Some(format!(
                    "{dev} is mounted read-only on {}: remount it writable first",
                    mount.point.display()
                ));
            }
            cow_path(cow, Some((bdev, &mount)), errno)
        }
        Errno::EOPNOTSUPP => Some(format!(
            "{dev} cannot be tracked ({}); the kernel log says why (dmesg | tail)",
            mounts::of_device(bdev).map_or("unknown filesystem".to_owned(), |m| m.fs)
        )),
        _ => cow_path(cow, None, errno),
    }
}

fn reload(c: &Control, bdev: &Path, minor: u32, errno: Errno) -> Option<String> {
    let dev = bdev.display();
    if let Some(why) = minor_in_use(c, minor, errno) {
        return Some(why);
    }
    match errno {
        Errno::EOPNOTSUPP => Some(
            "this version cannot pick up a chain after a reboot: take a new first snapshot with \
             setup-snapshot and a full copy"
                .to_owned(),
        ),
        Errno::ENOENT => Some(format!("{dev} does not exist: see `lsblk`")),
        Errno::ENOTBLK => Some(format!("{dev} is not a block device")),
        Errno::EINVAL if mounts::of_device(bdev).is_some() => Some(format!(
            "{dev} is mounted already: a reload must come before the mount, or changes would be missed"
        )),
        _ => None,
    }
}

fn minor_in_use(c: &Control, minor: u32, errno: Errno) -> Option<String> {
    match errno {
        Errno::EBUSY if c.info(minor).is_ok() => Some(format!(
            "minor {minor} is in use{}",
            c.free_minor()
                .map_or(String::new(), |n| format!(": {n} is free"))
        )),
        Errno::EINVAL if c.info(minor).is_err_and(|e| e == Errno::EINVAL) => Some(format!(
            "minor {minor} is out of range: use {}",
            highest_minor()
        )),
        _ => None,
    }
}

fn tracked_as(c: &Control, bdev: &Path) -> Option<u32> {
    (0..ioctl_abi::ioctl::LIMIT_MAX_DEVICES)
        .find(|n| c.info(*n).is_ok_and(|i| Path::new(&text(&i.bdev)) == bdev))
}

/// What may be wrong with the path of a COW file.
fn cow_path(cow: &Path, on: Option<(&Path, &mounts::Mount)>, errno: Errno) -> Option<String> {
    let path = cow.display();
    match errno {
        Errno::EINVAL if cow.is_relative() => {
            Some(format!("{path} is a relative path: name the COW file from the root on"))
        }
        Errno::EINVAL if cow.exists() && !cow.is_file() => Some(format!("{path} is not a regular file")),
        Errno::EINVAL => Some(match on {
            Some((bdev, mount)) if mounts::of_path(cow).is_some_and(|m| m.dev != mount.dev) => format!(
                "{path} is not on {}: choose a path below {}",
                bdev.display(),
                mount.point.display()
            ),
            _ => format!(
                "{path} cannot be used: it must lie on the tracked device, and be large enough for \
                 header, index and one block (-f); the kernel log says more (dmesg | tail)"
            ),
        }),
        Errno::EISDIR => Some(format!("{path} is a directory: name a file in it")),
        Errno::ENOENT => Some(format!(
            "the folder {} does not exist",
            cow.parent().unwrap_or(cow).display()
        )),
        Errno::EEXIST => Some(format!(
            "{path} exists and is not a COW file that nobody uses: it was left alone. Choose another \
             name, or remove it"
        )),
        Errno::ENOSPC => Some(format!(
            "no space for {path}: give it less with -f, or free some space"
        )),
        Errno::EFBIG => Some(format!("{path} would be too large for the filesystem: give it less with -f")),
        Errno::EROFS => Some(format!("{path} is on a read-only filesystem")),
        Errno::EDQUOT => Some(format!("the quota does not allow {path}")),
        _ => None,
    }
}

/// Errors of calls on an existing device.
fn device(c: &Control, asked: &Asked<'_>, minor: u32, errno: Errno) -> Option<String> {
    let info = c.info(minor).ok();
    let failed = info.as_ref().map_or(0, |i| i.error);
    Some(match errno {
        Errno::EPERM => "only root may do this: use sudo".to_owned(),
        Errno::ENOENT if matches!(asked, Asked::Free) => {
            "no minor is free: destroy a device, or load the module with a larger max_snap_devices"
                .to_owned()
        }
        Errno::ENOENT => format!("there is no device {minor}: see `dbdctl info`"),
        Errno::EBUSY => format!(
            "/dev/datto{minor} is in use: unmount it, or see who has it open (fuser -v /dev/datto{minor})"
        ),
        Errno::EINTR => "interrupted while waiting for the device to be closed: nothing was done".to_owned(),
        Errno::EINVAL if info.is_none() => {
            format!("minor {minor} is out of range: use {}", highest_minor())
        }
        Errno::EINVAL if failed == -(Errno::ENODEV as i32) => format!(
            "device {minor} is no longer tracked, as its filesystem was unmounted: `dbdctl destroy \
             {minor}`, then setup-snapshot and a full copy"
        ),
        Errno::EINVAL if failed != 0 && !matches!(asked, Asked::Drop) => format!(
            "device {minor} has failed (error {failed}): `dbdctl drop-snapshot {minor}` goes on in \
             incremental mode, with the change map"
        ),
        Errno::EINVAL => {
            let snapshot = info.is_some_and(|i| i.state & STATE_SNAPSHOT != 0);
            let mode = if snapshot { "snapshot" } else { "incremental" };
            match asked {
                Asked::Inc | Asked::Drop | Asked::Expand | Asked::AutoExpand if !snapshot => {
                    format!("device {minor} is in incremental mode: it shows no snapshot")
                }
                Asked::Snap { .. } if snapshot => format!(
                    "device {minor} shows a snapshot already: transition-to-incremental first"
                ),
                _ => format!("not possible for device {minor}, which is in {mode} mode; see `dbdctl info {minor}` and dmesg"),
            }
        }
        Errno::ENOSPC => "no space left on the device's filesystem".to_owned(),
        Errno::EFBIG => "the COW file is full, or would be too large".to_owned(),
        Errno::EOPNOTSUPP => "not supported for this device; the kernel log says why (dmesg | tail)".to_owned(),
        Errno::ENOTTY => "the loaded module is too old for this command: load the one of this release".to_owned(),
        _ => return None,
    })
}
