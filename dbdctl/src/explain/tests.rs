// SPDX-License-Identifier: GPL-2.0-only
//! A machine made up: `/dev/sda1` (64 GiB) on `/mnt`, `/dev/sdb1` read-only on `/ro`, `/dev/sdc1` not
//! mounted. Device 0 is what a test makes it, minors from 4 on do not exist.

use super::*;
use ioctl_abi::ioctl::Status;
use std::collections::HashMap;

struct Machine {
    /// State, error, chain broken, by minor.
    devices: HashMap<u32, (u64, Errno, bool)>,
    /// Where `/dev/datto0` is mounted.
    node_mount: Option<Mount>,
    /// The size that device 0 had when it was set up.
    origin_bytes: u64,
}

const GIB: u64 = 1 << 30;
const SNAPSHOT: u64 = STATE_ACTIVE | STATE_SNAPSHOT;
const INCREMENTAL: u64 = STATE_ACTIVE;

fn mount(dev: &str, point: &str, read_only: bool) -> Mount {
    Mount {
        dev: dev.to_owned(),
        root: "/".into(),
        point: point.into(),
        fs: "ext4".to_owned(),
        read_only,
    }
}

impl Facts for Machine {
    fn info(&self, minor: u32) -> Result<Info, Errno> {
        if minor > 3 {
            return Err(Errno::EINVAL);
        }
        let (state, error, _) = self.devices.get(&minor).ok_or(Errno::ENOENT)?;
        let mut info = Info::request(minor);
        info.state = *state;
        info.error = -(*error as i32);
        info.bdev[..9].copy_from_slice(b"/dev/sda1");
        Ok(info)
    }

    fn status(&self, minor: u32) -> Option<Status> {
        let (_, _, broken) = self.devices.get(&minor)?;
        Some(Status {
            flags: if *broken { STATUS_CHAIN_BROKEN } else { 0 },
            origin_bytes: self.origin_bytes,
            ..Status::default()
        })
    }

    fn free_minor(&self) -> Option<i32> {
        (0..4).find(|n| !self.devices.contains_key(&(*n as u32)))
    }

    fn max_devices(&self) -> Option<u32> {
        Some(4)
    }

    fn kind(&self, path: &Path) -> Option<Kind> {
        match path.to_str()? {
            "/dev/sda1" | "/dev/disk/by-label/data" => Some(Kind::Block(1)),
            "/dev/sdb1" => Some(Kind::Block(2)),
            "/dev/sdc1" => Some(Kind::Block(3)),
            "/dev/null" => Some(Kind::Other),
            "/" | "/mnt" | "/mnt/folder" => Some(Kind::Folder),
            "/mnt/file" => Some(Kind::File),
            _ => None,
        }
    }

    fn device_bytes(&self, bdev: &Path) -> Option<u64> {
        (bdev == Path::new("/dev/sda1")).then_some(64 * GIB)
    }

    fn mount_of_device(&self, bdev: &Path) -> Option<Mount> {
        match bdev.to_str()? {
            "/dev/sda1" | "/dev/disk/by-label/data" => Some(mount("8:1", "/mnt", false)),
            "/dev/sdb1" => Some(mount("8:17", "/ro", true)),
            "/dev/datto0" => self.node_mount.clone(),
            _ => None,
        }
    }

    fn mount_of_path(&self, path: &Path) -> Option<Mount> {
        Some(if path.starts_with("/mnt") {
            mount("8:1", "/mnt", false)
        } else {
            mount("8:2", "/", false)
        })
    }
}

/// With device 0 in a state.
fn machine(state: u64, error: Errno, broken: bool) -> Machine {
    Machine {
        devices: HashMap::from([(0, (state, error, broken))]),
        node_mount: None,
        origin_bytes: 64 * GIB,
    }
}

const FINE: Errno = Errno::UnknownErrno;

fn setup_of<'a>(bdev: &'a str, cow: &'a str) -> Asked<'a> {
    Asked::Setup {
        bdev: Path::new(bdev),
        cow: Path::new(cow),
        size: None,
    }
}

fn snap_of(cow: &str) -> Asked<'_> {
    Asked::Snap {
        cow: Path::new(cow),
        size: None,
    }
}

#[track_caller]
fn says(machine: &Machine, asked: Asked<'_>, minor: u32, errno: Errno, words: &str) {
    let said = call(machine, asked, minor, errno);
    assert!(
        said.contains(words),
        "{asked:?} {errno:?}: {said:?} does not say {words:?}"
    );
}

