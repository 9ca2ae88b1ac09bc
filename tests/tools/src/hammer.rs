// SPDX-License-Identifier: GPL-2.0-only
//! Writers and readers of a part of a device (or file) that may be made to fail, and that say how often it did.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};
use nix::libc;

use crate::errno;
use crate::extents::BLOCK;
use crate::finding::finding;
use crate::rng::Rng;
use crate::stamp::parse_size;
use crate::sys::{self, AlignedBuf};

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Device or file
    pub device: PathBuf,
    /// Where to begin, in bytes
    #[arg(long, default_value = "0")]
    pub at: String,
    /// How much to write to, in bytes; nothing behind is touched
    #[arg(long)]
    pub bytes: String,
    /// Threads
    #[arg(long, default_value_t = 2)]
    pub threads: u64,
    /// Longest request in blocks
    #[arg(long, default_value_t = 16)]
    pub run: u64,
    /// Errors that the caller expects, by name; any other ends the run as a finding
    #[arg(long, value_delimiter = ',')]
    pub may: Vec<String>,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 3600)]
    pub seconds: u64,
    /// Stop when this file exists
    #[arg(long)]
    pub until: Option<PathBuf>,
    /// Mean pause between two requests of a thread, in microseconds
    #[arg(long, default_value_t = 0)]
    pub pause: u64,
    /// A request that takes longer is a finding, in seconds
    #[arg(long, default_value_t = 100)]
    pub patience: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Reads and writes until told to stop; fails at the first error that was not expected.
pub fn run(o: &Options) -> Result<()> {
    let (at, bytes) = (parse_size(&o.at)?, parse_size(&o.bytes)?);
    let blocks = bytes / BLOCK;
    ensure!(blocks >= o.run && o.run > 0, "the part is too small");
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let seen: Mutex<BTreeMap<(bool, i32), u64>> = Mutex::new(BTreeMap::new());
    let one = |n: u64| -> Result<()> {
        let plain = sys::open_write(&o.device, libc::O_DIRECT)?;
        let durable = sys::open_write(&o.device, libc::O_DIRECT | libc::O_DSYNC)?;
        let mut rng = Rng::new(o.seed ^ (n << 48));
        let mut buf = AlignedBuf::new((o.run * BLOCK) as usize);
        while !stop.load(Ordering::Relaxed) {
            if start.elapsed() > Duration::from_secs(o.seconds)
                || o.until.as_ref().is_some_and(|p| p.exists())
            {
                break;
            }
            let len = 1 + rng.below(o.run);
            let first = rng.below(blocks - len + 1);
            let part = &mut buf[..(len * BLOCK) as usize];
            let place = at + first * BLOCK;
            let write = !rng.one_in(4);
            let began = Instant::now();
            let result = if write {
                rng.fill(part);
                let f = if rng.one_in(8) { &durable } else { &plain };
                f.write_all_at(part, place)
            } else {
                plain.read_exact_at(part, place)
            };
            let number = match &result {
                Ok(()) => 0,
                Err(e) => e.raw_os_error().unwrap_or(libc::EIO),
            };
            *seen
                .lock()
                .expect("no thread panics holding it")
                .entry((write, number))
                .or_default() += 1;
            let what = if write { "write" } else { "read" };
            if number != 0 && !o.may.contains(&errno::name(number)) {
                return Err(finding(format!(
                    "a {what} of {len} blocks at byte {place} of {} ended with {}",
                    o.device.display(),
                    errno::name(number)
                )));
            }
            if began.elapsed() > Duration::from_secs(o.patience) {
                return Err(finding(format!(
                    "a {what} of {len} blocks at byte {place} took {} s",
                    began.elapsed().as_secs()
                )));
            }
            if o.pause > 0 {
                std::thread::sleep(Duration::from_micros(rng.below(2 * o.pause)));
            }
        }
        Ok(())
    };
    let result = std::thread::scope(|scope| {
        let all: Vec<_> = (0..o.threads)
            .map(|n| {
                let (one, stop) = (&one, &stop);
                scope.spawn(move || {
                    let r = one(n);
                    if r.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    r
                })
            })
            .collect();
        all.into_iter()
            .map(|h| h.join().expect("a thread panicked"))
            .fold(Ok(()), Result::and)
    });
    let seen = seen.into_inner().expect("no thread panics holding it");
    let count = |write: bool, good: bool| -> u64 {
        seen.iter()
            .filter(|((w, e), _)| *w == write && (*e == 0) == good)
            .map(|(_, n)| n)
            .sum()
    };
    println!(
        "hammer: seed={} writes={} failed_writes={} reads={} failed_reads={}",
        o.seed,
        count(true, true),
        count(true, false),
        count(false, true),
        count(false, false)
    );
    result
}
