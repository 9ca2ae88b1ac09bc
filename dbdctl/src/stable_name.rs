// SPDX-License-Identifier: GPL-2.0-only
//! A name of a block device that is the same after a reboot: sda may be sdb then.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The device number of a block special file.
pub fn device_number(path: &Path) -> Option<u64> {
    let meta = fs::metadata(path).ok()?;
    meta.file_type().is_block_device().then(|| meta.rdev())
}

/// The first name in a folder that `is_it`; of several the same one each time.
fn in_folder(folder: &Path, is_it: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)
        .ok()?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| is_it(p))
        .collect();
    names.sort();
    names.into_iter().next()
}

/// By the filesystem's UUID, else by a device-mapper name, else by the disk's identity, else as given.
fn among(folders: &[&Path], given: &Path, is_it: &dyn Fn(&Path) -> bool) -> PathBuf {
    folders
        .iter()
        .find_map(|f| in_folder(f, is_it))
        .unwrap_or_else(|| given.to_owned())
}

/// A stable name for `bdev`.
pub fn of(bdev: &Path) -> PathBuf {
    let Some(number) = device_number(bdev) else {
        return bdev.to_owned();
    };
    among(
        &[
            Path::new("/dev/disk/by-uuid"),
            Path::new("/dev/mapper"),
            Path::new("/dev/disk/by-id"),
        ],
        bdev,
        &|p| device_number(p) == Some(number),
    )
}

/// How people call a device: `/dev/sda1` rather than the link that the list names.
pub fn short(name: &Path) -> PathBuf {
    if !name.starts_with("/dev/disk") {
        return name.to_owned();
    }
    let Ok(node) = fs::canonicalize(name) else {
        return name.to_owned();
    };
    // dm-0 may be dm-1 the next time, and means nothing to people.
    let mapped = node
        .file_name()
        .map(|n| Path::new("/sys/class/block").join(n).join("dm/name"))
        .and_then(|p| fs::read_to_string(p).ok())
        .map(|n| Path::new("/dev/mapper").join(n.trim_end()));
    match mapped {
        Some(path) if path.exists() => path,
        _ => node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_uuid_comes_first_and_the_order_is_fixed() {
        let dir = tempfile::tempdir().unwrap();
        let (uuid, id) = (dir.path().join("by-uuid"), dir.path().join("by-id"));
        for f in [&uuid, &id] {
            fs::create_dir(f).unwrap();
        }
        for f in [
            id.join("wwn-2"),
            id.join("ata-1"),
            id.join("other"),
            uuid.join("other"),
        ] {
            fs::write(f, "").unwrap();
        }
        let given = Path::new("/dev/given");
        let is_it = |p: &Path| !p.ends_with("other");
        let folders = [uuid.as_path(), id.as_path()];
        assert_eq!(among(&folders, given, &is_it), id.join("ata-1"));
        fs::write(uuid.join("abc"), "").unwrap();
        assert_eq!(among(&folders, given, &is_it), uuid.join("abc"));
        assert_eq!(among(&folders, given, &|_| false), given);
        assert_eq!(among(&[&dir.path().join("none")], given, &is_it), given);
    }

    #[test]
    fn what_is_no_device_keeps_its_name() {
        assert_eq!(
            of(Path::new("/proc/self/stat")),
            Path::new("/proc/self/stat")
        );
        assert_eq!(of(Path::new("/none")), Path::new("/none"));
        assert_eq!(short(Path::new("/dev/null")), Path::new("/dev/null"));
        assert_eq!(
            short(Path::new("/dev/disk/by-uuid/none")),
            Path::new("/dev/disk/by-uuid/none")
        );
    }
}
