// SPDX-License-Identifier: GPL-2.0-only
//! From an errno to a sentence that says what to do.
//!
//! The driver checks in the order of COMPAT.md section 2, so the first of our explanations that fits is
//! the right one as long as they are tried in the same order: minor, state of the device, paths.

use crate::facts::{Facts, Kind};
use crate::mounts::Mount;
use dattobd_client::control::text;
use ioctl_abi::cow::Geometry;
use ioctl_abi::ioctl::{
    Info, LIMIT_MAX_DEVICES, PATH_MAX, SNAPSHOT_PREFIX, STATE_ACTIVE, STATE_SNAPSHOT,
    STATE_UNVERIFIED, STATUS_CHAIN_BROKEN,
};
use nix::errno::Errno;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// setup-snapshot.
    Setup {
        /// The block device.
        bdev: &'a Path,
        /// The COW file.
        cow: &'a Path,
        /// Its size in MiB, when given.
        size: Option<u64>,
    },
    /// A reload command.
    Reload {
        /// The block device.
        bdev: &'a Path,
        /// The COW file.
        cow: &'a Path,
    },
    /// transition-to-snapshot.
    Snap {
        /// The COW file.
        cow: &'a Path,
        /// Its size in MiB, when given.
        size: Option<u64>,
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

/// A sentence about `errno`, with the next step.
pub fn call(facts: &dyn Facts, asked: Asked<'_>, minor: u32, errno: Errno) -> String {
    if errno == Errno::EPERM {
        return "only root may do this (CAP_SYS_ADMIN): use sudo".to_owned();
    }
    let specific = match asked {
        Asked::Free => (errno == Errno::ENOENT).then(|| {
            "no minor is free: destroy a device, or load the module with a larger max_snap_devices"
                .to_owned()
        }),
        Asked::Setup { bdev, cow, size } => new_minor(facts, minor, errno)
            .or_else(|| too_long(&[bdev, cow], errno))
            .or_else(|| setup(facts, bdev, cow, size, errno)),
        Asked::Reload { bdev, cow } => new_minor(facts, minor, errno)
            .or_else(|| too_long(&[bdev, cow], errno))
            .or_else(|| reload(facts, bdev, errno)),
        Asked::Snap { cow, size } => device(facts, asked, minor, errno)
            .or_else(|| too_long(&[cow], errno))
            .or_else(|| next_snapshot(facts, minor, cow, size, errno)),
        _ => device(facts, asked, minor, errno),
    };
    specific.or_else(|| anywhere(errno)).unwrap_or_else(|| {
        format!(
            "{} ({errno:?}); the kernel log may say more (dmesg | tail)",
            errno.desc()
        )
    })
}

/// Why a device has failed, as people say it: `the COW file is full`.
pub fn reason(info: &Info) -> &'static str {
    let errno = Errno::from_raw(info.error.saturating_neg());
    // Nothing was picked up: a series has a sequence number from its beginning on.
    if info.state & STATE_UNVERIFIED != 0 && info.seqid == 0 {
        match errno {
            Errno::ESTALE => {
                return "its filesystem was mounted or repaired elsewhere since, or another COW file has taken \
                        over; the kernel log says which"
            }
            Errno::EBUSY => {
                return "somebody was mounting or checking its filesystem; if it is not mounted yet, dbdctl destroy and \
                        the same reload again may do"
            }
            Errno::ENOENT => return "there is no such COW file",
            Errno::EINVAL => {
                return "that is no COW file of this device, or the device has another size; the kernel log says \
                        which"
            }
            Errno::EUCLEAN => {
                return "what the COW file has recorded is damaged, or had ended; the kernel log says which"
            }
            _ => {}
        }
    }
    match errno {
        Errno::EFBIG => "the COW file is full",
        Errno::ENODEV => "its filesystem was unmounted, or the disk is gone",
        Errno::EMEDIUMTYPE => {
            "its medium was exchanged, or written to from elsewhere, while it was not mounted"
        }
        Errno::ESTALE => "somebody else wrote to the COW file's blocks",
        Errno::EOPNOTSUPP => "an operation that leaves no old data to keep, such as a secure erase",
        other => other.desc(),
    }
}

fn out_of_range(facts: &dyn Facts, minor: u32) -> String {
    let range = facts.max_devices().map_or_else(
        || "one below the module's max_snap_devices".to_owned(),
        |n| format!("0 to {}", n.saturating_sub(1)),
    );
    format!("minor {minor} is out of range: use {range}")
}

