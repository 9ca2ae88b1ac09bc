// SPDX-License-Identifier: GPL-2.0-only
//! Taking turns on a disk, before a filesystem of it is frozen.
//!
//! `freeze_super` stops writers first and writes back then, and for that waits until no other filesystem of the
//! same disk is being written back (`sync_inodes_sb`; `wb_switch_rwsem` is the disk's). Measured with 24
//! partitions that were set up at once: writers held off for more than a minute. So there is one of our freezes
//! on a disk at a time, from the writing back before it on, and each waits for others' `sync` while nobody is
//! stopped yet. One that begins in the moment between the look and the freeze is still waited for.
//!
//! No lock is held in a turn, and what waits for one can be killed: a disk that hangs keeps up nobody but
//! its own filesystems.

use crate::sys::{
    errno::ETIMEDOUT,
    ffi::NoIo,
    superblock::ActiveSuper,
    task,
};
use kernel::{
    prelude::*,
    sync::global_lock,
    time::{delay::fsleep, Delta, Instant, Monotonic},
};

/// How often is looked.
const LOOK_MS: i64 = 2;
/// How long others' writing back is waited for.
const SYNCS_MS: i64 = 60_000;

global_lock! {
    // SAFETY: Initialised in `init`, which the module calls before anything else.
    unsafe(uninit) static BUSY: Mutex<KVec<usize>> = KVec::new();
}

/// To be called once, before anything else of this module.
///
/// # Safety
///
/// Not called twice.
pub(crate) unsafe fn init() {
    // SAFETY: The caller's promise.
    unsafe { BUSY.init() }
}

/// The only turn on its disk. Ends when dropped.
pub(crate) struct Turn(usize);

impl Turn {
    /// Waits for all earlier ones on the disk of `sb` to end. May sleep; hold nothing frozen.
    ///
    /// # Errors
    ///
    /// EINTR: the task is being killed; ENOMEM.
    pub(crate) fn wait(sb: &ActiveSuper) -> Result<Self> {
        let disk = sb.disk();
        // A turn may end while its filesystem is frozen: reclaim must not wait for that one with the lock held.
        let _no_io = NoIo::enter();
        loop {
            let mut busy = BUSY.lock();
            if !busy.contains(&disk) {
                busy.push(disk, GFP_KERNEL)?;
                return Ok(Self(disk));
            }
            drop(busy);
            look_again()?;
        }
    }

    /// Waits until nobody writes back a filesystem of that disk. May sleep.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT: it took too long; EINTR: the task is being killed.
    pub(crate) fn wait_for_syncs(&self, sb: &ActiveSuper) -> Result {
        let since = Instant::<Monotonic>::now();
        while sb.disk_syncs() {
            if since.elapsed().as_millis() > SYNCS_MS {
                pr_err!(
                    "another filesystem of the disk was being written back for {} s (sync): nothing was frozen\n",
                    SYNCS_MS / 1000
                );
                return Err(ETIMEDOUT);
            }
            look_again()?;
        }
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut busy = BUSY.lock();
        busy.retain(|disk| *disk != self.0);
        if busy.is_empty() {
            // A static is never dropped: the module leaves no memory behind.
            *busy = KVec::new();
        }
    }
}

fn look_again() -> Result {
    if task::is_killed() {
        return Err(EINTR);
    }
    fsleep(Delta::from_millis(LOOK_MS));
    Ok(())
}
