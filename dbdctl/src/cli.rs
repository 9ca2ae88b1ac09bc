// SPDX-License-Identifier: GPL-2.0-only
//! The command line. Help, man pages and shell completions all come from here.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use dattobd_client::human::parse_size;
use std::ffi::OsString;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

const RELOAD_HELP: &str = "\
To be run before the filesystem is mounted; `dbdctl boot` does it for all devices of the boot
list. This command does not change that list. The mode is what the COW file says, whichever of
the two commands is used.

Exit status 255 also when the device is there, but its COW file is of no use: it shows as failed
in `info`, and `dbdctl destroy` removes it.";

/// Bytes; a plain number is in bytes.
fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text, 1)
}

/// MiB; a plain number is in MiB, and what has a unit must come to whole MiB.
fn mib(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text, MIB)?;
    if bytes % MIB != 0 {
        return Err(format!("'{text}' is not a whole number of MiB"));
    }
    Ok(bytes / MIB)
}

/// Takes point-in-time snapshots of mounted block devices and tracks which blocks change.
#[derive(Debug, Parser)]
#[command(
    name = "dbdctl",
    version,
    subcommand_required = true,
    arg_required_else_help = false,
    after_help = "\
The backup cycle of /dev/sda1, mounted on /:
  dbdctl setup-snapshot /dev/sda1 /.datto 0        take the first snapshot: /dev/datto0
  dd if=/dev/datto0 of=/backups/sda1-bkp bs=1M     a full copy, once
  dbdctl transition-to-incremental 0               give the snapshot up, track changes
  …                                                the machine works on
  dbdctl transition-to-snapshot /.datto1 0         the next snapshot
  update-img /dev/datto0 /.datto /backups/sda1-bkp copy only what changed
  rm /.datto                                       only when update-img has succeeded; and again
                                                   from transition-to-incremental

Sizes may have a unit: 512M, 2G (1024-based).