/// A minor that is to be taken.
fn new_minor(facts: &dyn Facts, minor: u32, errno: Errno) -> Option<String> {
    match errno {
        Errno::EBUSY if facts.info(minor).is_ok() => Some(match facts.free_minor() {
            Some(n) => format!("minor {minor} is in use: {n} is free"),
            None => format!("minor {minor} is in use, and so are all others: see `dbdctl info`"),
        }),
        Errno::EINVAL if facts.info(minor).is_err_and(|e| e == Errno::EINVAL) => {
            Some(out_of_range(facts, minor))
        }
        _ => None,
    }
}

fn too_long(paths: &[&Path], errno: Errno) -> Option<String> {
    if errno != Errno::EINVAL {
        return None;
    }
    // The terminating NUL counts.
    paths
        .iter()
        .any(|p| p.as_os_str().as_bytes().len() >= PATH_MAX)
        .then(|| {
            format!(
                "a path is longer than {} bytes: use a shorter one",
                PATH_MAX - 1
            )
        })
}

/// The device that tracks `bdev` already, under whatever name.
fn tracked_as(facts: &dyn Facts, bdev: &Path) -> Option<u32> {
    let wanted = facts.kind(bdev)?;
    (0..facts.max_devices().unwrap_or(LIMIT_MAX_DEVICES)).find(|n| {
        facts.info(*n).is_ok_and(|i| {
            let theirs = text(&i.bdev);
            Path::new(&theirs) == bdev || facts.kind(Path::new(&theirs)) == Some(wanted)
        })
    })
}

fn already_tracked(facts: &dyn Facts, bdev: &Path) -> String {
    let dev = bdev.display();
    match tracked_as(facts, bdev) {
        Some(n) => format!(
            "{dev} is tracked already, as device {n}: use transition-to-snapshot, or `dbdctl destroy {n}` \
             first"
        ),
        None => format!(
            "{dev} is in use: a disk or partition that overlaps it is tracked (see `dbdctl info`), or its \
             filesystem is held frozen (see `fsfreeze`), or the machine prepares to hibernate"
        ),
    }
}

/// What is wrong with a block device that is to be tracked.
fn block_device(facts: &dyn Facts, bdev: &Path, errno: Errno) -> Option<String> {
    let dev = bdev.display();
    match errno {
        Errno::ENOENT if facts.kind(bdev).is_none() => Some(format!(
            "'{dev}' does not exist: see `lsblk` for the block devices"
        )),
        Errno::ENOTBLK => Some(format!(
            "{dev} is not a block device: see `lsblk` for those there are"
        )),
        Errno::EBUSY => Some(already_tracked(facts, bdev)),
        _ => None,
    }
}

fn setup(
    facts: &dyn Facts,
    bdev: &Path,
    cow: &Path,
    size: Option<u64>,
    errno: Errno,
) -> Option<String> {
    if let Some(why) = block_device(facts, bdev, errno) {
        return Some(why);
    }
    let dev = bdev.display();
    let mount = facts.mount_of_device(bdev);
    match errno {
        Errno::EINVAL => {
            let Some(mount) = &mount else {
                return Some(format!("{dev} is not mounted: mount it first"));
            };
            if mount.read_only {
                return Some(format!(
                    "{dev} is mounted read-only: `mount -o remount,rw {}` first",
                    mount.point.display()
                ));
            }
        }
        Errno::ETIMEDOUT => return Some(raw_writers(&dev.to_string())),
        Errno::EOPNOTSUPP => {
            return Some(format!(
                "{dev} cannot be tracked ({}), or not with a COW file at {}; the kernel log says why (dmesg | tail)",
                mount.map_or("unknown filesystem".to_owned(), |m| m.fs),
                cow.display()
            ))
        }
        _ => {}
    }
    cow_path(facts, cow, size, bdev, mount.as_ref(), errno)
}

fn reload(facts: &dyn Facts, bdev: &Path, errno: Errno) -> Option<String> {
    let dev = bdev.display();
    block_device(facts, bdev, errno).or_else(|| match errno {
        Errno::EINVAL => facts.mount_of_device(bdev).map(|m| {
            format!(
                "{dev} is mounted already, on {}: a reload must come before the mount, or changes would \
                 be missed. Take a new first snapshot with setup-snapshot, and a full copy",
                m.point.display()
            )
        }),
        _ => None,
    })
}

/// transition-to-snapshot, when the device itself is in order.
fn next_snapshot(
    facts: &dyn Facts,
    minor: u32,
    cow: &Path,
    size: Option<u64>,
    errno: Errno,
) -> Option<String> {
    let bdev = PathBuf::from(text(&facts.info(minor).ok()?.bdev));
    let (was, is) = (facts.status(minor), facts.device_bytes(&bdev));
    if let (Errno::EINVAL, Some(was), Some(is)) = (errno, was, is) {
        if was.origin_bytes != 0 && was.origin_bytes != is {
            return Some(format!(
                "{} has changed its size, and what lies behind the old end is not tracked: `dbdctl destroy \
                 {minor}`, then setup-snapshot and a full copy",
                bdev.display()
            ));
        }
    }
    let mount = facts.mount_of_device(&bdev);
    cow_path(facts, cow, size, &bdev, mount.as_ref(), errno)
}

