// SPDX-License-Identifier: GPL-2.0-only
//! `dbdctl boot`: announces the devices of the reload list to the driver, before their filesystems are
//! mounted. In an initramfs for the root filesystem, later for the others.
//!
//! Nothing here may stop a boot: every problem is a message, and the work is done in a process of its
//! own that is given up when it takes too long.

use crate::cli::Boot;
use crate::keep;
use crate::mounts;
use crate::peek::Peek;
use crate::reload_list::{self, Entry, List, Mode};
use crate::stable_name;
use anyhow::{Context, Result};
use dattobd_client::control::Control;
use dattobd_client::tell;
use ioctl_abi::ioctl::STATUS_CHAIN_BROKEN;
use std::env;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the initramfs found and left to do.
const REST: &str = "/run/dattobd/reload_devices";
/// Set for the process that does the work.
const WORKER: &str = "DATTOBD_BOOT_WORKER";
/// Besides waiting for devices: for all that mounts, modprobe and the driver do. A machine that is busy can take
/// half a minute to load a filesystem's module, and giving up costs a full backup; less than systemd waits for a disk.
const WORK_TIME: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Tells somebody. In an initramfs only the kernel log is still there later.
fn say(b: &Boot, text: &str) {
    if b.root.is_some() && !b.dry_run {
        if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
            // In one write: each is a line.
            let _ = log.write_all(format!("<4>dattobd: {text}\n").as_bytes());
        }
    }
    tell!("dbdctl: {text}");
}

/// Loads a module, as the kernel's own loader would.
///
/// # Errors
///
/// There is no modprobe, or it failed.
pub fn modprobe(name: &str) -> Result<()> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let out = Command::new("modprobe")
        // A Ctrl-C is answered by us (hand_over.rs), and does not end it half way.
        .process_group(0)
        .env("PATH", path)
        .arg(name)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running modprobe {name}"))?;
    anyhow::ensure!(
        out.status.success(),
        "modprobe {name}: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    Ok(())
}

/// The driver, with the module loaded.
pub fn driver() -> Result<Control> {
    match Control::open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            modprobe("dattobd")?;
            Control::open().context("opening /dev/datto-ctl")
        }
        other => other.context("opening /dev/datto-ctl"),
    }
}

/// Runs the work in a process of its own, for as long as it may take.
pub fn run(b: &Boot) -> Result<()> {
    if env::var_os(WORKER).is_some() {
        work(b);
        return Ok(());
    }
    let until = Instant::now() + Duration::from_secs(b.wait) + WORK_TIME;
    let child = Command::new("/proc/self/exe")
        .args(env::args_os().skip(1))
        .env(WORKER, "1")
        .stdin(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => {
            say(b, &format!("cannot start the work: {e}"));
            return Ok(());
        }
    };
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < until => sleep(POLL / 10),
            Ok(None) => {
                say(
                    b,
                    "picking up the devices takes too long and is given up: see `dbdctl info` for what is tracked, and \
                     run `dbdctl boot` for the others before they are mounted",
                );
                // Not waited for: it may hang in a disk.
                let _ = child.kill();
                return Ok(());
            }
            Ok(Some(_)) => return Ok(()),
            Err(e) => {
                say(b, &format!("cannot wait for the work: {e}"));
                return Ok(());
            }
        }
    }
}

fn work(b: &Boot) {
    match &b.root {
        Some(root) => root_filesystem(b, root),
        None => others(b),
    }
}

fn tell_problems(b: &Boot, list: &List) {
    for (line, why) in list.problems() {
        say(
            b,
            &format!("line {line} of the boot list is ignored: {why}; put it right or remove it"),
        );
    }
}

/// The entries that count: of two with one minor the last.
fn current(list: &List) -> Vec<&Entry> {
    list.entries()
        .filter(|e| list.get(e.minor).is_some_and(|last| std::ptr::eq(last, *e)))
        .collect()
}

/// What to announce a device with.
#[derive(Debug, PartialEq, Eq)]
struct Announce {
    minor: u32,
    device: PathBuf,
    cow: PathBuf,
    cache: u64,
    mode: Mode,
}