EXIT STATUS
  0    done. `info` also when a device has failed: --json has \"error\" and \"chain_broken\".
       `boot` always: nothing that it finds may stop a boot
  2    a mistake in the command line: nothing was done
  255  failed, with the reason. `reload-*` also when the device is there, but its COW file
       is of no use: it shows as failed in `info`"
)]
pub struct Cli {
    /// Leave the list of devices that are picked up at the next boot as it is.
    #[arg(long, global = true)]
    pub no_boot_list: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The minor of a device.
#[derive(Args, Debug)]
pub struct Minor {
    /// Number of the device: N of /dev/dattoN.
    #[arg(value_name = "MINOR")]
    pub minor: u32,
}

/// Arguments of the reload commands.
#[derive(Args, Debug)]
pub struct Reload {
    /// Limit of the index cache, in bytes; 0 for the module's default, and less than 64 KiB counts as 64 KiB.
    #[arg(short, long, value_name = "BYTES", value_parser = bytes)]
    pub cache_size: Option<u64>,
    /// The block device, not mounted yet.
    #[arg(value_name = "BLOCK DEVICE")]
    pub bdev: PathBuf,
    /// The COW file, relative to where the device will be mounted (/.datto).
    #[arg(value_name = "COW FILE")]
    pub cow: OsString,
    /// Number of the device.
    #[arg(value_name = "MINOR")]
    pub minor: u32,
}

/// Arguments of boot.
#[derive(Args, Debug)]
pub struct Boot {
    /// In an initramfs: the root file system's device. The list is read from it, without mounting it for
    /// real, and only its own entries are announced.
    #[arg(long, value_name = "DEVICE")]
    pub root: Option<PathBuf>,
    /// Another list than /etc/datto/dla/reload_devices.
    #[arg(long, value_name = "FILE")]
    pub list: Option<PathBuf>,
    /// How long to wait for devices that are not there yet.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = clap::value_parser!(u64).range(..=600))]
    pub wait: u64,
    /// Print the reload commands instead.
    #[arg(long)]
    pub dry_run: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take the first snapshot of a mounted block device and start to track it.
    #[command(after_help = "\
The COW file takes the old content of blocks that change while the snapshot is there. It must lie on the
device itself. The default size is 10 % of the device, or what the module's parameter
cow_fallocate_percentage_default says.

Example: dbdctl setup-snapshot -f 2G /dev/sda1 /.datto 0")]
    SetupSnapshot {
        /// Limit of the index cache, in bytes; 0 for the module's default, and less than 64 KiB counts as 64 KiB.
        #[arg(short, long, value_name = "BYTES", value_parser = bytes)]
        cache_size: Option<u64>,
        /// Size of the COW file, in MiB; 0 for the default.
        #[arg(short, long, value_name = "MIB", value_parser = mib)]
        fallocate: Option<u64>,
        /// The block device, mounted and writable.
        #[arg(value_name = "BLOCK DEVICE")]
        bdev: PathBuf,
        /// Where to create the COW file: an absolute path on the same device.
        #[arg(value_name = "COW FILE")]
        cow: PathBuf,
        /// Number of the device: N of /dev/dattoN (see free-minor).
        #[arg(value_name = "MINOR")]
        minor: u32,
    },
    /// Announce a device that was in snapshot mode before a reboot.
    #[command(after_help = RELOAD_HELP)]
    ReloadSnapshot(Reload),
    /// Announce a device that was in incremental mode before a reboot.
    #[command(after_help = RELOAD_HELP)]
    ReloadIncremental(Reload),
    /// Stop tracking a device and remove its COW file.
    Destroy(Minor),
    /// Give the snapshot up and go on tracking which blocks change.
    #[command(visible_alias = "inc")]
    TransitionToIncremental(Minor),
    /// Take the next snapshot; the COW file so far is handed over for update-img.
    #[command(visible_alias = "snap")]
    TransitionToSnapshot {
        /// Size of the new COW file, in MiB; 0 for the default, as for setup-snapshot.
        #[arg(short, long, value_name = "MIB", value_parser = mib)]
        fallocate: Option<u64>,
        /// Where to create the new COW file: an absolute path on the same device.
        #[arg(value_name = "COW FILE")]
        cow: PathBuf,
        /// Number of the device.
        #[arg(value_name = "MINOR")]
        minor: u32,
    },
    /// Change the limit of the index cache.
    Reconfigure {
        /// Limit of the index cache, in bytes; the module's default unless given, or 0. Less than 64 KiB counts as
        /// 64 KiB.
        #[arg(short, long, value_name = "BYTES", value_parser = bytes)]
        cache_size: Option<u64>,
        /// Number of the device.
        #[arg(value_name = "MINOR")]
        minor: u32,
    },
    /// Make the COW file of a running snapshot larger.
    ExpandCowFile {
        /// By how much, in MiB.
        #[arg(value_name = "SIZE", value_parser = mib)]
        size: u64,
        /// Number of the device.
        #[arg(value_name = "MINOR")]
        minor: u32,
    },
    /// Let the COW file grow by itself before it is full.
    #[command(after_help = "\
Kept over transitions, but not over a reboot, a reload or hand-over: set it again then.

Example: dbdctl reconfigure-auto-expand -r 1G 256 0")]
    ReconfigureAutoExpand {
        /// Free space of the filesystem that is never taken, in MiB.
        #[arg(short, long, value_name = "MIB", default_value = "0", value_parser = mib)]
        reserved_space: u64,
        /// By how much it grows each time, in MiB; 0 switches it off.
        #[arg(value_name = "STEP SIZE", value_parser = mib)]
        step_size: u64,
        /// Number of the device.
        #[arg(value_name = "MINOR")]
        minor: u32,
    },
    /// Give up a snapshot that has failed, keeping the change map: the next backup can be incremental.
    #[command(after_help = "\
A snapshot fails when its COW file is full, for example. Changes are still tracked. After this
command the device is in incremental mode: take the next snapshot with transition-to-snapshot.

A full copy that the failure cut short is of no use: copy the next snapshot in full. An update
that it cut short is made up for by the next one. Keep the COW file that it was using:
  dbdctl drop-snapshot 0
  dbdctl transition-to-snapshot /.datto2 0
  update-img /dev/datto0 <that COW file> <the failed snapshot's COW file> <image>")]
    DropSnapshot(Minor),
    /// Show the tracked devices.
    #[command(after_help = "\
docs/json.md describes the fields of --json, and how to watch for failures.")]
    Info {
        /// Only this one.
        #[arg(value_name = "MINOR")]
        minor: Option<u32>,
        /// As JSON, with all that is known, such as the blocks of the running COW file.
        #[arg(long)]
        json: bool,
    },
    /// Announce the devices of the boot list, before their file systems are mounted.
    #[command(after_help = "\
The initramfs and dattobd-reload.service run this. Every problem is a message, and the exit status is 0: a boot
goes on.

Example: dbdctl boot --dry-run")]
    Boot(Boot),
    /// Exchange the loaded module for the installed one, and go on with all chains.
    #[command(after_help = "\
For an upgrade of the module without a reboot. No tracked file system may be mounted: between the two modules
nobody would see a write. With the root file system among them, reboot instead.")]
    HandOver,
    /// Print the lowest free minor.
    FreeMinor,
    /// List the blocks that changed: of a handed-over COW file, or of a device right now.
    #[command(after_help = "\
Prints one run of changed blocks a line: first block and number of blocks, of 4096 bytes.

A file wins: in a folder with a file named 0, `changed 0` lists that file, not device 0.

Fails when the device's chain has ended, for then nobody knows all that changed. Output that is
followed by an exit status other than 0 is not complete: do not use it.

Examples: dbdctl changed /.datto
          dbdctl changed --json 0")]
    Changed {
        /// A COW file, or the number of a device.
        #[arg(value_name = "COW FILE | MINOR")]
        what: OsString,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the man pages of all tools into a folder.
    #[command(hide = true)]
    Man {
        /// The folder, which must exist.
        folder: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|c| c.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_have_the_units_of_the_c_tool() {
        for (line, cache, size) in [
            (
                "dbdctl setup-snapshot -c 5000 -f 20 /dev/x /c 3",
                Some(5000),
                Some(20),
            ),
            (
                "dbdctl setup-snapshot -c 1K -f 2GiB /dev/x /c 3",
                Some(1024),
                Some(2048),
            ),
            ("dbdctl setup-snapshot -f 512M /dev/x /c 3", None, Some(512)),
        ] {
            let Ok(Command::SetupSnapshot {
                cache_size,
                fallocate,
                minor: 3,
                ..
            }) = parse(line)
            else {
                panic!("{line}");
            };
            assert_eq!((cache_size, fallocate), (cache, size), "{line}");
        }
        let grow = parse("dbdctl expand-cow-file 1G 2");
        assert!(matches!(
            grow,
            Ok(Command::ExpandCowFile {
                size: 1024,
                minor: 2
            })
        ));
        let auto = parse("dbdctl reconfigure-auto-expand -r 1G 256 0");
        assert!(matches!(
            auto,
            Ok(Command::ReconfigureAutoExpand {
                reserved_space: 1024,
                step_size: 256,
                minor: 0
            })
        ));
    }

    #[test]
    fn sizes_that_are_no_whole_mib_or_too_large_are_refused() {
        for line in [
            "dbdctl expand-cow-file 1K 0",
            "dbdctl expand-cow-file 18446744073709551615 0",
            "dbdctl setup-snapshot -f -1 /dev/x /c 0",
            "dbdctl destroy 4294967296",
            "dbdctl reload-snapshot -f 5 /dev/x /c 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
