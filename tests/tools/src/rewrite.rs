// SPDX-License-Identifier: GPL-2.0-only
//! Writes blocks of a device anew with the content that they have: changes for the maps and the copies, none for
//! the filesystem, as long as that is left alone meanwhile.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use nix::libc;

use crate::extents::{Blocks, Skip, BLOCK};
use crate::sys;

/// Which blocks.
#[derive(clap::Args)]
pub struct Options {
    /// Block device
    device: PathBuf,
    /// Bytes from one place to the next
    #[arg(long)]
    stride: u64,
    /// Bytes to write at each place
    #[arg(long, default_value_t = BLOCK)]
    len: u64,
    /// How many places; all of them without it
    #[arg(long)]
    count: Option<u64>,
    /// Threads, each of which waits for its writes
    #[arg(long, default_value_t = 16)]
    threads: u64,
    #[command(flatten)]
    skip: Skip,
}

fn work(o: &Options, skip: &Blocks, places: u64, next: &AtomicU64) -> Result<()> {
    let file = sys::open_write(Path::new(&o.device), libc::O_DIRECT)?;
    let mut buf = sys::AlignedBuf::new(usize::try_from(o.len)?);
    loop {
        let n = next.fetch_add(1, Ordering::Relaxed);
        if n >= places {
            return Ok(());
        }
        let first = n * o.stride / BLOCK;
        if (first..first + o.len / BLOCK).any(|b| skip.contains(b)) {
            continue;
        }
        file.read_exact_at(&mut buf, n * o.stride)?;
        file.write_all_at(&buf, n * o.stride)?;
    }
}

/// Does it, and prints how many places there were, those that are skipped included.
pub fn run(o: &Options) -> Result<()> {
    anyhow::ensure!(
        o.stride > 0 && o.stride % BLOCK == 0 && o.len > 0 && o.len % BLOCK == 0,
        "stride and length are whole blocks"
    );
    let bytes = sys::size_of(&sys::open_read(&o.device, 0)?)?;
    let fit = bytes.saturating_sub(o.len) / o.stride + 1;
    let skip = o.skip.load()?;
    let places = o.count.map_or(fit, |c| c.min(fit));
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..o.threads)
            .map(|_| scope.spawn(|| work(o, &skip, places, &next)))
            .collect();
        all.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a thread has panicked")))
        })
    })?;
    println!("{places}");
    Ok(())
}