#[test]
fn setup_explains_minor_and_device() {
    let m = machine(SNAPSHOT, FINE, false);
    let good = setup_of("/dev/sda1", "/mnt/.datto");
    says(&m, good, 0, Errno::EBUSY, "minor 0 is in use: 1 is free");
    says(
        &m,
        good,
        9,
        Errno::EINVAL,
        "minor 9 is out of range: use 0 to 3",
    );
    says(&m, good, 1, Errno::EBUSY, "tracked already, as device 0");
    says(&m, good, 1, Errno::EPERM, "use sudo");
    let by_label = setup_of("/dev/disk/by-label/data", "/mnt/.datto");
    says(
        &m,
        by_label,
        1,
        Errno::EBUSY,
        "tracked already, as device 0",
    );
    let other = setup_of("/dev/sdc1", "/mnt/.datto");
    says(&m, other, 1, Errno::EBUSY, "overlaps");
    says(
        &m,
        other,
        1,
        Errno::ETIMEDOUT,
        "/dev/sdc1 past its filesystem",
    );
    says(
        &m,
        other,
        1,
        Errno::EINVAL,
        "/dev/sdc1 is not mounted: mount it first",
    );
    let gone = setup_of("/dev/none", "/mnt/.datto");
    says(
        &m,
        gone,
        1,
        Errno::ENOENT,
        "'/dev/none' does not exist: see `lsblk`",
    );
    let null = setup_of("/dev/null", "/mnt/.datto");
    says(
        &m,
        null,
        1,
        Errno::ENOTBLK,
        "/dev/null is not a block device",
    );
    let read_only = setup_of("/dev/sdb1", "/ro/.datto");
    says(&m, read_only, 1, Errno::EINVAL, "`mount -o remount,rw /ro`");
    says(&m, good, 1, Errno::EOPNOTSUPP, "cannot be tracked (ext4)");
}

#[test]
fn both_snapshot_calls_explain_the_cow_path() {
    let m = machine(INCREMENTAL, FINE, false);
    for first in [true, false] {
        let of = |cow| {
            if first {
                (setup_of("/dev/sda1", cow), 1)
            } else {
                (snap_of(cow), 0)
            }
        };
        let check = |cow, errno, words| {
            let (asked, minor) = of(cow);
            says(&m, asked, minor, errno, words);
        };
        check(
            "/.datto",
            Errno::EINVAL,
            "/.datto is not on /dev/sda1: choose a path below /mnt",
        );
        check("cow", Errno::EINVAL, "'cow' is a relative path");
        check("/mnt/folder", Errno::EINVAL, "not a regular file");
        check("/mnt/folder", Errno::EISDIR, "name a file in it");
        check(
            "/mnt/none/cow",
            Errno::ENOENT,
            "the folder /mnt/none does not exist",
        );
        check("/mnt/file/cow", Errno::ENOTDIR, "/mnt/file is not a folder");
        check("/mnt/file", Errno::EEXIST, "left alone");
        check("/mnt/cow", Errno::ENOSPC, "with -f");
        check("/mnt/cow", Errno::EFBIG, "ulimit -f");
        check("/mnt/cow", Errno::EROFS, "read-only");
        check("/mnt/cow", Errno::EINVAL, "large enough");
        let long = format!("/{}", "x".repeat(PATH_MAX));
        let (asked, minor) = of(&long);
        says(&m, asked, minor, Errno::EINVAL, "longer than 4095 bytes");
    }
}

#[test]
fn a_cow_file_that_is_too_small_is_told_how_large() {
    let m = machine(INCREMENTAL, FINE, false);
    let size = Some(100);
    let (bdev, cow) = (Path::new("/dev/sda1"), Path::new("/mnt/cow"));
    // 64 GiB: 2^24 entries of 8 bytes, and some MiB for header, log and one block.
    says(
        &m,
        Asked::Setup { bdev, cow, size },
        1,
        Errno::EINVAL,
        "it takes 131 MiB",
    );
    says(
        &m,
        Asked::Snap { cow, size },
        0,
        Errno::EINVAL,
        "it takes 131 MiB",
    );
    let size = Some(133);
    says(
        &m,
        Asked::Snap { cow, size },
        0,
        Errno::EINVAL,
        "must lie on /dev/sda1",
    );
}

#[test]
fn the_next_snapshot_looks_at_the_device_before_the_path() {
    let bad = snap_of("/nowhere/cow");
    let m = machine(SNAPSHOT, FINE, false);
    says(
        &m,
        bad,
        0,
        Errno::EINVAL,
        "`dbdctl transition-to-incremental 0` first",
    );
    says(&m, bad, 1, Errno::ENOENT, "there is no device 1");
    says(&m, bad, 7, Errno::EINVAL, "minor 7 is out of range");
    let m = machine(INCREMENTAL, FINE, false);
    says(
        &m,
        bad,
        0,
        Errno::ENOENT,
        "the folder /nowhere does not exist",
    );
    says(&m, bad, 0, Errno::EBUSY, "frozen");
    says(&m, bad, 0, Errno::ETIMEDOUT, "past its filesystem");
    let m = machine(SNAPSHOT, Errno::EFBIG, false);
    says(&m, bad, 0, Errno::EINVAL, "`dbdctl drop-snapshot 0`");
    let grown = Machine {
        origin_bytes: 32 * GIB,
        ..machine(INCREMENTAL, FINE, false)
    };
    says(&grown, bad, 0, Errno::EINVAL, "has changed its size");
}

