// SPDX-License-Identifier: GPL-2.0-only
//! Comparing image and snapshot.
//!
//! The running COW file's own blocks are left out: the snapshot shows zeros there, or what lies on the
//! origin at the moment (COMPAT: section 5). Memory: two buffers of 1 MiB for each thread, and a bounded
//! list of what differs.

use crate::runs::MAX_REQUEST;
use anyhow::{Context, Result};
use indicatif::ProgressBar;
use ioctl_abi::cow::BLOCK_SIZE;
use ioctl_abi::ioctl::Extent;
use nix::fcntl::{posix_fadvise, PosixFadviseAdvice};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Runs of differing blocks that are kept; all blocks are counted.
pub const KEPT: usize = 1000;

/// What a comparison found.
#[derive(Clone, Debug, Default)]
pub struct Compared {
    /// Bytes read of each, the blocks that were left out included.
    pub bytes: u64,
    /// Blocks of the running COW file at the end.
    pub left_out: u64,
    /// How many blocks differ.
    pub blocks: u64,
    /// The first [`KEPT`] runs of blocks that differ, in ascending order.
    pub different: Vec<Extent>,
}

/// Blocks that differ, by their first block; runs that touch are one.
#[derive(Debug, Default)]
struct Found {
    runs: BTreeMap<u64, u64>,
    blocks: u64,
}

impl Found {
    /// Adds a block that is not in it yet.
    fn add(&mut self, block: u64) {
        self.blocks += 1;
        let before = self.runs.range(..block).next_back();
        let (start, mut len) = match before {
            Some((start, len)) if start + len == block => (*start, len + 1),
            _ => (block, 1),
        };
        if let Some(behind) = self.runs.remove(&(block + 1)) {
            len += behind;
        }
        self.runs.insert(start, len);
        // The last one goes: those who read the list begin at the front.
        if self.runs.len() > KEPT {
            self.runs.pop_last();
        }
    }
}

/// Whether `block` lies in one of `list` (ascending).
fn listed(list: &[Extent], block: u64) -> bool {
    let behind = list.partition_point(|e| e.start <= block);
    behind
        .checked_sub(1)
        .and_then(|i| list.get(i))
        .is_some_and(|e| block - e.start < e.len)
}

/// Where the running COW file lies now, in ascending order.
pub type Own<'a> = dyn Fn() -> Result<Vec<Extent>> + Sync + 'a;

struct Shared<'a> {
    a: &'a File,
    b: &'a File,
    bytes: u64,
    own: &'a Own<'a>,
    /// What `own` said at first: the file only grows while its snapshot is there.
    at_first: &'a [Extent],
    /// Where the next piece begins.
    next: AtomicU64,
    /// Somebody has failed: the others need not go on.
    stop: AtomicBool,
    found: Mutex<Found>,
    bar: &'a ProgressBar,
}

impl Shared<'_> {
    fn piece(&self, offset: u64, x: &mut [u8], y: &mut [u8]) -> Result<()> {
        self.a
            .read_exact_at(x, offset)
            .with_context(|| format!("reading the snapshot at byte {offset}"))?;
        self.b
            .read_exact_at(y, offset)
            .with_context(|| format!("reading the image at byte {offset}"))?;
        if x == y {
            return Ok(());
        }
        let mut differing: Vec<u64> = x
            .chunks(BLOCK_SIZE as usize)
            .zip(y.chunks(BLOCK_SIZE as usize))
            .zip(offset / BLOCK_SIZE..)
            .filter(|((p, q), block)| p != q && !listed(self.at_first, *block))
            .map(|(_, block)| block)
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        // Asked after the read: what had become the COW file's by then is in the list.
        let own = (self.own)()?;
        differing.retain(|block| !listed(&own, *block));
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        differing.iter().for_each(|block| found.add(*block));
        Ok(())
    }

    fn work(&self) -> Result<()> {
        let (mut x, mut y) = (vec![0; MAX_REQUEST as usize], vec![0; MAX_REQUEST as usize]);
        while !self.stop.load(Ordering::Relaxed) {
            let offset = self.next.fetch_add(MAX_REQUEST, Ordering::Relaxed);
            if offset >= self.bytes {
                break;
            }
            let n = MAX_REQUEST.min(self.bytes - offset);
            let (x, y) = (&mut x[..n as usize], &mut y[..n as usize]);
            if let Err(e) = self.piece(offset, x, y) {
                self.stop.store(true, Ordering::Relaxed);
                return Err(e);
            }
            self.bar.inc(n);
        }
        Ok(())
    }
}

/// Compares `bytes` bytes of the snapshot `a` and the image `b`, apart from the blocks that `own` names,
/// with `threads` readers.
///
/// # Errors
///
/// A read failed, one of the two is too short, or `own` failed.
pub fn compare(
    a: &File,
    b: &File,
    bytes: u64,
    own: &Own<'_>,
    threads: u8,
    bar: &ProgressBar,
) -> Result<Compared> {
    // Advice only, a failure changes nothing: all of both is read, and what was just written to the
    // image comes from its disk, not from memory.
    for file in [a, b] {
        let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    }
    let _ = posix_fadvise(b, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    let at_first = own()?;
    let shared = Shared {
        a,
        b,
        bytes,
        own,
        at_first: &at_first,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        found: Mutex::default(),
        bar,
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| scope.spawn(|| shared.work()))
            .collect();
        workers
            .into_iter()
            .map(|w| {
                w.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a reader thread has died")))
            })
            .collect::<Result<Vec<()>>>()
    })?;
    let found = shared
        .found
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok(Compared {
        bytes,
        left_out: own()?.iter().map(|e| e.len).sum(),
        blocks: found.blocks,
        different: found
            .runs
            .into_iter()
            .map(|(start, len)| Extent { start, len })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_touch_become_one_and_the_list_is_bounded() {
        let mut found = Found::default();
        for block in [5, 7, 6, 1, 2] {
            found.add(block);
        }
        let runs: Vec<_> = found.runs.iter().map(|(s, l)| (*s, *l)).collect();
        assert_eq!(runs, [(1, 2), (5, 3)]);
        for block in (100..).step_by(2).take(3 * KEPT) {
            found.add(block);
        }
        assert_eq!(found.runs.len(), KEPT);
        assert_eq!(found.blocks, 5 + 3 * KEPT as u64);
        assert_eq!(found.runs.first_key_value(), Some((&1, &2)));
    }

    #[test]
    fn a_block_is_listed_when_an_extent_holds_it() {
        let list = [Extent { start: 3, len: 2 }, Extent { start: 9, len: 1 }];
        let held: Vec<u64> = (0..12).filter(|b| listed(&list, *b)).collect();
        assert_eq!(held, [3, 4, 9]);
        assert!(!listed(&[], 0));
    }
}
