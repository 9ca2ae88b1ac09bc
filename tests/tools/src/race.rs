// SPDX-License-Identifier: GPL-2.0-only
//! Readers of a snapshot, with a reference copy that says what they must see.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;

use crate::extents::BLOCK;
use crate::rng::Rng;
use crate::sys::{self, AlignedBuf};

/// A read of the snapshot showed what it must not: told apart from a test that did not work.
#[derive(Debug)]
pub struct Changed(String);

impl std::fmt::Display for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SNAPSHOT CHANGED: {}", self.0)
    }
}

impl std::error::Error for Changed {}

/// Compares random parts of a device with a reference while others write.
#[derive(clap::Args, Clone, Debug)]
pub struct Readers {
    /// The snapshot device
    pub device: PathBuf,
    /// A copy of what it must show
    pub reference: PathBuf,
    /// Threads; every second one reads with O_DIRECT
    #[arg(long, default_value_t = 4)]
    pub threads: u64,
    /// Longest read in bytes
    #[arg(long, default_value_t = 65536)]
    pub longest: u64,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 3600)]
    pub seconds: u64,
    /// Stop when this file exists
    #[arg(long)]
    pub until: Option<PathBuf>,
    /// Seed of places and sizes
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Blocks left out
    #[command(flatten)]
    pub skip: crate::extents::Skip,
}

/// Reads until told to stop; fails at the first difference.
pub fn readers(o: &Readers) -> Result<()> {
    let skip = o.skip.load()?;
    let deadline = Instant::now() + Duration::from_secs(o.seconds);
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let one = |n: u64| -> Result<()> {
        let flags = if n % 2 == 1 { libc::O_DIRECT } else { 0 };
        let (dev, reference) = (
            sys::open_read(&o.device, flags)?,
            sys::open_read(&o.reference, 0)?,
        );
        let unit = if flags == 0 {
            1
        } else {
            sys::logical_block_size(&dev)
        };
        let size = sys::size_of(&dev)?;
        let mut rng = Rng::new(o.seed ^ (n << 40));
        let longest = (o.longest / unit).max(1);
        let mut got = AlignedBuf::new((longest * unit) as usize);
        let mut want = vec![0; (longest * unit) as usize];
        while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
            let len = ((1 + rng.below(longest)) * unit).min(size);
            let at = rng.below((size - len) / unit + 1) * unit;
            let (got, want) = (&mut got[..len as usize], &mut want[..len as usize]);
            dev.read_exact_at(got, at)
                .with_context(|| format!("read {len} bytes at {at} of the snapshot"))?;
            reference.read_exact_at(want, at)?;
            reads.fetch_add(1, Ordering::Relaxed);
            if got != want {
                let bad = (0..len).find(|&i| {
                    got[i as usize] != want[i as usize] && !skip.contains((at + i) / BLOCK)
                });
                if let Some(i) = bad {
                    return Err(Changed(format!(
                        "byte {} (block {}) is {:#x} instead of {:#x}, in a read of {len} bytes \
                         at {at}",
                        at + i,
                        (at + i) / BLOCK,
                        got[i as usize],
                        want[i as usize]
                    ))
                    .into());
                }
            }
            if o.until.as_ref().is_some_and(|p| p.exists()) {
                break;
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
            .map(|h| h.join().expect("a reader panicked"))
            .fold(Ok(()), Result::and)
    });
    println!(
        "readers: seed {}, {} reads",
        o.seed,
        reads.load(Ordering::Relaxed)
    );
    result
}

/// Overwrites the origin block by block, each while readers read that very block of the snapshot.
#[derive(clap::Args, Clone, Debug)]
pub struct Race {
    /// The snapshot device
    pub snapshot: PathBuf,
    /// The origin
    pub origin: PathBuf,
    /// A copy of what the snapshot must show
    pub reference: PathBuf,
    /// How many blocks to race for
    #[arg(long, default_value_t = 200)]
    pub blocks: u64,
    /// Readers of each block
    #[arg(long, default_value_t = 4)]
    pub readers: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Blocks left out
    #[command(flatten)]
    pub skip: crate::extents::Skip,
}

/// Races; fails at the first read that shows new data.
pub fn race(o: &Race) -> Result<()> {
    const IDLE: u64 = u64::MAX;
    let skip = o.skip.load()?;
    let reference = sys::open_read(&o.reference, 0)?;
    let blocks = sys::size_of(&reference)? / BLOCK;
    let (target, over) = (AtomicU64::new(IDLE), AtomicBool::new(false));
    let reads = AtomicU64::new(0);
    let reader = || -> Result<()> {
        let dev = sys::open_read(&o.snapshot, libc::O_DIRECT)?;
        let mut got = AlignedBuf::new(BLOCK as usize);
        let mut want = vec![0; BLOCK as usize];
        while !over.load(Ordering::Relaxed) {
            let block = target.load(Ordering::Acquire);
            if block == IDLE {
                std::thread::yield_now();
                continue;
            }
            dev.read_exact_at(&mut got, block * BLOCK)
                .with_context(|| format!("read block {block} of the snapshot"))?;
            reference.read_exact_at(&mut want, block * BLOCK)?;
            reads.fetch_add(1, Ordering::Relaxed);
            if got[..] != want[..] {
                over.store(true, Ordering::Relaxed);
                return Err(
                    Changed(format!("block {block} read while it was first overwritten")).into(),
                );
            }
        }
        Ok(())
    };
    let writer = || -> Result<()> {
        let origin = sys::open_write(&o.origin, libc::O_DIRECT)?;
        let mut rng = Rng::new(o.seed);
        let mut order: Vec<u64> = (0..blocks).filter(|&b| !skip.contains(b)).collect();
        rng.shuffle(&mut order);
        let mut buf = AlignedBuf::new(BLOCK as usize);
        for &block in order.iter().take(o.blocks as usize) {
            if over.load(Ordering::Relaxed) {
                break;
            }
            rng.fill(&mut buf);
            target.store(block, Ordering::Release);
            std::thread::sleep(Duration::from_micros(rng.below(8000)));
            origin.write_all_at(&buf, block * BLOCK)?;
            std::thread::sleep(Duration::from_micros(rng.below(2000)));
        }
        target.store(IDLE, Ordering::Release);
        over.store(true, Ordering::Relaxed);
        Ok(())
    };
    let result = std::thread::scope(|scope| {
        let all: Vec<_> = (0..o.readers).map(|_| scope.spawn(reader)).collect();
        let w = scope.spawn(writer).join().expect("the writer panicked");
        over.store(true, Ordering::Relaxed);
        all.into_iter()
            .map(|h| h.join().expect("a reader panicked"))
            .fold(w, Result::and)
    });
    println!(
        "race: seed {}, {} reads",
        o.seed,
        reads.load(Ordering::Relaxed)
    );
    result
}
