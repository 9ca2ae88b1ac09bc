// SPDX-License-Identifier: GPL-2.0-only
//! Controls the driver; see `dbdctl --help`.

mod changed;
mod cli;
mod explain;
mod facts;
mod info;
mod man;
mod mounts;

use anyhow::{anyhow, Context, Result};
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use dattobd_client::control::Control;
use explain::Asked;
use nix::errno::Errno;
use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

/// What the C tool exits with when an operation fails.
const FAILED: u8 = 255;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if broken_pipe(&e) => ExitCode::from(FAILED),
        Err(e) => {
            eprintln!("dbdctl: {e:#}");
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

fn open() -> Result<Control> {
    Control::open().map_err(|e| anyhow!(explain::open(&e)))
}

/// Runs one call and explains what goes wrong.
fn call(
    asked: Asked<'_>,
    minor: u32,
    what: impl FnOnce(&Control) -> Result<(), Errno>,
) -> Result<()> {
    let control = open()?;
    what(&control).map_err(|e| anyhow!(explain::call(&control, asked, minor, e)))
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::SetupSnapshot {
            cache_size,
            fallocate,
            bdev,
            cow,
            minor,
        } => {
            let (b, c) = (c_string(bdev.as_os_str())?, c_string(cow.as_os_str())?);
            call(
                Asked::Setup {
                    bdev: &bdev,
                    cow: &cow,
                    size: fallocate,
                },
                minor,
                |control| {
                    control.setup(
                        &b,
                        &c,
                        fallocate.unwrap_or(0),
                        cache_size.unwrap_or(0),
                        minor,
                    )
                },
            )
        }
        Command::ReloadSnapshot(r) => reload(&r, true),
        Command::ReloadIncremental(r) => reload(&r, false),
        Command::Destroy(m) => call(Asked::Destroy, m.minor, |c| c.destroy(m.minor)),
        Command::TransitionToIncremental(m) => {
            call(Asked::Inc, m.minor, |c| c.transition_inc(m.minor))
        }
        Command::TransitionToSnapshot {
            fallocate,
            cow,
            minor,
        } => {
            let path = c_string(cow.as_os_str())?;
            call(
                Asked::Snap {
                    cow: &cow,
                    size: fallocate,
                },
                minor,
                |c| c.transition_snap(&path, fallocate.unwrap_or(0), minor),
            )
        }
        Command::Reconfigure { cache_size, minor } => call(Asked::Reconfigure, minor, |c| {
            c.reconfigure(cache_size.unwrap_or(0), minor)
        }),
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
        Command::DropSnapshot(m) => call(Asked::Drop, m.minor, |c| c.drop_snapshot(m.minor)),
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

fn reload(r: &cli::Reload, snapshot: bool) -> Result<()> {
    let (bdev, cow) = (c_string(r.bdev.as_os_str())?, c_string(&r.cow)?);
    let asked = Asked::Reload {
        bdev: &r.bdev,
        cow: Path::new(&r.cow),
    };
    call(asked, r.minor, |c| {
        c.reload(&bdev, &cow, r.cache_size.unwrap_or(0), r.minor, snapshot)
    })?;
    let info = open()?.info(r.minor);
    match info.map(|i| i.error) {
        Ok(error) if error != 0 => Err(anyhow!(
            "{} on {} cannot be picked up: {}. The kernel log says more. Nothing is tracked: `dbdctl \
             destroy {}`, then take a new first snapshot with setup-snapshot, and a full copy",
            Path::new(&r.cow).display(),
            r.bdev.display(),
            Errno::from_raw(-error).desc(),
            r.minor
        )),
        _ => Ok(()),
    }
}

/// A number is a minor, unless a file of that name exists.
fn list_changed(what: &OsStr, json: bool) -> Result<()> {
    let minor = what.to_str().and_then(|t| t.parse().ok());
    match minor {
        Some(minor) if !Path::new(what).exists() => {
            let control = open()?;
            match changed::of_device(&control, minor, json)? {
                None => Ok(()),
                Some(errno) => Err(anyhow!(explain::call(&control, Asked::Ask, minor, errno))),
            }
        }
        _ => changed::of_file(Path::new(what), json),
    }
}
