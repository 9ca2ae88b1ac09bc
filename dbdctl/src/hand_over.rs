// SPDX-License-Identifier: GPL-2.0-only
//! `dbdctl hand-over`: another version of the module takes over, and the chains go on.
//!
//! Only while nothing that is tracked is mounted: between the modules nobody sees a write. Each device
//! is sealed and let go of, the module is exchanged, and each device is announced again. A signal before the old
//! module has gone takes all of it back; after that it only makes things worse to stop, so it is carried on to the end.

use crate::boot;
use crate::explain::{self, Asked};
use crate::keep::{path_in, Keeper};
use crate::mounts;
use crate::picked_up;
use crate::signals::Held;
use anyhow::{anyhow, bail, Context, Result};
use dattobd_client::control::Control;
use dattobd_client::tell;
use ioctl_abi::ioctl::{
    Info, LIMIT_MAX_DEVICES, STATE_ACTIVE, STATE_SNAPSHOT, STATUS_CHAIN_BROKEN, STATUS_NOT_RECORDED,
};
use nix::sys::signal::Signal;
use std::ffi::CString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is done to the machine. The tests have one of their own.
trait Machine {
    fn devices(&mut self) -> Result<Vec<Info>>;
    fn mounted_on(&mut self, info: &Info) -> Option<PathBuf>;
    /// Bit set of `STATUS_*`.
    fn flags(&mut self, info: &Info) -> u32;
    fn release(&mut self, info: &Info) -> Result<()>;
    fn unload(&mut self) -> Result<()>;
    fn load(&mut self) -> Result<()>;
    fn reload(&mut self, info: &Info) -> Result<()>;
    /// The signal that was to end us.
    fn signalled(&mut self) -> Option<Signal>;
}

/// What remains to be done when the old module has gone and something failed.
const BOOT: &str = "run `dbdctl boot` before anything of that is mounted";

/// This machine. The control node must be closed while the module is exchanged.
struct Real(Held);

impl Real {
    fn control() -> Result<Control> {
        Control::open().map_err(|e| anyhow!(explain::open(&e)))
    }
}

impl Machine for Real {
    fn devices(&mut self) -> Result<Vec<Info>> {
        let control = Self::control()?;
        Ok((0..LIMIT_MAX_DEVICES)
            .filter_map(|n| control.info(n).ok())
            .collect())
    }

    fn mounted_on(&mut self, info: &Info) -> Option<PathBuf> {
        mounts::of_device(&path_in(&info.bdev)).map(|m| m.point)
    }

    fn flags(&mut self, info: &Info) -> u32 {
        // Of a device that is gone by now letting go says so.
        Self::control()
            .ok()
            .and_then(|c| c.status(info.minor).ok())
            .map_or(0, |s| s.flags)
    }

    fn release(&mut self, info: &Info) -> Result<()> {
        let control = Self::control()?;
        control
            .release(info.minor)
            .map_err(|e| anyhow!(explain::call(&control, Asked::Destroy, info.minor, e)))
    }

