// SPDX-License-Identifier: GPL-2.0-only
//! Controls the driver; see `dbdctl --help`.

mod boot;
mod changed;
mod cli;
mod explain;
mod facts;
mod hand_over;
mod info;
mod keep;
mod man;
mod mounts;
mod peek;
mod picked_up;
mod reload_list;
mod signals;
mod stable_name;

use anyhow::{anyhow, Context, Result};
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use dattobd_client::control::Control;
use dattobd_client::tell;
use explain::Asked;
use keep::Keeper;
use nix::errno::Errno;
use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{self, Path};
use std::process::ExitCode;

/// What the C tool exits with when an operation fails.
const FAILED: u8 = 255;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command, &Keeper::new(cli.no_boot_list)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if broken_pipe(&e) => ExitCode::from(FAILED),
        Err(e) => {
            tell!("dbdctl: {e:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// `dbdctl changed 0 | head` is no reason to complain.
fn broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

fn c_string(text: &OsStr) -> Result<CString> {
    CString::new(text.as_bytes()).context("a path must not contain a NUL byte")
}

/// A device's name as others can use it later, from any folder.
fn absolute(bdev: &Path) -> Result<path::PathBuf> {
    path::absolute(bdev).with_context(|| format!("{} is no path", bdev.display()))
}

fn open() -> Result<Control> {
    Control::open().map_err(|e| anyhow!(explain::open(&e)))
}

/// Runs one call and explains what goes wrong.
fn call(
    asked: Asked<'_>,
    minor: u32,
    what: impl FnOnce(&Control) -> Result<(), Errno>,
) -> Result<()> {
    explained(&open()?, asked, minor, what)
}

fn explained(
    control: &Control,
    asked: Asked<'_>,
    minor: u32,
    what: impl FnOnce(&Control) -> Result<(), Errno>,
) -> Result<()> {
    signals::with_size_limit_as_error(|| what(control))
        .map_err(|e| anyhow!(explain::call(control, asked, minor, e)))
}

/// As [`call`], and the list knows what became of the device.
fn changing(
    keeper: &Keeper,
    asked: Asked<'_>,
    minor: u32,
    what: impl FnOnce(&Control) -> Result<(), Errno>,
) -> Result<()> {
    let control = open()?;
    explained(&control, asked, minor, what)?;
    if let Ok(info) = control.info(minor) {
        keeper.is_now(&info);
    }
    Ok(())
}

fn run(command: Command, keeper: &Keeper) -> Result<()> {
    match command {
        Command::SetupSnapshot {
            cache_size,
            fallocate,
            bdev,
            cow,
            minor,
        } => setup(keeper, cache_size, fallocate, &bdev, &cow, minor),
        Command::ReloadSnapshot(r) => reload(&r, true),
        Command::ReloadIncremental(r) => reload(&r, false),
        Command::Destroy(m) => destroy(keeper, m.minor),
        Command::TransitionToIncremental(m) => {
            changing(keeper, Asked::Inc, m.minor, |c| c.transition_inc(m.minor))
        }
        Command::TransitionToSnapshot {
            fallocate,
            cow,
            minor,
        } => next_snapshot(keeper, fallocate, &cow, minor),
        Command::Reconfigure { cache_size, minor } => {
            call(Asked::Reconfigure, minor, |c| {
                c.reconfigure(cache_size.unwrap_or(0), minor)
            })?;
            keeper.cache(minor, cache_size);
            Ok(())
        }
        Command::ExpandCowFile { size, minor } => {
            call(Asked::Expand, minor, |c| c.expand(size, minor))
        }
        Command::ReconfigureAutoExpand {
            reserved_space,
            step_size,
            minor,
        } => call(Asked::AutoExpand, minor, |c| {
            c.auto_expand(step_size, reserved_space, minor)
        }),
        Command::DropSnapshot(m) => {
            changing(keeper, Asked::Drop, m.minor, |c| c.drop_snapshot(m.minor))
        }
        Command::Boot(b) => boot::run(&b),
        Command::HandOver => hand_over::run(keeper),
        Command::Info { minor, json } => info::print(&open()?, minor, json),
        Command::FreeMinor => {
            let control = open()?;
            let minor = control
                .free_minor()
                .map_err(|e| anyhow!(explain::call(&control, Asked::Free, 0, e)))?;
            writeln!(std::io::stdout(), "{minor}")?;
            Ok(())
        }
        Command::Changed { what, json } => list_changed(&what, json),
        Command::Completions { shell } => {
            // Into memory first: the generator panics when the reader of a pipe goes away.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "dbdctl", &mut script);
            std::io::stdout().write_all(&script)?;
            Ok(())
        }
        Command::Man { folder } => man::write(&folder),
    }
}

fn setup(
    keeper: &Keeper,
    cache: Option<u64>,
    size: Option<u64>,
    bdev: &Path,
    cow: &Path,
    minor: u32,
) -> Result<()> {
    let bdev = &absolute(bdev)?;
    let (b, c) = (c_string(bdev.as_os_str())?, c_string(cow.as_os_str())?);
    let control = open()?;
    // The entry of a device that is there is not this command's; and with a path that leads nowhere the
    // call is going to fail.
    let path = keep::in_its_filesystem(cow).filter(|_| control.info(minor).is_err());
    let before = path.map(|path| keeper.setup(minor, bdev, path, cache));
    let asked = Asked::Setup { bdev, cow, size };
    let result = explained(&control, asked, minor, |control| {
        control.setup(&b, &c, size.unwrap_or(0), cache.unwrap_or(0), minor)
    });
    match (&result, before, control.info(minor)) {
        (Ok(()), _, Ok(info)) => keeper.is_now(&info),
        (Err(_), Some(before), _) => keeper.setup_failed(minor, before),
        _ => {}
    }
    result
}

fn next_snapshot(keeper: &Keeper, size: Option<u64>, cow: &Path, minor: u32) -> Result<()> {
    let path = c_string(cow.as_os_str())?;
    let control = open()?;
    let known = control.info(minor).ok().zip(keep::in_its_filesystem(cow));
    let listed = known.map(|(info, path)| keeper.next_snapshot(&info, path));
    let result = explained(&control, Asked::Snap { cow, size }, minor, |c| {
        c.transition_snap(&path, size.unwrap_or(0), minor)
    });
    match (&result, listed, control.info(minor)) {
        (Ok(()), _, Ok(info)) => keeper.is_now(&info),
        (Err(_), Some(()), _) => keeper.next_failed(minor),
        _ => {}
    }
    result
}

fn destroy(keeper: &Keeper, minor: u32) -> Result<()> {
    let control = open()?;
    match control.destroy(minor) {
        Ok(()) => {
            keeper.forget(minor);
            Ok(())
        }
        Err(e) => {
            let why = explain::call(&control, Asked::Destroy, minor, e);
            // Otherwise nothing would ever remove the entry of a device that could not be loaded.
            if e == Errno::ENOENT && keeper.forget(minor) {
                return Err(anyhow!(
                    "{why}; the entry of {minor} in the boot list was removed"
                ));
            }
            Err(anyhow!(why))
        }
    }
}

fn reload(r: &cli::Reload, snapshot: bool) -> Result<()> {
    let (device, cow_path) = (absolute(&r.bdev)?, Path::new(&r.cow));
    let (bdev, cow) = (c_string(device.as_os_str())?, c_string(&r.cow)?);
    let asked = Asked::Reload {
        bdev: &device,
        cow: cow_path,
    };
    let control = open()?;
    explained(&control, asked, r.minor, |c| {
        c.reload(&bdev, &cow, r.cache_size.unwrap_or(0), r.minor, snapshot)
    })?;
    picked_up::check(&control, r.minor, &device, cow_path)
}

/// A number is a minor, unless a file of that name exists.
fn list_changed(what: &OsStr, json: bool) -> Result<()> {
    let minor = what.to_str().and_then(|t| t.parse().ok());
    match minor {
        Some(minor) if !Path::new(what).exists() => changed::of_device(&open()?, minor, json),
        _ => changed::of_file(Path::new(what), json),
    }
}
