// SPDX-License-Identifier: GPL-2.0-only
//! `dbdtest`: what the VM tests run. See `dbdtest help`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use ioctl_abi::ioctl as abi;
use test_tools::extents::{Blocks, Skip};
use test_tools::{
    clock, cmp, control, cow, extents, files, finding, flush_points, fsx, fuzz, hammer, hog, mark,
    race, raw, rewrite, root_state, stamp, sys, wipe,
};

#[derive(Parser)]
#[command(about = "Programs for the tests of dattobd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How long a writer works.
#[derive(clap::Args)]
struct Span {
    /// Stop after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Stop when this file exists
    #[arg(long)]
    until: Option<PathBuf>,
    /// Mean pause between two writes of a thread, in microseconds
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Lay out stamp targets and write the first stamps
    StampInit {
        /// Directory of the model log, not on the device under test
        log: PathBuf,
        /// direct:PATH:BYTES, buffered:PATH:BYTES, mmap:PATH:BYTES or raw:DEVICE:OFFSET:BYTES
        #[arg(required = true)]
        targets: Vec<String>,
        /// Writing threads
        #[arg(long, default_value_t = 3)]
        threads: u64,
    },
    /// Write stamps at random places
    StampRun {
        /// Directory of the model log
        log: PathBuf,
        #[command(flatten)]
        span: Span,
    },
    /// Check the stamps on a device or image against the model log
    StampVerify {
        /// Directory of the model log
        log: PathBuf,
        /// Device or image
        device: PathBuf,
        /// Name of the mark that tells when the snapshot was taken; else the writers have stopped
        #[arg(long)]
        mark: Option<String>,
    },
    /// Create, change, rename and delete files
    FilesRun {
        /// Directory of the log, not on the device under test
        log: PathBuf,
        /// Directory to work in
        dir: PathBuf,
        /// Writing threads
        #[arg(long, default_value_t = 2)]
        threads: u64,
        #[command(flatten)]
        span: Span,
    },
    /// Check files against the log
    FilesCheck {
        /// Directory of the log
        log: PathBuf,
        /// Directory that was worked in, in a mounted snapshot or image
        dir: PathBuf,
        /// Name of the mark that tells when the snapshot was taken; else the writers have stopped
        #[arg(long)]
        mark: Option<String>,
    },
    /// Run a command and note its begin and end as the window of a snapshot point
    Mark {
        /// Directory of the log
        log: PathBuf,
        /// Name of the mark
        name: String,
        /// The command
        #[arg(trailing_var_arg = true, required = true)]
        command: Vec<String>,
    },
    /// Overwrite a device in random order with every kind of write
    Wipe(wipe::Options),
    /// Show what a COW file's roots on a device say, or make them say something else
    RootState(root_state::Options),
    /// Read random parts of a snapshot and compare them with a copy
    Readers(race::Readers),
    /// Overwrite blocks while they are read from the snapshot
    Race(race::Race),
    /// Compare two devices or images; list the blocks that differ; exit 1 if any does
    Cmp {
        /// One
        a: PathBuf,
        /// The other
        b: PathBuf,
        /// Write the differing blocks to this file instead of failing
        #[arg(long)]
        list: Option<PathBuf>,
        #[command(flatten)]
        skip: Skip,
    },
    /// Copy a device or image over another one
    Copy {
        /// From
        from: PathBuf,
        /// To
        to: PathBuf,
        #[command(flatten)]
        skip: Skip,
    },
    /// Print a hash of a device or image
    Hash {
        /// Device or image
        device: PathBuf,
        #[command(flatten)]
        skip: Skip,
    },
    /// List extents of a device: `cow` (of its COW file) or `changed`
    Extents {
        /// The device's minor
        minor: u32,
        /// cow or changed
        kind: String,
    },
    /// Print the header of a COW file
    CowHeader {
        /// COW file
        file: PathBuf,
    },
    /// List the changed blocks that a COW file names
    CowIndex {
        /// COW file
        file: PathBuf,
        /// Device, for its size
        device: PathBuf,
    },
    /// Print the blocks of set A that are not in set B; exit 1 if there are more than --allow
    Minus {
        /// Lines of `start length`
        a: PathBuf,
        /// Lines of `start length`
        b: Vec<PathBuf>,
        /// How many may remain
        #[arg(long, default_value_t = 0)]
        allow: u64,
    },
    /// Call an ioctl with any arguments; prints OK or the errno
    Ioctl {
        /// setup, reload-snap, reload-inc, destroy, to-inc, to-snap, reconfigure, info, get-free,
        /// expand, auto-expand, drop, release, status, extents, or a code like 0x9120
        name: String,
        /// field=value
        args: Vec<String>,
    },
    /// Write to and read from a part of a device, and count what fails
    Hammer(hammer::Options),
    /// Do random things with one file and compare each read with what must be there
    Fsx(fsx::Options),
    /// Use memory at random and check that it keeps what was stored
    Hog(hog::Options),
    /// Make random calls on the control node from many threads
    Fuzz(fuzz::Options),
    /// Erase a byte range of a block device securely
    SecureErase {
        /// Block device
        device: PathBuf,
        /// First byte
        start: u64,
        /// Bytes
        len: u64,
    },
    /// Check what loads from a recorded disk at each of its flushes; exit 1 if anything is missed
    FlushPoints(flush_points::Options),
    /// Use all time that nobody else wants, and count it in a file
    Spin {
        /// File of eight bytes or more
        file: PathBuf,
    },
    /// Print the time in ns, ticks and idle ticks; with --drain once more when no copy is under way
    Clock {
        /// The file of `spin`; without it no idle ticks are counted
        file: Option<PathBuf>,
        /// Wait until all copies of this minor are in the COW file
        #[arg(long)]
        drain: Option<u32>,
    },
    /// Write blocks of a device anew with the content that they have
    Rewrite(rewrite::Options),
    /// Freeze a filesystem and thaw it; print how long that took, in nanoseconds
    Freeze {
        /// Mount point
        mount: PathBuf,
    },
    /// Print where a file lies on its device, in blocks
    Places {
        /// File
        file: PathBuf,
    },
}