/// What may be wrong with the path of a COW file for `bdev`, which is mounted at `mount`.
fn cow_path(
    facts: &dyn Facts,
    cow: &Path,
    size: Option<u64>,
    bdev: &Path,
    mount: Option<&Mount>,
    errno: Errno,
) -> Option<String> {
    let path = cow.display();
    let folder = cow.parent().unwrap_or(cow).display();
    Some(match errno {
        Errno::EINVAL => return Some(cow_not_usable(facts, cow, size, bdev, mount)),
        Errno::EISDIR => format!("{path} is a directory: name a file in it"),
        Errno::ENOENT => format!("the folder {folder} does not exist: create it, or choose another one"),
        Errno::ENOTDIR => format!("{folder} is not a folder: choose another path"),
        Errno::ENAMETOOLONG | Errno::ELOOP => format!("{path} cannot be resolved: choose another path"),
        Errno::EEXIST => format!(
            "{path} exists and is not a COW file that nobody uses: it was left alone. Choose another name, \
             or remove it"
        ),
        Errno::ENOSPC => format!("no space for {path}: make it smaller with -f, or free some space"),
        Errno::EDQUOT => format!("the quota does not allow {path}: make it smaller with -f"),
        Errno::EFBIG => format!(
            "{path} would be too large for the filesystem, or for this process (ulimit -f): make it \
             smaller with -f"
        ),
        Errno::EROFS => format!("{folder} is on a read-only filesystem: remount it writable first"),
        Errno::EACCES => format!("{path} may not be created here: choose another folder"),
        Errno::ENOKEY => format!("{folder} is encrypted and locked: choose another folder"),
        Errno::EOPNOTSUPP => format!(
            "no COW file can be kept at {path}; the kernel log says why (dmesg | tail). Choose another folder"
        ),
        _ => return None,
    })
}

/// EINVAL, and the device is in order.
fn cow_not_usable(
    facts: &dyn Facts,
    cow: &Path,
    size: Option<u64>,
    bdev: &Path,
    mount: Option<&Mount>,
) -> String {
    let (path, dev) = (cow.display(), bdev.display());
    if cow.is_relative() {
        return format!("'{path}' is a relative path: name the COW file from the root on");
    }
    if facts.kind(cow).is_some_and(|k| k != Kind::File) {
        return format!("{path} is not a regular file: choose another name");
    }
    if let (Some(mount), Some(at)) = (mount, facts.mount_of_path(cow)) {
        if at.dev != mount.dev {
            return format!(
                "{path} is not on {dev}: choose a path below {}",
                mount.point.display()
            );
        }
    }
    let least = facts
        .device_bytes(bdev)
        .map(|origin_bytes| Geometry { origin_bytes }.min_file_bytes().div_ceil(1 << 20));
    match (size, least) {
        (Some(size), Some(least)) if size < least => format!(
            "{size} MiB are too little for the COW file of {dev}: it takes {least} MiB for header, index, log and \
             one block alone. Give it more with -f"
        ),
        _ => format!(
            "{path} cannot be used: it must lie on {dev}, and be large enough for header, index, log and one block \
             (-f); the kernel log may say more (dmesg | tail)"
        ),
    }
}

/// Errors of calls on an existing device.
fn device(facts: &dyn Facts, asked: Asked<'_>, minor: u32, errno: Errno) -> Option<String> {
    let info = match facts.info(minor) {
        Ok(info) => info,
        Err(Errno::EINVAL) if errno == Errno::EINVAL => return Some(out_of_range(facts, minor)),
        Err(Errno::ENOENT) if errno == Errno::ENOENT => {
            return Some(format!("there is no device {minor}: see `dbdctl info`"))
        }
        Err(_) => return None,
    };
    match errno {
        // For the path of the next snapshot's COW file when the device has nothing against it.
        Errno::EINVAL => state(facts, asked, &info).or_else(|| {
            (!matches!(asked, Asked::Snap { .. })).then(|| {
                format!("not possible for device {minor} as it is: see `dbdctl info {minor}` and dmesg")
            })
        }),
        Errno::EBUSY => Some(busy(facts, asked, minor)),
        Errno::ETIMEDOUT => Some(raw_writers(&text(&info.bdev))),
        Errno::ENOSPC if matches!(asked, Asked::Expand) => Some(format!(
            "the filesystem on {} has less than that free: ask for less, or free some space",
            text(&info.bdev)
        )),
        Errno::EFBIG => match asked {
            Asked::Inc => Some(format!(
                "the COW file became full just now, and the snapshot has failed: `dbdctl drop-snapshot \
                 {minor}` goes on in incremental mode, with the change map"
            )),
            Asked::Expand => Some(
                "the COW file would be too large for the filesystem, or for this process (ulimit -f): ask \
                 for less"
                    .to_owned(),
            ),
            _ => None,
        },
        Errno::EINTR => Some("interrupted while waiting: nothing was done, run it again".to_owned()),
        _ => None,
    }
}

