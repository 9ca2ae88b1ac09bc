// SPDX-License-Identifier: GPL-2.0-only
//! What the commands do to the reload list.
//!
//! An entry is written *before* the call that needs it. Setup and transition freeze the filesystem,
//! and that empties its journal: so the first list on the root filesystem can be read by an initramfs,
//! which must not replay the journal. What a call made obsolete goes after it.
//! A list that cannot be written costs a full copy after the next reboot and fails no command.

use crate::mounts;
use crate::reload_list::{self, Entry, List, Mode};
use crate::stable_name;
use dattobd_client::tell;
use ioctl_abi::ioctl::{Info, STATE_SNAPSHOT};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Names another list; for tests.
pub const LIST_VARIABLE: &str = "DATTOBD_RELOAD_LIST";

/// The list that the commands keep.
#[derive(Debug)]
pub struct Keeper(Option<PathBuf>);

/// Where the list lies.
pub fn list_path() -> PathBuf {
    env::var_os(LIST_VARIABLE)
        .filter(|v| !v.is_empty())
        .map_or_else(|| reload_list::PATH.into(), PathBuf::from)
}

/// The path in a NUL-terminated buffer.
pub fn path_in(buffer: &[u8]) -> PathBuf {
    let text = buffer.split(|b| *b == 0).next().unwrap_or_default();
    PathBuf::from(OsStr::from_bytes(text))
}

/// A COW file's path from the root of its filesystem on. The file need not be there, its folder must.
pub fn in_its_filesystem(cow: &Path) -> Option<PathBuf> {
    let folder = fs::canonicalize(cow.parent()?).ok()?;
    mounts::in_filesystem(&folder.join(cow.file_name()?))
}

/// Whether two names are one device, by device number where both are there.
fn same_device(a: &Path, b: &Path) -> bool {
    a == b
        || stable_name::device_number(a).is_some_and(|n| stable_name::device_number(b) == Some(n))
}

/// Whether the entry is of the device although that is known to the driver by a name that leads nowhere any more (a
/// logical volume that was renamed): then the entry's own name, which does, is the better one.
fn outlives(entry: &Entry, bdev: &Path, cow: &Path) -> bool {
    (entry.cow == cow || entry.next.as_deref() == Some(cow))
        && stable_name::device_number(bdev).is_none()
        && stable_name::device_number(&entry.device).is_some()
}

/// The entry of a device that is tracked, and that the list may lack or have wrong.
fn entry_of(list: &List, info: &Info) -> Entry {
    let (bdev, cow) = (path_in(&info.bdev), path_in(&info.cow));
    let mut entry = match list.get(info.minor) {
        Some(e) if same_device(&e.device, &bdev) || outlives(e, &bdev, &cow) => e.clone(),
        _ => Entry::new(info.minor, stable_name::of(&bdev), cow.clone()),
    };
    // A transition that went unnoticed (--no-boot-list, a dbdctl that was killed) left this to be done.
    if entry.next.as_ref() == Some(&cow) {
        entry.next = None;
    }
    entry.cow = cow;
    entry
}

impl Keeper {
    /// `off`: no list is kept.
    pub fn new(off: bool) -> Self {
        Self((!off).then(list_path))
    }

    /// Changes the list, or warns.
    fn change(&self, change: impl FnOnce(&mut List)) {
        let Some(path) = &self.0 else { return };
        if let Err(e) = reload_list::update(path, change) {
            tell!(
                "dbdctl: warning: {} could not be brought up to date ({e}): after a reboot a full copy may be \
                 needed",
                path.display()
            );
        }
    }

    /// Before a setup. `cow` is the path in its filesystem. Returns what [`Keeper::setup_failed`] puts
    /// back.
    pub fn setup(
        &self,
        minor: u32,
        bdev: &Path,
        cow: PathBuf,
        cache: Option<u64>,
    ) -> Option<Entry> {
        let mut before = None;
        let mut entry = Entry::new(minor, stable_name::of(bdev), cow);
        entry.cache = cache;
        self.change(|list| {
            before = list.get(minor).cloned();
            list.put(entry);
        });
        before
    }

    /// The setup failed.
    pub fn setup_failed(&self, minor: u32, before: Option<Entry>) {
        self.change(|list| match before {
            Some(entry) => list.put(entry),
            None => list.remove(minor),
        });
    }

    /// Before a transition to a snapshot.
    pub fn next_snapshot(&self, info: &Info, cow: PathBuf) {
        self.change(|list| {
            let mut entry = entry_of(list, info);
            entry.next = Some(cow);
            list.put(entry);
        });
    }

    /// The transition failed.
    pub fn next_failed(&self, minor: u32) {
        self.change(|list| {
            if let Some(mut entry) = list.get(minor).cloned() {
                entry.next = None;
                list.put(entry);
            }
        });
    }

    /// After a call that made or changed a device.
    pub fn is_now(&self, info: &Info) {
        self.change(|list| {
            let mut entry = entry_of(list, info);
            entry.next = None;
            entry.mode = Some(if info.state & STATE_SNAPSHOT != 0 {
                Mode::Snapshot
            } else {
                Mode::Incremental
            });
            let device = entry.device.clone();
            // What is left of the device under another minor can no longer be loaded.
            list.retain(|e| e.minor == info.minor || !same_device(&e.device, &device));
            list.put(entry);
        });
    }

    /// The cache limit was changed.
    pub fn cache(&self, minor: u32, bytes: Option<u64>) {
        self.change(|list| {
            if let Some(mut entry) = list.get(minor).cloned() {
                entry.cache = bytes;
                list.put(entry);
            }
        });
    }