#[test]
fn the_state_of_a_device_is_explained_for_every_call() {
    let calls = [
        Asked::Inc,
        Asked::Expand,
        Asked::AutoExpand,
        Asked::Reconfigure,
        snap_of("/mnt/cow"),
    ];
    let failed = machine(SNAPSHOT, Errno::EFBIG, false);
    let broken = machine(SNAPSHOT, Errno::EIO, true);
    let unmounted = machine(0, Errno::ENODEV, false);
    for asked in calls {
        says(
            &failed,
            asked,
            0,
            Errno::EINVAL,
            "has failed (the COW file is full): `dbdctl drop-snapshot 0`",
        );
        for m in [&broken, &unmounted] {
            says(
                m,
                asked,
                0,
                Errno::EINVAL,
                "`dbdctl destroy 0`, then setup-snapshot",
            );
        }
    }
    says(&broken, Asked::Drop, 0, Errno::EINVAL, "`dbdctl destroy 0`");
    let inc = machine(INCREMENTAL, FINE, false);
    for asked in [Asked::Inc, Asked::Drop, Asked::Expand, Asked::AutoExpand] {
        says(&inc, asked, 0, Errno::EINVAL, "in incremental mode");
    }
    for state in [STATE_SNAPSHOT, STATE_UNVERIFIED | STATE_SNAPSHOT] {
        let dormant = machine(state, FINE, false);
        says(
            &dormant,
            Asked::Inc,
            0,
            Errno::EINVAL,
            "mount /dev/sda1 first",
        );
    }
    says(&inc, Asked::Ask, 9, Errno::EINVAL, "out of range");
    says(&inc, Asked::Ask, 1, Errno::ENOENT, "no device 1");
    says(&inc, Asked::Free, 0, Errno::ENOENT, "no minor is free");
}

#[test]
fn an_open_node_is_explained_by_its_mount() {
    let m = machine(SNAPSHOT, FINE, false);
    says(&m, Asked::Destroy, 0, Errno::EBUSY, "fuser -v /dev/datto0");
    let mounted = Machine {
        node_mount: Some(mount("252:0", "/look", true)),
        ..m
    };
    for asked in [Asked::Destroy, Asked::Inc, Asked::Drop, Asked::Reconfigure] {
        says(
            &mounted,
            asked,
            0,
            Errno::EBUSY,
            "/dev/datto0 is mounted on /look",
        );
    }
    says(&mounted, Asked::Expand, 0, Errno::EBUSY, "frozen");
}

#[test]
fn a_full_cow_file_is_told_from_one_that_is_too_large() {
    let m = machine(SNAPSHOT, FINE, false);
    says(&m, Asked::Inc, 0, Errno::EFBIG, "`dbdctl drop-snapshot 0`");
    says(&m, Asked::Expand, 0, Errno::EFBIG, "ask for less");
    says(&m, Asked::Expand, 0, Errno::ENOSPC, "ask for less");
}

#[test]
fn reload_is_explained() {
    let m = machine(SNAPSHOT, FINE, false);
    let of = |bdev| Asked::Reload {
        bdev: Path::new(bdev),
        cow: Path::new("/.datto"),
    };
    says(
        &m,
        of("/dev/sda1"),
        1,
        Errno::EINVAL,
        "mounted already, on /mnt",
    );
    says(&m, of("/dev/sda1"), 0, Errno::EBUSY, "minor 0 is in use");
    says(
        &m,
        of("/dev/sda1"),
        1,
        Errno::EBUSY,
        "tracked already, as device 0",
    );
    says(&m, of("/dev/none"), 1, Errno::ENOENT, "does not exist");
    says(&m, of("/dev/sdc1"), 9, Errno::EINVAL, "out of range");
}