/// The ways to announce a device, in the order in which to try them. A transition that did not get
/// through leaves two files named. Only the driver can tell which of the two the chain goes on in, and
/// refuses the other; and a name that needs a replay of the journal is no reason to leave a file out.
fn announcements(entry: &Entry) -> Vec<Announce> {
    let with = |cow: &Path, mode| Announce {
        minor: entry.minor,
        device: stable_name::short(&entry.device),
        cow: cow.to_owned(),
        cache: entry.cache.unwrap_or(0),
        mode,
    };
    let next = entry.next.as_ref().map(|next| with(next, Mode::Snapshot));
    // Without a mode it is fresh from a setup.
    let now = with(&entry.cow, entry.mode.unwrap_or(Mode::Snapshot));
    next.into_iter().chain([now]).collect()
}

impl Announce {
    fn describe(&self) -> String {
        format!(
            "reload-{} {} {} {}",
            self.mode,
            self.device.display(),
            self.cow.display(),
            self.minor
        )
    }
}

/// What is asked of the driver.
trait Driver {
    /// Gives it a device.
    fn reload(&mut self, a: &Announce) -> Result<()>;
    /// Whether it has the device but found no chain to go on with, and why. A snapshot that has failed
    /// is no such thing: its chain goes on.
    fn nothing_found(&mut self, minor: u32) -> Option<&'static str>;
    /// Takes a device away from it.
    fn destroy(&mut self, minor: u32) -> Result<()>;
}

impl Driver for Control {
    fn reload(&mut self, a: &Announce) -> Result<()> {
        let device = CString::new(a.device.as_os_str().as_bytes())?;
        let cow = CString::new(a.cow.as_os_str().as_bytes())?;
        let snapshot = a.mode == Mode::Snapshot;
        Self::reload(self, &device, &cow, a.cache, a.minor, snapshot).map_err(|e| {
            let asked = crate::explain::Asked::Reload {
                bdev: &a.device,
                cow: &a.cow,
            };
            anyhow::anyhow!(crate::explain::call(self, asked, a.minor, e))
        })
    }

    fn nothing_found(&mut self, minor: u32) -> Option<&'static str> {
        let (status, info) = (self.status(minor).ok()?, self.info(minor).ok()?);
        (status.flags & STATUS_CHAIN_BROKEN != 0).then(|| crate::explain::reason(&info))
    }

    fn destroy(&mut self, minor: u32) -> Result<()> {
        Ok(Self::destroy(self, minor)?)
    }
}

/// Announces a device in the first way that works. When none does, the last one's failed device stays, for
/// somebody to see.
fn pick_up(driver: &mut dyn Driver, ways: &[Announce], mut say: impl FnMut(String)) {
    for (n, a) in ways.iter().enumerate() {
        let last = n + 1 == ways.len();
        if let Err(e) = driver.reload(a) {
            say(format!("{}: {e:#}", a.describe()));
            continue;
        }
        let Some(why) = driver.nothing_found(a.minor) else {
            return;
        };
        if last {
            say(format!(
                "{}: {why}. Nothing is tracked: `dbdctl destroy {}`, then setup-snapshot and a full copy",
                a.describe(),
                a.minor
            ));
        } else {
            say(format!("{}: {why}; trying the file before", a.describe()));
            // It holds nothing, so nothing on disk is touched.
            if let Err(e) = driver.destroy(a.minor) {
                say(format!("destroy {}: {e:#}", a.minor));
                return;
            }
        }
    }
}

/// Announces devices, or says what would be.
fn issue_all(b: &Boot, all: &[Vec<Announce>]) {
    if all.is_empty() {
        return;
    }
    if b.dry_run {
        for ways in all {
            for (n, a) in ways.iter().enumerate() {
                let or = if n > 0 { "or else " } else { "" };
                let _ = writeln!(io::stdout(), "{or}{}", a.describe());
            }
        }
        return;
    }
    let mut control = match driver() {
        Ok(control) => control,
        Err(e) => {
            say(
                b,
                &format!(
                    "the driver is not there, no device is picked up: {e:#}. See that the module fits this kernel \
                     (`modprobe dattobd`, `dkms status`). What is not mounted by then is picked up by `dbdctl boot`; \
                     what is needs setup-snapshot and a full copy"
                ),
            );
            return;
        }
    };
    for ways in all {
        let Some(a) = ways.first() else { continue };
        if let Ok(info) = control.info(a.minor) {
            if stable_name::short(&keep::path_in(&info.bdev)) != a.device {
                let theirs = keep::path_in(&info.bdev);
                say(
                    b,
                    &format!(
                        "{}: the minor is in use, by {}. If that is the wrong one: `dbdctl destroy {}`, then \
                         `dbdctl boot` before the right one is mounted",
                        a.describe(),
                        theirs.display(),
                        a.minor
                    ),
                );
            }
        } else {
            pick_up(&mut control, ways, |text| say(b, &text));
        }
    }
}

