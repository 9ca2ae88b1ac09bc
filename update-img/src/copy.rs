// SPDX-License-Identifier: GPL-2.0-only
//! Copying the changed blocks.
//!
//! One thread walks the change map and hands out requests; several read and write them, so that many
//! reads are under way at once and scattered blocks do not wait for one another. Memory: one buffer
//! of at most 1 MiB for each of those threads.

use crate::runs::{requests, Request, MAX_REQUEST};
use crate::stage::Stage;
use anyhow::{anyhow, Context, Result};
use indicatif::ProgressBar;
use ioctl_abi::ioctl::Extent;
use nix::fcntl::{posix_fadvise, PosixFadviseAdvice};
use nix::libc;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::{Mutex, PoisonError};

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Changed blocks that the map named.
    pub blocks: u64,
    /// Bytes read from the snapshot and written to the image.
    pub bytes: u64,
    /// Read requests, as many writes.
    pub requests: u64,
}

/// Requests handed out together, when they are small: for a block of 4 KiB, taking turns at the queue
/// costs as much as reading it does.
const BATCH: usize = 16;

/// What direct reads want of a buffer's address, on any disk.
const PAGE: usize = 4096;

struct Shared<'a> {
    from: &'a File,
    to: &'a File,
    bar: &'a ProgressBar,
    stage: &'a Stage,
    bytes: AtomicU64,
    count: AtomicU64,
    first_error: Mutex<Option<anyhow::Error>>,
    stop: AtomicBool,
}

impl Shared<'_> {
    fn fail(&self, error: anyhow::Error) {
        self.first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.stop.store(true, Ordering::SeqCst);
    }

    fn one(&self, r: Request, buffer: &mut [u8]) -> Result<()> {
        let buffer = &mut buffer[..r.len as usize];
        // `read_exact` takes an end of file as an error: the C tool counted it as success.
        self.from
            .read_exact_at(buffer, r.offset)
            .with_context(|| format!("reading {} bytes at {} of the snapshot", r.len, r.offset))?;
        self.stage
            .write(|| self.to.write_all_at(buffer, r.offset))?
            .map_err(|e| match e.raw_os_error() {
                Some(libc::EFBIG) => anyhow::Error::new(e).context(
                    "files may not become so large here: a limit of this process (ulimit -f), or of the \
                     filesystem",
                ),
                _ => anyhow::Error::new(e),
            })
            .with_context(|| format!("writing {} bytes at {} of the image", r.len, r.offset))?;
        self.bytes.fetch_add(r.len, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.bar.inc(r.len);
        Ok(())
    }

    fn work(&self, queue: &Mutex<Receiver<Vec<Request>>>) {
        let mut buffer = vec![0; MAX_REQUEST as usize + PAGE];
        let aligned = buffer.as_ptr().align_offset(PAGE).min(PAGE);
        let buffer = &mut buffer[aligned..][..MAX_REQUEST as usize];
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(batch) = next else { return };
            for request in batch {
                if self.stop.load(Ordering::SeqCst) {
                    // The queue is drained, so that the sender never blocks.
                    break;
                }
                if let Err(e) = self.one(request, buffer) {
                    self.fail(e);
                }
            }
        }
    }
}

/// Requests that are gathered for one worker.
#[derive(Default)]
struct Batch {
    requests: Vec<Request>,
    bytes: u64,
}

impl Batch {
    /// Adds one; they come back when they are enough.
    fn add(&mut self, request: Request) -> Option<Vec<Request>> {
        self.bytes += request.len;
        self.requests.push(request);
        if self.requests.len() < BATCH && self.bytes < MAX_REQUEST {
            return None;
        }
        self.bytes = 0;
        Some(std::mem::take(&mut self.requests))
    }
}

/// The same block device once more, past the page cache: what is read once must not drive out of it what the
/// machine works with. `None`: it is a file, or cannot be opened like that.
fn direct(device: &File) -> Option<File> {
    if !device.metadata().ok()?.file_type().is_block_device() {
        return None;
    }
    File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", device.as_raw_fd()))
        .ok()
}

/// Copies all `runs` from `from` to `to`, with `depth` requests under way, and flushes `to`. `stage` says how far
/// it has come, also when it fails.
///
/// # Errors
///
/// The first thing that went wrong, be it a run that could not be found out, a read or a write.
pub fn copy<E: Into<anyhow::Error>>(
    from: &File,
    to: &File,
    device_bytes: u64,
    runs: impl Iterator<Item = Result<Extent, E>>,
    depth: u8,
    bar: &ProgressBar,
    stage: &Stage,
) -> Result<Done> {
    // No read-ahead: between changed blocks it would read what did not change. Advice only, so a
    // failure changes nothing.
    let _ = posix_fadvise(from, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM);
    let direct = direct(from);
    let shared = Shared {
        from: direct.as_ref().unwrap_or(from),
        to,
        bar,
        stage,
        bytes: AtomicU64::new(0),
        count: AtomicU64::new(0),
        first_error: Mutex::new(None),
        stop: AtomicBool::new(false),
    };
    let mut blocks = 0;
    let (send, receive) = sync_channel(usize::from(depth) * 2);
    let queue = Mutex::new(receive);
    std::thread::scope(|scope| {
        let (queue, shared) = (&queue, &shared);
        let workers: Vec<_> = (0..depth.max(1))
            .map(|_| scope.spawn(move || shared.work(queue)))
            .collect();
        let mut batch = Batch::default();
        'all: for run in runs {
            let run = match run {
                Ok(run) => run,
                Err(e) => {
                    shared.fail(e.into());
                    break;
                }
            };
            blocks += run.len;
            for request in requests(run, device_bytes) {
                if shared.stop.load(Ordering::SeqCst) {
                    break 'all;
                }
                if let Some(full) = batch.add(request) {
                    if send.send(full).is_err() {
                        break 'all;
                    }
                }
            }
        }
        // Fails only when no worker is left, which is noticed below.
        let _ = send.send(batch.requests);
        drop(send);
        for worker in workers {
            if worker.join().is_err() {
                shared.fail(anyhow!("a worker thread has died"));
            }
        }
    });
    let error = shared
        .first_error
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = error {
        return Err(error);
    }
    to.sync_all().context("flushing the image to disk")?;
    stage.updated()?;
    Ok(Done {
        blocks,
        bytes: shared.bytes.into_inner(),
        requests: shared.count.into_inner(),
    })
}