/// Runs a writer, stopped by the existence of a file.
fn until(span: &Span, job: impl FnOnce(&AtomicBool) -> Result<()>) -> Result<()> {
    let (stop, done) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        if let Some(path) = &span.until {
            let (stop, done) = (&stop, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    if path.exists() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        }
        let r = job(&stop);
        done.store(true, Ordering::Relaxed);
        r
    })
}

fn window(log: &Path, mark: Option<&str>) -> Result<Option<mark::Window>> {
    mark.map(|m| mark::find(log, m)).transpose()
}

fn verdict(errors: u64) -> ExitCode {
    ExitCode::from(u8::from(errors != 0))
}

fn list(blocks: &Blocks) -> String {
    let lines: Vec<String> = blocks.runs().map(|(s, n)| format!("{s} {n}\n")).collect();
    lines.concat()
}

fn read_set(path: &Path) -> Result<Blocks> {
    Blocks::parse(&std::fs::read_to_string(path)?)
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::StampInit {
            log,
            targets,
            threads,
        } => stamp::init(&log, threads, &targets)?,
        Command::StampRun { log, span } => until(&span, |stop| {
            stamp::run(&log, span.seed, span.seconds, span.pause, stop)
        })?,
        Command::StampVerify { log, device, mark } => {
            let w = window(&log, mark.as_deref())?;
            return Ok(verdict(stamp::verify(&log, &device, w)?));
        }
        Command::FilesRun {
            log,
            dir,
            threads,
            span,
        } => until(&span, |stop| {
            files::run(
                &log,
                &dir,
                threads,
                span.seed,
                span.seconds,
                span.pause,
                stop,
            )
        })?,
        Command::FilesCheck { log, dir, mark } => {
            let w = window(&log, mark.as_deref())?;
            return Ok(verdict(files::check(&log, &dir, w)?));
        }
        Command::Mark { log, name, command } => return mark::run(&log, &name, &command),
        Command::Wipe(o) => wipe::run(&o)?,
        Command::RootState(o) => root_state::run(&o)?,
        Command::Readers(o) => race::readers(&o)?,
        Command::Race(o) => race::race(&o)?,
        Command::Cmp {
            a,
            b,
            list: file,
            skip,
        } => {
            let d = cmp::differing(&a, &b, &skip.load()?)?;
            if let Some(path) = file {
                std::fs::write(path, list(&d))?;
                println!("{} blocks differ", d.count());
                return Ok(ExitCode::SUCCESS);
            }
            if d.count() > 0 {
                let some: Vec<_> = d.runs().take(20).collect();
                eprintln!(
                    "{} and {} differ in {} blocks: {some:?}",
                    a.display(),
                    b.display(),
                    d.count()
                );
                return Ok(ExitCode::FAILURE);
            }
            println!("{} and {} are equal", a.display(), b.display());
        }
        Command::Copy { from, to, skip } => cmp::copy(&from, &to, &skip.load()?)?,
        Command::Hash { device, skip } => {
            println!("{:016x}", cmp::hash(&device, &skip.load()?)?);
        }
        Command::Extents { minor, kind } => {
            let kind = match kind.as_str() {
                "cow" => abi::EXTENTS_COW_FILE,
                "changed" => abi::EXTENTS_CHANGED,
                other => anyhow::bail!("{other} is neither cow nor changed"),
            };
            for e in control::extents(minor, kind)? {
                println!("{} {}", e.start, e.len);
            }
        }
        Command::CowHeader { file } => {
            let h = cow::header(&file)?;
            println!("flags={} fsize={} seqid={}", h.flags, h.fsize, h.seqid);
            println!(
                "uuid={} version={} changed={}",
                h.uuid, h.version, h.changed
            );
        }
        Command::CowIndex { file, device } => {
            let bytes = sys::size_of(&sys::open_read(&device, 0)?)?;
            print!(
                "{}",
                list(&cow::index(&file, bytes.div_ceil(extents::BLOCK))?)
            );
        }
        Command::Minus { a, b, allow } => {
            let mut left = read_set(&a)?;
            for b in b {
                left = cmp::minus(&left, &read_set(&b)?);
            }
            print!("{}", list(&left));
            return Ok(ExitCode::from(u8::from(left.count() > allow)));
        }
        Command::Ioctl { name, args } => raw::run(&name, &args)?,
        Command::Hammer(o) => hammer::run(&o)?,
        Command::Fsx(o) => fsx::run(&o)?,
        Command::Hog(o) => hog::run(&o)?,
        Command::Fuzz(o) => fuzz::run(&o)?,
        Command::SecureErase { device, start, len } => {
            sys::secure_erase(&sys::open_write(&device, 0)?, start, len)?;
        }
        Command::Rewrite(o) => rewrite::run(&o)?,
        Command::Freeze { mount } => println!("{}", clock::freeze(&mount)?),
        Command::Spin { file } => clock::spin(&file)?,
        Command::Clock { file, drain } => clock::print(file.as_deref(), drain)?,
        Command::FlushPoints(o) => return Ok(verdict(flush_points::run(&o)?)),
        Command::Places { file } => {
            let mut out = Blocks::default();
            for p in sys::file_places(&sys::open_read(&file, 0)?)? {
                out.add(p.physical / extents::BLOCK, p.len.div_ceil(extents::BLOCK));
            }
            print!("{}", list(&out));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("dbdtest: {e:#}");
            // 1: a check has found something; 2: the check itself did not work.
            let found = e.is::<race::Changed>() || e.is::<finding::Finding>();
            ExitCode::from(if found { 1 } else { 2 })
        }
    }
}