/// Whether the driver can answer `errno`; `paths` are those that it only has from the path of a COW file.
fn possible(asked: Asked<'_>, minor: u32, errno: Errno, paths: &[Errno]) -> bool {
    let new = matches!(asked, Asked::Setup { .. } | Asked::Reload { .. });
    match (minor, asked) {
        (_, Asked::Free) => errno == Errno::ENOENT || !paths.contains(&errno),
        (9, _) => errno == Errno::EINVAL,
        (0, _) if new => errno == Errno::EBUSY,
        (1, _) if !new => errno == Errno::ENOENT,
        (_, Asked::Setup { .. }) => true,
        (_, Asked::Snap { .. }) => errno != Errno::ENOTBLK,
        // The COW file of a reload is not looked at; an empty path is not this table's business.
        (_, Asked::Reload { bdev, .. }) => match errno {
            Errno::ENOENT => bdev != Path::new("/dev/sda1"),
            Errno::ENOTBLK | Errno::EBUSY | Errno::EINVAL => true,
            _ => !paths.contains(&errno),
        },
        // Every device call can have these from its minor and state, no other of the paths'.
        (_, Asked::Destroy | Asked::Ask) => !paths.contains(&errno),
        _ => errno == Errno::EBUSY || errno == Errno::EINVAL || !paths.contains(&errno),
    }
}

/// Whatever the driver answers, in whatever state: a sentence, and no claim about a state that the device
/// is not in.
#[test]
fn every_errno_of_every_call_has_a_sentence() {
    let errnos = [
        Errno::EPERM,
        Errno::ENOENT,
        Errno::EINTR,
        Errno::EIO,
        Errno::E2BIG,
        Errno::ENOMEM,
        Errno::EACCES,
        Errno::EFAULT,
        Errno::ENOTBLK,
        Errno::EBUSY,
        Errno::EEXIST,
        Errno::ENODEV,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::EINVAL,
        Errno::ENOTTY,
        Errno::EFBIG,
        Errno::ENOSPC,
        Errno::EROFS,
        Errno::ERANGE,
        Errno::ENAMETOOLONG,
        Errno::ELOOP,
        Errno::EOVERFLOW,
        Errno::EOPNOTSUPP,
        Errno::ESTALE,
        Errno::EUCLEAN,
        Errno::EDQUOT,
        Errno::ENOKEY,
    ];
    let calls = [
        setup_of("/dev/sda1", "/mnt/cow"),
        setup_of("", ""),
        snap_of("/mnt/cow"),
        snap_of(""),
        Asked::Reload {
            bdev: Path::new("/dev/sda1"),
            cow: Path::new("/cow"),
        },
        Asked::Inc,
        Asked::Destroy,
        Asked::Reconfigure,
        Asked::Expand,
        Asked::AutoExpand,
        Asked::Drop,
        Asked::Ask,
        Asked::Free,
    ];
    let paths = [
        Errno::ENOENT,
        Errno::EACCES,
        Errno::ENOTBLK,
        Errno::EBUSY,
        Errno::EEXIST,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::EINVAL,
        Errno::ENAMETOOLONG,
        Errno::ELOOP,
        Errno::ENOKEY,
    ];
    for state in 0..8 {
        for error in [FINE, Errno::EFBIG, Errno::ENODEV] {
            for asked in calls {
                for errno in errnos {
                    for minor in [0, 1, 9] {
                        let m = machine(state, error, false);
                        let said = call(&m, asked, minor, errno);
                        let fallback = said.contains(&format!("({errno:?})"));
                        assert!(
                            !fallback || !possible(asked, minor, errno, &paths),
                            "{asked:?} {minor} {errno:?}: {said}"
                        );
                        assert!(said.len() > 20, "{asked:?} {errno:?}: {said}");
                        if said.contains("drop-snapshot") && errno == Errno::EINVAL {
                            assert_eq!(error, Errno::EFBIG, "{asked:?}: {said}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_node_that_cannot_be_opened_is_explained() {
    let error = |kind: io::ErrorKind| open(&kind.into());
    assert!(error(io::ErrorKind::NotFound).contains("modprobe dattobd"));
    assert!(error(io::ErrorKind::PermissionDenied).contains("sudo"));
    assert!(error(io::ErrorKind::Other).contains("/dev/datto-ctl"));
}

/// A write by somebody else ends a running chain; a mount by somebody else is why a reload is refused.
#[test]
fn a_foreign_mount_is_told_from_a_foreign_write() {
    let mut info = Info::request(0);
    info.error = -(Errno::ESTALE as i32);
    (info.state, info.seqid) = (INCREMENTAL, 3);
    let write = reason(&info);
    assert!(write.contains("wrote to the COW file's blocks"), "{write}");
    // Also when it came after the reload, before the mount.
    info.state = STATE_UNVERIFIED;
    assert_eq!(reason(&info), write);
    info.seqid = 0;
    let mount = reason(&info);
    assert!(mount.contains("mounted or repaired elsewhere"), "{mount}");
    for errno in [Errno::ENOENT, Errno::EINVAL, Errno::EUCLEAN] {
        info.error = -(errno as i32);
        assert!(reason(&info).contains("COW file"), "{errno}");
    }
}
