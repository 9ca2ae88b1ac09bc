// SPDX-License-Identifier: GPL-2.0-only
//! Comparing image and snapshot.
//!
//! The running COW file's own blocks are left out: the snapshot shows zeros there, or what lies on the
//! origin at the moment (COMPAT: section 5).

use crate::runs::MAX_REQUEST;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use ioctl_abi::cow::BLOCK_SIZE;
use ioctl_abi::ioctl::Extent;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Bytes compared.
    pub bytes: u64,
    /// Runs of blocks that differ, in ascending order.
    pub different: Vec<Extent>,
}

/// Whether `block` lies in one of `list` (ascending).
fn listed(list: &[Extent], block: u64) -> bool {
    let behind = list.partition_point(|e| e.start <= block);
    behind
        .checked_sub(1)
        .and_then(|i| list.get(i))
        .is_some_and(|e| block < e.start + e.len)
}

/// Compares `bytes` bytes of two files, apart from the blocks in `skip` (ascending), with `threads`
/// readers.
///
/// # Errors
///
/// A read failed, or one of them is too short.
pub fn compare(
    a: &File,
    b: &File,
    bytes: u64,
    skip: &[Extent],
    threads: u8,
    bar: &ProgressBar,
) -> Result<Compared> {
    let next = AtomicU64::new(0);
    let found: Mutex<Vec<u64>> = Mutex::new(Vec::new());
    let work = || -> Result<()> {
        let (mut x, mut y) = (vec![0; MAX_REQUEST as usize], vec![0; MAX_REQUEST as usize]);
        loop {
            let offset = next.fetch_add(MAX_REQUEST, Ordering::Relaxed);
            if offset >= bytes {
                return Ok(());
            }
            let n = MAX_REQUEST.min(bytes - offset) as usize;
            let (x, y) = (&mut x[..n], &mut y[..n]);
            a.read_exact_at(x, offset)
                .with_context(|| format!("reading the snapshot at {offset}"))?;
            b.read_exact_at(y, offset)
                .with_context(|| format!("reading the image at {offset}"))?;
            if x != y {
                let first = offset / BLOCK_SIZE;
                let bad: Vec<u64> = x
                    .chunks(BLOCK_SIZE as usize)
                    .zip(y.chunks(BLOCK_SIZE as usize))
                    .zip(first..)
                    .filter(|((p, q), block)| p != q && !listed(skip, *block))
                    .map(|(_, block)| block)
                    .collect();
                found
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(bad);
            }
            bar.inc(n as u64);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|w| {
                w.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a reader thread has died")))
            })
            .collect::<Result<Vec<()>>>()
    })?;
    let mut blocks = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    blocks.sort_unstable();
    let mut different: Vec<Extent> = Vec::new();
    for block in blocks {
        match different.last_mut() {
            Some(e) if e.start + e.len == block => e.len += 1,
            _ => different.push(Extent {
                start: block,
                len: 1,
            }),
        }
    }
    Ok(Compared { bytes, different })
}
