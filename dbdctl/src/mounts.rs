// SPDX-License-Identifier: GPL-2.0-only
//! What is mounted where, to make errors specific.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Device number, `major:minor`.
    pub dev: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Filesystem type.
    pub fs: String,
    /// Mounted read-only, here or as a whole.
    pub read_only: bool,
}

/// Octal escapes of mountinfo: `\040` for a space.
fn unescape(text: &str) -> PathBuf {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
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

fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut l = left.split(' ');
    let dev = l.nth(2)?.to_owned();
    let point = unescape(l.nth(1)?);
    let options = l.next()?;
    let mut r = right.split(' ');
    let fs = r.next()?.to_owned();
    let super_options = r.nth(1).unwrap_or_default();
    let read_only = [options, super_options]
        .iter()
        .any(|o| o.split(',').any(|w| w == "ro"));
    Some(Mount {
        dev,
        point,
        fs,
        read_only,
    })
}

/// All mounts of this namespace.
pub fn all() -> Vec<Mount> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(parse)
        .collect()
}

fn number(dev: u64) -> String {
    format!("{}:{}", nix::libc::major(dev), nix::libc::minor(dev))
}

/// Where the filesystem on a block device is mounted.
pub fn of_device(bdev: &Path) -> Option<Mount> {
    let dev = number(fs::metadata(bdev).ok()?.rdev());
    all().into_iter().find(|m| m.dev == dev)
}

/// The mount that a path lies in, judged by its nearest existing ancestor.
pub fn of_path(path: &Path) -> Option<Mount> {
    let existing = path.ancestors().find_map(|p| fs::metadata(p).ok())?;
    let dev = number(existing.dev());
    all().into_iter().find(|m| m.dev == dev)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line() {
        let m = parse(
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
        )
        .unwrap();
        assert_eq!(m.dev, "98:0");
        assert_eq!(m.point, PathBuf::from("/mnt 2"));
        assert_eq!(m.fs, "ext3");
        assert!(!m.read_only);
        assert!(
            parse("36 35 98:0 / / ro - xfs /dev/x rw")
                .unwrap()
                .read_only
        );
        assert!(parse("garbage").is_none());
    }
}
