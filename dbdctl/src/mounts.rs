// SPDX-License-Identifier: GPL-2.0-only
//! What is mounted where, to make errors specific.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number, `major:minor`.
    pub dev: String,
    /// The part of the filesystem that is mounted: `/`, or less of a bind mount.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Filesystem type.
    pub fs: String,
    /// Mounted read-only, here or as a whole.
    pub read_only: bool,
}

/// Octal escapes of mountinfo: `\040` for a space.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((b, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .filter(|_| *b == b'\\')
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(c) => {
                out.push(c);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*b);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

fn word(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

/// In bytes: a mount point need not be UTF-8.
fn parse(line: &[u8]) -> Option<Mount> {
    let dash = line.windows(3).position(|w| w == b" - ")?;
    let (left, right) = (line.get(..dash)?, line.get(dash + 3..)?);
    let mut l = left.split(|b| *b == b' ');
    let dev = word(l.nth(2)?);
    let (root, point) = (unescape(l.next()?), unescape(l.next()?));
    let options = word(l.next()?);
    let mut r = right.split(|b| *b == b' ');
    let fs = word(r.next()?);
    let super_options = word(r.nth(1).unwrap_or_default());
    let read_only = [options, super_options]
        .iter()
        .any(|o| o.split(',').any(|w| w == "ro"));
    Some(Mount {
        dev,
        root,
        point,
        fs,
        read_only,
    })
}

/// All mounts of this namespace.
fn all() -> Vec<Mount> {
    fs::read("/proc/self/mountinfo")
        .unwrap_or_default()
        .split(|b| *b == b'\n')
        .filter_map(parse)
        .collect()
}

/// A device number as mountinfo and sysfs write it.
pub fn number(dev: u64) -> String {
    format!("{}:{}", nix::libc::major(dev), nix::libc::minor(dev))
}

/// Of the mounts of one device, the one to name: where its whole filesystem can be written to.
fn best(mounts: impl Iterator<Item = Mount>, dev: &str) -> Option<Mount> {
    mounts
        .filter(|m| m.dev == dev)
        .min_by_key(|m| (m.read_only, m.root != Path::new("/")))
}

/// Where the filesystem on a block device is mounted.
pub fn of_device(bdev: &Path) -> Option<Mount> {
    let meta = fs::metadata(bdev).ok()?;
    if !meta.file_type().is_block_device() {
        return None;
    }
    best(all().into_iter(), &number(meta.rdev()))
}

/// The mount that a path lies in, judged by its nearest existing ancestor.
pub fn of_path(path: &Path) -> Option<Mount> {
    let existing = path.ancestors().find_map(|p| fs::metadata(p).ok())?;
    best(all().into_iter(), &number(existing.dev()))
}

/// Of the mounts that a path lies below, the one that it is really in: the deepest, and of those the
/// last, which hides the others.
fn containing(mounts: impl Iterator<Item = Mount>, path: &Path) -> Option<Mount> {
    mounts
        .filter(|m| path.starts_with(&m.point))
        .max_by_key(|m| m.point.components().count())
}

/// A path (absolute, without links) from the root of its filesystem on.
pub fn in_filesystem(path: &Path) -> Option<PathBuf> {
    below_root(containing(all().into_iter(), path)?, path)
}

fn below_root(mount: Mount, path: &Path) -> Option<PathBuf> {
    Some(mount.root.join(path.strip_prefix(&mount.point).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_from_the_root_of_its_filesystem_on() {
        let lines: [&[u8]; 4] = [
            b"1 0 8:1 / / rw - ext4 /dev/sda1 rw",
            b"2 0 8:2 / /data rw - ext4 /dev/sda2 rw",
            b"3 0 8:3 / /data rw - ext4 /dev/sda3 rw",
            b"4 0 8:3 /srv/x /data/bind rw - ext4 /dev/sda3 rw",
        ];
        let of = |path: &str| {
            let path = Path::new(path);
            below_root(
                containing(lines.iter().filter_map(|l| parse(l)), path)?,
                path,
            )
        };
        assert_eq!(of("/.datto").unwrap(), Path::new("/.datto"));
        assert_eq!(of("/database/c").unwrap(), Path::new("/database/c"));
        assert_eq!(of("/data/c").unwrap(), Path::new("/c"));
        assert_eq!(of("/data/bind/c").unwrap(), Path::new("/srv/x/c"));
    }

    #[test]
    fn reads_a_line() {
        let m = parse(
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
        )
        .unwrap();
        assert_eq!(m.dev, "98:0");
        assert_eq!(m.root, PathBuf::from("/mnt1"));
        assert_eq!(m.point, PathBuf::from("/mnt 2"));
        assert_eq!(m.fs, "ext3");
        assert!(!m.read_only);
        assert!(
            parse(b"36 35 98:0 / / ro - xfs /dev/x rw")
                .unwrap()
                .read_only
        );
        assert!(parse(b"garbage").is_none());
        assert!(parse(b"36 35 98:0 /").is_none());
        let odd = parse(b"36 35 98:0 / /\xff rw - ext4 /dev/x rw").unwrap();
        assert_eq!(odd.point.as_os_str().len(), 2);
    }

    #[test]
    fn names_the_mount_where_all_of_it_can_be_written() {
        let lines: [&[u8]; 4] = [
            b"1 0 8:1 / /frozen ro - ext4 /dev/sda1 rw",
            b"2 0 8:1 /srv /bind rw - ext4 /dev/sda1 rw",
            b"3 0 8:1 / /data rw - ext4 /dev/sda1 rw",
            b"4 0 8:2 / /other rw - ext4 /dev/sda2 rw",
        ];
        let of = |n: usize, dev| best(lines[..n].iter().filter_map(|l| parse(l)), dev);
        assert_eq!(of(4, "8:1").unwrap().point, Path::new("/data"));
        assert_eq!(of(2, "8:1").unwrap().point, Path::new("/bind"));
        assert!(of(1, "8:1").unwrap().read_only);
        assert!(of(4, "8:3").is_none());
    }
}