/// In an initramfs: the list lies on the root filesystem itself.
fn root_filesystem(b: &Boot, root: &Path) {
    let until = Instant::now() + Duration::from_secs(b.wait);
    let number = loop {
        match stable_name::device_number(root) {
            Some(number) => break number,
            None if !root.exists() && Instant::now() < until => sleep(POLL),
            None => {
                say(b, &format!("{} is no block device", root.display()));
                return;
            }
        }
    };
    let is_root = |e: &&Entry| stable_name::device_number(&e.device) == Some(number);
    let path = b.list.clone().unwrap_or_else(|| reload_list::PATH.into());
    let peek = match Peek::new(root) {
        Ok(peek) => peek,
        // Nothing that could be tracked, and no reason to complain.
        Err(e) if e.kind() == io::ErrorKind::Unsupported => return,
        Err(e) => {
            let root = root.display();
            say(b, &format!("{root} cannot be looked into: {e}"));
            return;
        }
    };
    let list = match peek.open(&path).and_then(reload_list::read_from) {
        Ok(list) => list,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return,
        Err(e) => {
            say(b, &format!("{} cannot be read: {e}", path.display()));
            return;
        }
    };
    let todo: Vec<_> = current(&list)
        .into_iter()
        .filter(is_root)
        .map(announcements)
        .collect();
    // The driver must find the device unused.
    drop(peek);
    tell_problems(b, &list);
    issue_all(b, &todo);
    if !b.dry_run {
        let mut rest = list.clone();
        rest.retain(|e| !is_root(&e));
        let _ = fs::create_dir_all("/run/dattobd");
        if let Err(e) = fs::write(REST, rest.to_bytes()) {
            say(b, &format!("{REST}: {e}"));
        }
    }
}

/// The list of the running system. With an unreadable one, what the initramfs had found.
fn running_list(b: &Boot) -> List {
    let path = b.list.clone().unwrap_or_else(keep::list_path);
    match reload_list::read(&path) {
        Ok(list) => list,
        Err(e) => {
            say(b, &format!("{} cannot be read: {e}", path.display()));
            if b.list.is_some() {
                return List::default();
            }
            reload_list::read(Path::new(REST)).unwrap_or_default()
        }
    }
}

/// In the running system, before the local filesystems are mounted.
fn others(b: &Boot) {
    let list = running_list(b);
    tell_problems(b, &list);
    let tracked = Control::open().ok();
    let mut waiting: Vec<&Entry> = current(&list)
        .into_iter()
        .filter(|e| tracked.as_ref().is_none_or(|c| c.info(e.minor).is_err()))
        .collect();
    drop(tracked);
    let until = Instant::now() + Duration::from_secs(b.wait);
    loop {
        let (there, missing): (Vec<&Entry>, Vec<&Entry>) = waiting
            .into_iter()
            .partition(|e| stable_name::device_number(&e.device).is_some());
        // As soon as they are there: what has no need to wait may be mounted next.
        let todo: Vec<_> = there
            .into_iter()
            .filter(|e| unmounted(b, e))
            .map(announcements)
            .collect();
        issue_all(b, &todo);
        waiting = missing;
        if waiting.is_empty() || Instant::now() >= until {
            break;
        }
        sleep(POLL);
    }
    for e in waiting {
        let device = e.device.display();
        say(
            b,
            &format!(
                "{device} is not there, and not tracked. When it is: `dbdctl boot` before it is mounted. If it never \
                 comes back: `dbdctl destroy {}` takes it off the list",
                e.minor
            ),
        );
    }
}