    /// A device is gone. Returns whether the list knew it.
    pub fn forget(&self, minor: u32) -> bool {
        let mut known = false;
        self.change(|list| {
            known = list.get(minor).is_some();
            list.remove(minor);
        });
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(minor: u32, bdev: &str, cow: &str, state: u64) -> Info {
        let mut info = Info::request(minor);
        info.state = state;
        info.bdev[..bdev.len()].copy_from_slice(bdev.as_bytes());
        info.cow[..cow.len()].copy_from_slice(cow.as_bytes());
        info
    }

    /// A keeper with a list of its own, and a folder for COW files.
    fn keeper() -> (tempfile::TempDir, Keeper) {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper(Some(dir.path().join("list")));
        (dir, keeper)
    }

    fn list(keeper: &Keeper) -> List {
        reload_list::read(keeper.0.as_ref().unwrap()).unwrap()
    }

    #[test]
    fn a_setup_leaves_an_entry_and_a_failed_one_none() {
        let (_dir, k) = keeper();
        let before = k.setup(0, Path::new("/dev/none"), "/c ow".into(), Some(7));
        assert_eq!(before, None);
        let e = list(&k).get(0).cloned().unwrap();
        assert_eq!(
            (e.device.as_path(), e.cow.as_path(), e.cache, e.mode),
            (Path::new("/dev/none"), Path::new("/c ow"), Some(7), None)
        );
        // An entry that was there comes back.
        let before = k.setup(0, Path::new("/dev/other"), "/c".into(), None);
        k.setup_failed(0, before);
        assert_eq!(list(&k).get(0), Some(&e));
        k.setup_failed(0, None);
        assert_eq!(list(&k).get(0), None);
    }

    #[test]
    fn a_transition_names_both_files_until_it_is_through() {
        let (_dir, k) = keeper();
        k.is_now(&info(0, "/dev/none", "/.datto", 3));
        k.is_now(&info(0, "/dev/none", "/.datto", 2));
        assert_eq!(list(&k).get(0).unwrap().mode, Some(Mode::Incremental));
        let running = info(0, "/dev/none", "/.datto", 2);
        k.next_snapshot(&running, "/.datto1".into());
        let e = list(&k).get(0).cloned().unwrap();
        assert_eq!(
            (e.cow.as_path(), e.next.as_deref()),
            (Path::new("/.datto"), Some(Path::new("/.datto1")))
        );
        k.next_failed(0);
        assert_eq!(list(&k).get(0).unwrap().next, None);
        k.next_snapshot(&running, "/.datto1".into());
        k.is_now(&info(0, "/dev/none", "/.datto1", 3));
        let e = list(&k).get(0).cloned().unwrap();
        assert_eq!(
            (e.cow.as_path(), e.next, e.mode),
            (Path::new("/.datto1"), None, Some(Mode::Snapshot))
        );
    }

    #[test]
    fn what_a_killed_transition_left_is_put_right() {
        let (_dir, k) = keeper();
        k.change(|l| {
            let mut e = Entry::new(0, "/dev/none".into(), "/.old".into());
            e.next = Some("/.new".into());
            e.cache = Some(9);
            l.put(e);
        });
        k.next_snapshot(&info(0, "/dev/none", "/.new", 2), "/.newer".into());
        let e = list(&k).get(0).cloned().unwrap();
        assert_eq!(
            (e.cow.as_path(), e.next.as_deref(), e.cache),
            (Path::new("/.new"), Some(Path::new("/.newer")), Some(9))
        );
    }

    #[test]
    fn an_entry_of_another_device_is_not_trusted() {
        let (_dir, k) = keeper();
        k.change(|l| {
            l.put(Entry::new(0, "/dev/gone".into(), "/.gone".into()));
            l.put(Entry::new(4, "/dev/none".into(), "/.stale".into()));
        });
        k.is_now(&info(0, "/dev/none", "/.datto", 3));
        let now = list(&k);
        assert_eq!(now.entries().count(), 1);
        assert_eq!(now.get(0).unwrap().cow, Path::new("/.datto"));
        k.cache(0, Some(5));
        assert_eq!(list(&k).get(0).unwrap().cache, Some(5));
        assert!(k.forget(0));
        assert!(!k.forget(0));
    }

    /// After `lvrename` the driver still has the old name.
    #[test]
    fn an_entry_whose_name_lasts_is_kept() {
        let (_dir, k) = keeper();
        let loops = fs::read_dir("/dev")
            .unwrap()
            .filter_map(Result::ok)
            .map(|e| e.path());
        let Some(there) = loops
            .into_iter()
            .find(|p| stable_name::device_number(p).is_some())
        else {
            return;
        };
        let fresh = |k: &Keeper| k.change(|l| l.put(Entry::new(0, there.clone(), "/.a".into())));
        fresh(&k);
        k.next_snapshot(&info(0, "/dev/none", "/.a", 2), "/.b".into());
        k.is_now(&info(0, "/dev/none", "/.b", 3));
        let e = list(&k).get(0).cloned().unwrap();
        assert_eq!((&e.device, e.cow.as_path()), (&there, Path::new("/.b")));
        // With another file it is of another device.
        k.is_now(&info(0, "/dev/none", "/.c", 3));
        assert_eq!(list(&k).get(0).unwrap().device, Path::new("/dev/none"));
    }

    #[test]
    fn a_list_that_cannot_be_written_is_no_error() {
        let k = Keeper(Some("/proc/none/list".into()));
        k.is_now(&info(0, "/dev/none", "/.datto", 3));
        assert!(!k.forget(0));
        Keeper::new(true).is_now(&info(0, "/dev/none", "/.datto", 3));
    }
}