    fn unload(&mut self) -> Result<()> {
        let out = Command::new("modprobe")
            .args(["-r", "dattobd"])
            // Ctrl-C is for us to answer.
            .process_group(0)
            .output()
            .context("running modprobe -r dattobd")?;
        // Whatever has become of the command.
        let gone = !Path::new("/sys/module/dattobd").exists();
        if !out.status.success() && !gone {
            bail!(
                "modprobe -r dattobd: {}",
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        Ok(())
    }

    fn load(&mut self) -> Result<()> {
        boot::driver().map(drop)
    }

    fn reload(&mut self, info: &Info) -> Result<()> {
        let (bdev, cow) = (path_in(&info.bdev), path_in(&info.cow));
        let control = Self::control()?;
        control
            .reload(
                &CString::new(bdev.as_os_str().as_bytes())?,
                &CString::new(cow.as_os_str().as_bytes())?,
                info.cache_size,
                info.minor,
                info.state & STATE_SNAPSHOT != 0,
            )
            .map_err(|e| {
                let asked = Asked::Reload {
                    bdev: &bdev,
                    cow: &cow,
                };
                anyhow!(explain::call(&control, asked, info.minor, e))
            })?;
        picked_up::check(&control, info.minor, &bdev, &cow)
    }

    fn signalled(&mut self) -> Option<Signal> {
        self.0.came()
    }
}

/// Exchanges the module.
///
/// # Errors
///
/// Something tracked is mounted or has failed: nothing was done. Otherwise the message says what is left
/// to do.
pub fn run(keeper: &Keeper) -> Result<()> {
    let mut machine = Real(Held::new());
    let devices = exchange(&mut machine, |info| keeper.is_now(info))?;
    if let Some(signal) = machine.signalled() {
        tell!(
            "dbdctl: {signal} came when the old module had gone: the exchange was finished first"
        );
    }
    writeln!(
        io::stdout(),
        "the module was exchanged; devices picked up again: {}",
        devices.len()
    )?;
    Ok(())
}

/// Why no device may be let go of now.
fn refusal(machine: &mut dyn Machine, devices: &[Info]) -> Option<String> {
    let mut mounted = Vec::new();
    for info in devices {
        let name = format!("{} (device {})", path_in(&info.bdev).display(), info.minor);
        match machine.mounted_on(info) {
            Some(point) => mounted.push(format!("{name} on {}", point.display())),
            None if info.state & STATE_ACTIVE != 0 => {
                mounted.push(format!("{name} in another namespace"));
            }
            None => {}
        }
    }
    if !mounted.is_empty() {
        return Some(format!(
            "still mounted: {}. Unmount all that is tracked first; with the root filesystem among it, reboot \
             into the new module instead",
            mounted.join(", ")
        ));
    }
    devices.iter().find_map(|i| not_kept(i, machine.flags(i)))
}

/// Why a device could not be picked up again, and how to keep its chain where that can be.
fn not_kept(info: &Info, flags: u32) -> Option<String> {
    let (n, bdev) = (info.minor, path_in(&info.bdev));
    let bdev = bdev.display();
    if flags & STATUS_CHAIN_BROKEN != 0 {
        return Some(format!(
            "the chain of device {n} has ended ({}): `dbdctl destroy {n}` first; the next backup is a full one",
            explain::reason(info)
        ));
    }
    if info.error != 0 {
        return Some(format!(
            "the snapshot of device {n} has failed ({}), its changes are still tracked: mount {bdev}, `dbdctl \
             drop-snapshot {n}`, unmount it, and run hand-over again: the chain goes on",
            explain::reason(info)
        ));
    }
    (flags & STATUS_NOT_RECORDED != 0).then(|| {
        format!(
            "device {n}: its changes are not recorded on disk and cannot be handed over. Mount {bdev} and take the \
             next snapshot, whose new COW file records them again, then run hand-over again; or `dbdctl destroy \
             {n}` first: the next backup is a full one then"
        )
    })
}

/// Announces devices again. All are tried; the problems come back as one text.
fn reload_all(machine: &mut dyn Machine, devices: &[Info]) -> Result<()> {
    let problems: Vec<String> = devices
        .iter()
        .filter_map(|i| Some((i.minor, machine.reload(i).err()?)))
        .map(|(minor, e)| format!("device {minor} was not picked up again: {e:#}"))
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(anyhow!(problems.join("; ")))
}

/// Puts devices back and reports why that had to be.
fn undo(machine: &mut dyn Machine, released: &[Info], why: anyhow::Error) -> anyhow::Error {
    match reload_all(machine, released) {
        Ok(()) => why.context("the old module stays, and tracks as before"),
        Err(e) => anyhow!("{why:#}; {e:#}. The old module is loaded: {BOOT}"),
    }
}

fn exchange(machine: &mut dyn Machine, mut note: impl FnMut(&Info)) -> Result<Vec<Info>> {
    let devices = machine.devices()?;
    if let Some(why) = refusal(machine, &devices) {
        bail!(why);
    }
    // Should the power go before all is through, the next boot finds the devices.
    devices.iter().for_each(&mut note);
    for (n, info) in devices.iter().enumerate() {
        let released = devices.get(..n).unwrap_or_default();
        if let Some(signal) = machine.signalled() {
            return Err(undo(machine, released, ended_by(signal)));
        }
        if let Err(e) = machine.release(info) {
            let why = match machine.signalled() {
                Some(signal) => ended_by(signal),
                None => e.context(format!("device {} cannot be let go of", info.minor)),
            };
            return Err(undo(machine, released, why));
        }
    }
    if let Some(signal) = machine.signalled() {
        return Err(undo(machine, &devices, ended_by(signal)));
    }
    if let Err(e) = machine.unload() {
        return Err(undo(machine, &devices, e));
    }
    machine.load().context(
        "the new module cannot be loaded, and nothing is tracked now: put it right and run `dbdctl boot` \
         before anything is mounted",
    )?;
    reload_all(machine, &devices)
        .map_err(|e| anyhow!("{e:#}. The new module is loaded: {BOOT}"))?;
    Ok(devices)
}

fn ended_by(signal: Signal) -> anyhow::Error {
    anyhow!("interrupted by {signal}; run `dbdctl hand-over` again")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what it is asked for; one of the calls fails.
    #[derive(Default)]
    struct Fake {
        devices: Vec<Info>,
        mounted: Option<u32>,
        flags: u32,
        fails: &'static str,
        /// A signal comes with this step.
        signal_at: &'static str,
        signal: Option<Signal>,
        log: Vec<String>,
    }

    impl Fake {
        fn with(states: &[(u64, i32)]) -> Self {
            let devices = states.iter().enumerate().map(|(n, (state, error))| {
                let mut info = Info::request(n as u32);
                info.state = *state;
                info.error = *error;
                info.bdev[..6].copy_from_slice(b"/dev/x");
                info
            });
            Self {
                devices: devices.collect(),
                ..Self::default()
            }
        }

        fn step(&mut self, what: String) -> Result<()> {
            self.log.push(what.clone());
            if what == self.signal_at {
                self.signal = Some(Signal::SIGINT);
            }
            match what == self.fails {
                true => Err(anyhow!("no {what}")),
                false => Ok(()),
            }
        }
    }

    impl Machine for Fake {
        fn devices(&mut self) -> Result<Vec<Info>> {
            Ok(self.devices.clone())
        }
        fn mounted_on(&mut self, info: &Info) -> Option<PathBuf> {
            (self.mounted == Some(info.minor)).then(|| "/data".into())
        }
        fn flags(&mut self, _: &Info) -> u32 {
            self.flags
        }
        fn release(&mut self, info: &Info) -> Result<()> {
            self.step(format!("release {}", info.minor))
        }
        fn unload(&mut self) -> Result<()> {
            self.step("unload".to_owned())
        }
        fn load(&mut self) -> Result<()> {
            self.step("load".to_owned())
        }
        fn reload(&mut self, info: &Info) -> Result<()> {
            self.step(format!("reload {}", info.minor))
        }
        fn signalled(&mut self) -> Option<Signal> {
            self.signal
        }
    }

    fn run(mut fake: Fake) -> (Result<usize, String>, String) {
        let result = exchange(&mut fake, |_| ())
            .map(|d| d.len())
            .map_err(|e| format!("{e:#}"));
        (result, fake.log.join(", "))
    }

    #[test]
    fn dormant_devices_are_carried_over() {
        let (result, log) = run(Fake::with(&[(0, 0), (1, 0)]));
        assert_eq!(result, Ok(2));
        assert_eq!(
            log,
            "release 0, release 1, unload, load, reload 0, reload 1"
        );
        assert_eq!(run(Fake::default()), (Ok(0), "unload, load".to_owned()));
    }

    #[test]
    fn what_is_mounted_or_failed_is_named_and_nothing_is_done() {
        let mut fake = Fake::with(&[(0, 0), (2, 0)]);
        fake.mounted = Some(1);
        let (result, log) = run(fake);
        let why = result.unwrap_err();
        assert!(why.contains("/dev/x (device 1) on /data"), "{why}");
        assert_eq!(log, "");
        let (result, log) = run(Fake::with(&[(3, 0)]));
        assert!(result.unwrap_err().contains("another namespace"));
        assert_eq!(log, "");
    }

    /// Nobody is sent to destroy a chain that can be kept.
    #[test]
    fn what_could_not_be_picked_up_again_is_refused_with_the_way_to_keep_it() {
        for (error, flags, word) in [
            (-27, 0, "dbdctl drop-snapshot 1"),
            (-27, STATUS_NOT_RECORDED, "dbdctl drop-snapshot 1"),
            (-116, STATUS_CHAIN_BROKEN, "dbdctl destroy 1` first"),
            (0, STATUS_NOT_RECORDED, "not recorded on disk"),
        ] {
            let mut fake = Fake::with(&[(0, 0), (1, error)]);
            // With flags of its own only device 1 is there.
            fake.devices.retain(|i| flags == 0 || i.minor == 1);
            fake.flags = flags;
            let (result, log) = run(fake);
            let why = result.unwrap_err();
            assert!(why.contains(word), "{why}");
            assert_eq!(why.contains("destroy"), !word.contains("drop"), "{why}");
            assert_eq!(log, "");
        }
    }

    #[test]
    fn a_signal_takes_it_back_until_the_old_module_has_gone_and_then_nothing() {
        for (at, fails, want) in [
            ("release 0", "", "release 0, reload 0"),
            ("release 1", "", "release 0, release 1, reload 0, reload 1"),
            // The call itself gave up.
            ("release 1", "release 1", "release 0, release 1, reload 0"),
        ] {
            let mut fake = Fake::with(&[(0, 0), (1, 0)]);
            (fake.signal_at, fake.fails) = (at, fails);
            let (result, log) = run(fake);
            let why = result.unwrap_err();
            assert!(why.contains("interrupted by SIGINT"), "{why}");
            assert!(why.contains("the old module stays"), "{why}");
            assert_eq!(log, want, "{at}");
        }
        for at in ["unload", "load", "reload 0"] {
            let mut fake = Fake::with(&[(0, 0), (1, 0)]);
            fake.signal_at = at;
            let (result, log) = run(fake);
            assert_eq!(result, Ok(2), "{at}");
            assert!(log.ends_with("unload, load, reload 0, reload 1"), "{log}");
        }
        // Taking it back may fail too: then the next step is named.
        let mut fake = Fake::with(&[(0, 0), (1, 0)]);
        (fake.signal_at, fake.fails) = ("release 0", "reload 0");
        let why = run(fake).0.unwrap_err();
        assert!(
            why.contains("interrupted by SIGINT") && why.contains(BOOT),
            "{why}"
        );
    }

    #[test]
    fn a_failure_half_way_is_undone() {
        for (fails, want) in [
            ("release 1", "release 0, release 1, reload 0"),
            ("unload", "release 0, release 1, unload, reload 0, reload 1"),
            ("load", "release 0, release 1, unload, load"),
            (
                "reload 0",
                "release 0, release 1, unload, load, reload 0, reload 1",
            ),
        ] {
            let mut fake = Fake::with(&[(0, 0), (1, 0)]);
            fake.fails = fails;
            let (result, log) = run(fake);
            assert!(result.unwrap_err().contains(fails), "{fails}");
            assert_eq!(log, want, "{fails}");
        }
    }
}