/// A device that is mounted can no longer be picked up.
fn unmounted(b: &Boot, e: &Entry) -> bool {
    let mount = mounts::of_device(&e.device);
    if let Some(m) = &mount {
        say(
            b,
            &format!(
                "{} is mounted already, on {}, and was not tracked from the start: `dbdctl setup-snapshot {} {} {}`, \
                 then a full copy",
                e.device.display(),
                m.point.display(),
                e.device.display(),
                m.point.join(e.cow.strip_prefix("/").unwrap_or(&e.cow)).display(),
                e.minor
            ),
        );
    }
    mount.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A driver with its own idea of each file.
    #[derive(Default)]
    struct Fake {
        refused: Vec<&'static str>,
        useless: Vec<&'static str>,
        stuck: bool,
        now: Option<PathBuf>,
        calls: Vec<String>,
    }

    impl Driver for Fake {
        fn reload(&mut self, a: &Announce) -> Result<()> {
            self.calls.push(a.describe());
            assert_eq!(self.now, None, "the minor is in use");
            let cow = a.cow.to_str().unwrap();
            anyhow::ensure!(!self.refused.contains(&cow), "refused");
            self.now = Some(a.cow.clone());
            Ok(())
        }

        fn nothing_found(&mut self, _: u32) -> Option<&'static str> {
            let cow = self.now.as_ref()?.to_str()?;
            self.useless.contains(&cow).then_some("useless")
        }

        fn destroy(&mut self, minor: u32) -> Result<()> {
            self.calls.push(format!("destroy {minor}"));
            anyhow::ensure!(!self.stuck, "stuck");
            self.now = None;
            Ok(())
        }
    }

    /// In the middle of a transition.
    fn both_files() -> Entry {
        let mut e = Entry::new(2, "/dev/none".into(), "/.old".into());
        e.mode = Some(Mode::Incremental);
        e.cache = Some(8);
        e.next = Some("/.new".into());
        e
    }

    const NEW: &str = "reload-snapshot /dev/none /.new 2";
    const OLD: &str = "reload-incremental /dev/none /.old 2";

    /// The device's file afterwards, the calls, the number of messages.
    fn picked_up(mut fake: Fake, entry: &Entry) -> (Option<PathBuf>, Vec<String>, usize) {
        let mut messages = 0;
        pick_up(&mut fake, &announcements(entry), |_| messages += 1);
        (fake.now, fake.calls, messages)
    }

    #[test]
    fn the_new_file_of_a_transition_comes_first() {
        let ways = announcements(&both_files());
        let words: Vec<_> = ways.iter().map(Announce::describe).collect();
        assert_eq!(words, [NEW, OLD]);
        assert!(ways.iter().all(|a| a.cache == 8));
        let (now, calls, messages) = picked_up(Fake::default(), &both_files());
        assert_eq!(now, Some("/.new".into()));
        assert_eq!((calls, messages), (vec![NEW.to_owned()], 0));
    }

    #[test]
    fn the_old_file_counts_when_the_driver_does_not_take_the_new_one() {
        let fake = Fake {
            useless: vec!["/.new"],
            ..Fake::default()
        };
        let (now, calls, messages) = picked_up(fake, &both_files());
        assert_eq!(now, Some("/.old".into()));
        assert_eq!(
            (calls, messages),
            (vec![NEW.into(), "destroy 2".into(), OLD.into()], 1)
        );

        let fake = Fake {
            refused: vec!["/.new"],
            ..Fake::default()
        };
        let (now, calls, _) = picked_up(fake, &both_files());
        assert_eq!(
            (now, calls),
            (Some("/.old".into()), vec![NEW.into(), OLD.into()])
        );
    }

    #[test]
    fn with_no_usable_file_the_failed_device_stays() {
        let useless = vec!["/.new", "/.old"];
        let fake = Fake {
            useless: useless.clone(),
            ..Fake::default()
        };
        let (now, calls, messages) = picked_up(fake, &both_files());
        assert_eq!(now, Some("/.old".into()));
        assert_eq!((calls.len(), messages), (3, 2));
        // As does one that cannot be taken away.
        let fake = Fake {
            useless,
            stuck: true,
            ..Fake::default()
        };
        let (now, calls, _) = picked_up(fake, &both_files());
        assert_eq!((now, calls.len()), (Some("/.new".into()), 2));

        let mut e = both_files();
        e.next = None;
        let fake = Fake {
            useless: vec!["/.old"],
            ..Fake::default()
        };
        let (now, calls, messages) = picked_up(fake, &e);
        assert_eq!(now, Some("/.old".into()));
        assert_eq!((calls, messages), (vec![OLD.to_owned()], 1));
    }

    #[test]
    fn without_a_mode_it_is_the_first_snapshot() {
        let e = Entry::new(0, "/dev/none".into(), "/.c".into());
        let ways = announcements(&e);
        assert_eq!(ways.len(), 1);
        assert_eq!(ways[0].mode, Mode::Snapshot);
    }

    #[test]
    fn of_two_entries_with_one_minor_only_the_last_is_announced() {
        let list = List::parse(
            b"minor=0 device=/dev/a cow=/a\nminor=1 device=/dev/b cow=/b\nminor=0 device=/dev/c cow=/c\n",
        );
        let all: Vec<_> = current(&list).iter().map(|e| e.cow.clone()).collect();
        assert_eq!(all, [Path::new("/b"), Path::new("/c")]);
    }
}