/// Why the state of a device does not allow a call.
fn state(facts: &dyn Facts, asked: Asked<'_>, info: &Info) -> Option<String> {
    let minor = info.minor;
    if matches!(asked, Asked::Destroy | Asked::Ask | Asked::Free) {
        return None;
    }
    let broken = facts
        .status(minor)
        .is_some_and(|s| s.flags & STATUS_CHAIN_BROKEN != 0);
    if broken || info.error == -(Errno::ENODEV as i32) {
        return Some(format!(
            "device {minor} no longer knows what changes ({}): `dbdctl destroy {minor}`, then setup-snapshot \
             and a full copy",
            reason(info)
        ));
    }
    if info.error != 0 && !matches!(asked, Asked::Drop) {
        return Some(format!(
            "the snapshot of device {minor} has failed ({}): `dbdctl drop-snapshot {minor}` goes on in \
             incremental mode, with the change map",
            reason(info)
        ));
    }
    if info.state & STATE_UNVERIFIED != 0 || info.state & STATE_ACTIVE == 0 {
        return (!matches!(asked, Asked::Reconfigure)).then(|| {
            format!(
                "device {minor} is dormant: mount {} first",
                text(&info.bdev)
            )
        });
    }
    match (asked, info.state & STATE_SNAPSHOT != 0) {
        (Asked::Inc | Asked::Drop, false) => Some(format!(
            "device {minor} is in incremental mode already: it shows no snapshot"
        )),
        (Asked::Expand | Asked::AutoExpand, false) => Some(format!(
            "device {minor} is in incremental mode: its COW file does not need to grow before the next \
             transition-to-snapshot"
        )),
        (Asked::Snap { .. }, true) => Some(format!(
            "device {minor} shows a snapshot already: `dbdctl transition-to-incremental {minor}` first"
        )),
        _ => None,
    }
}

/// A snapshot point that could not be told from what was on its way to the disk.
fn raw_writers(dev: &str) -> String {
    format!(
        "something writes to {dev} past its filesystem (a swap file does) or to another part of its disk, and those \
         writes took too long to end, or another filesystem of the same disk was being written back (sync) for a \
         minute; dmesg says which. Nothing was done: try again when the disk is less busy"
    )
}

fn busy(facts: &dyn Facts, asked: Asked<'_>, minor: u32) -> String {
    let node = format!("{SNAPSHOT_PREFIX}{minor}");
    if matches!(
        asked,
        Asked::Snap { .. } | Asked::Expand | Asked::AutoExpand
    ) {
        return format!(
            "the filesystem of device {minor} is held frozen by somebody else (see `fsfreeze`): try again when \
             it is not"
        );
    }
    match facts.mount_of_device(Path::new(&node)) {
        Some(m) => format!("{node} is mounted on {}: `umount` it first", m.point.display()),
        None => format!(
            "{node} is in use: see who has it open (fuser -v {node}), or what lies on it (lsblk {node})"
        ),
    }
}

/// What means the same for every call.
fn anywhere(errno: Errno) -> Option<String> {
    Some(
        match errno {
            Errno::ENOMEM => "the kernel is short of memory: free some, then run it again",
            Errno::EIO => "an I/O error on the device: see the kernel log (dmesg | tail)",
            Errno::EINTR => "interrupted: nothing was done, run it again",
            Errno::ENODEV | Errno::ESTALE => {
                "the filesystem was unmounted meanwhile, or the disk is gone: see `dbdctl info`"
            }
            Errno::EUCLEAN => {
                "the COW file is not where it was: see the kernel log (dmesg | tail) and `dbdctl info`"
            }
            Errno::EOVERFLOW | Errno::ERANGE => "a number is too large: use a smaller one",
            Errno::ENOSPC | Errno::EDQUOT => "no space left on the device's filesystem: free some",
            Errno::EFBIG => "the COW file is full, or would be too large: see `dbdctl info`",
            Errno::EROFS => "the filesystem is mounted read-only: remount it writable first",
            Errno::EOPNOTSUPP => {
                "not supported for this device; the kernel log says why (dmesg | tail)"
            }
            Errno::EFAULT | Errno::E2BIG | Errno::ENOTTY => {
                "the loaded module is of another version than dbdctl: install both from one release, then load the \
                 new module by `dbdctl hand-over` or a reboot"
            }
            _ => return None,
        }
        .to_owned(),
    )
}

#[cfg(test)]
mod tests;
