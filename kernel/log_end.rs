// SPDX-License-Identifier: GPL-2.0-only
//! The end of a record: in good order, because of an error, or for good.
//!
//! What must not happen is that a reload believes a record that has ended. So its roots are poisoned before
//! the first write goes unrecorded. A disk that fails just then may come back: a root that could not be
//! written is tried again, for as long as its block is ours. It is ours while the device has the file, and nobody
//! else writes to it: [`Log::stop`], [`Log::finish`] and [`Log::foreign_write`] end that, all under the lock or
//! heard of under it ([`Log::foreign_write`]'s bio waits for the lock), so that no write of ours comes later.

use crate::params;
use crate::region_log::{Log, OnDisk};
use crate::sys::{delayed::flush_delayed, errno::EMEDIUMTYPE};
use core::sync::atomic::Ordering;
use kernel::prelude::*;
use kernel::sync::Arc;

/// A root that cannot be written is tried again after a checkpoint's time, then after twice that, and so on to
/// this power of two: eleven minutes by default.
const MOST_DOUBLED: u8 = 6;

impl Log {
    /// Ends the record because of `error`: nobody waits for it any more, and no reload will believe
    /// what is on disk.
    pub(crate) fn lose(this: &Arc<Self>, disk: &mut OnDisk, error: Error) {
        if this.is_stopped() {
            return;
        }
        if error == EMEDIUMTYPE {
            // Nothing is written there, the roots included: whose blocks these are is not known. A reload will
            // find another superblock, as we have.
            this.other_medium(error);
            this.stopped.store(true, Ordering::Release);
            pr_err!(
                "{}: a superblock is not what was written last: what else was changed from elsewhere is not known\n",
                this.origin.name()
            );
            return;
        }
        let poisoned = Self::poison(this, disk);
        // After the roots: now writes go unrecorded.
        this.stopped.store(true, Ordering::Release);
        pr_err!(
            "{}: changes are no longer recorded on disk (error {}): they are still tracked in memory, but \
             after a reboot or a crash the next backup must be a full one\n",
            this.origin.name(),
            error.to_errno()
        );
        if let Err(e) = poisoned {
            pr_err!(
                "{}: that the record has ended could not be written to disk (error {}). It is tried again; until the \
                 kernel log says that it has been written do not reload this COW file after a reboot or a crash\n",
                this.origin.name(),
                e.to_errno()
            );
            Self::say_later(this);
        }
    }

    /// Poisons the roots that are ours, and notes whether all of them are.
    fn poison(this: &Arc<Self>, disk: &mut OnDisk) -> Result {
        // A block that belongs to somebody else now is left alone: whose write makes it unreadable to us.
        let poisoned = disk.poison(this.foreign_roots());
        this.unsaid.store(poisoned.is_err(), Ordering::Release);
        poisoned
    }

    /// Tries again to write that the record has ended. From the log's own delayed work.
    pub(crate) fn say_end(this: &Arc<Self>) {
        let mut disk = this.lock();
        if !this.is_unsaid() {
            return;
        }
        // Time has passed. A root that nobody would believe need not be written; and where the medium was exchanged
        // it must not.
        let said = disk.roots_not_ours().and_then(|others| {
            this.leave_roots(others);
            Self::poison(this, &mut disk)
        });
        drop(disk);
        match said {
            Ok(()) => pr_info!(
                "{}: that the record of changes has ended is on disk now\n",
                this.origin.name()
            ),
            Err(_) => Self::say_later(this),
        }
    }

    fn say_later(this: &Arc<Self>) {
        let tries = this.tries.load(Ordering::Relaxed).min(MOST_DOUBLED);
        this.tries.store(tries.saturating_add(1), Ordering::Relaxed);
        Self::work_later(this, params::checkpoint_ms().saturating_mul(1 << tries));
    }

    /// Ends the record in good order. Whoever waits is let go. The root on disk stays as it is, and the
    /// caller has seen to it that nobody will believe it. Nothing is written afterwards: the file may go. Sleeps.
    pub(crate) fn stop(this: &Arc<Self>) {
        let disk = this.lock();
        this.unsaid.store(false, Ordering::Release);
        this.stopped.store(true, Ordering::Release);
        drop(disk);
        Self::wake(this);
    }

    /// Waits until no work of the log runs or will run. After [`Log::stop`] or [`Log::abandon`], with no
    /// epoch that has it. Nothing is written afterwards: the file may go. Sleeps; not from the log's own work.
    pub(crate) fn finish(this: &Arc<Self>) {
        let disk = this.lock();
        this.unsaid.store(false, Ordering::Release);
        drop(disk);
        // Work that runs now may queue the delayed one once more; that one finds nothing to do.
        this.flush_queue();
        flush_delayed(&this.checkpoint_work);
        this.flush_queue();
    }

    /// Poisons what is on disk and ends the record: for a file that must never be loaded again. Tried once more
    /// where that could not be written before.
    pub(crate) fn abandon(this: &Arc<Self>) {
        let mut disk = this.lock();
        if !this.is_stopped() || this.is_unsaid() {
            let poisoned = Self::poison(this, &mut disk);
            this.stopped.store(true, Ordering::Release);
            if let Err(e) = poisoned {
                pr_warn!(
                    "{}: the end of the tracking was not recorded: error {}\n",
                    this.origin.name(),
                    e.to_errno()
                );
                Self::say_later(this);
            }
        }
        drop(disk);
        Self::wake(this);
    }
}
