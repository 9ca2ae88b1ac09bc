// SPDX-License-Identifier: GPL-2.0-only
//! What the engine and the filesystem side tell a device, and how a failure is made known: a line in
//! the kernel log that names device, reason and next step, and a uevent on the control node.

use crate::sys::errno::{EMEDIUMTYPE, EOPNOTSUPP, ESTALE};
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::{Arc, SetOnce};
use kernel::workqueue::Queue;

use crate::sys::queues::OwnQueue;
use crate::sys::kobject::EventSource;

/// What the engine tells a device. Any context: all of these only note it and queue work.
pub(crate) trait SnapshotEvents: Send + Sync {
    /// The snapshot has failed with `errno` (negative). Once for each snapshot.
    fn failed(&self, errno: i32);

    /// Free space of the COW file has fallen below the watermark. Once for each crossing.
    fn space_low(&self);

    /// Somebody else writes to the COW file's index in incremental mode: the chain has ended with
    /// `errno` (negative). May be called more than once.
    fn chain_broken(&self, errno: i32);

    /// The medium below the device is another one: chain and snapshot have ended with `errno` (negative), and
    /// nothing may be written to places that we remember. Process context.
    fn other_medium(&self, errno: i32);

    /// Somebody uses the device although its filesystem is not mounted: it may be being mounted. Once
    /// until [`crate::tracker::Tracker::rearm`].
    fn used_while_unmounted(&self);
}

/// What the COW file's filesystem tells its device.
pub(crate) trait UnmountHandler: Send + Sync {
    /// The filesystem goes away now. May sleep; `s_umount` is held. When this returns, nobody
    /// writes to the COW file's blocks any more.
    fn unmounted(&self);
}

/// Where reports go, shared by all devices.
pub(crate) struct Outlet {
    queue: OwnQueue,
    source: SetOnce<EventSource>,
}

impl Outlet {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                queue: OwnQueue::control()?,
                source: SetOnce::new(),
            },
            GFP_KERNEL,
        )?)
    }

    /// Names the object that uevents come from.
    pub(crate) fn set_source(&self, source: Option<EventSource>) {
        if let Some(source) = source {
            self.source.populate(source);
        }
    }

    /// The queue for a device's own work items.
    pub(crate) fn queue(&self) -> &Queue {
        self.queue.queue()
    }

    /// Waits until all work items have returned.
    pub(crate) fn flush(&self) {
        self.queue.flush();
    }

    /// Reports that the snapshot, or all of the device, has failed. May sleep.
    pub(crate) fn report_failure(&self, minor: u32, bdev: &CStr, errno: i32, what: Failure) {
        let bdev = bdev.to_bytes();
        match what {
            Failure::Snapshot => pr_err!(
                "datto{}: the snapshot of {} has failed: {} ({}). Reads of it fail, the device itself \
                 is not affected and its changes are still tracked. Next: dbdctl drop-snapshot {}, \
                 then take a new snapshot.\n",
                minor,
                kernel::str::BStr::from_bytes(bdev),
                reason(errno),
                errno,
                minor
            ),
            Failure::Chain => pr_err!(
                "datto{}: {} is no longer tracked: {} ({}). Next: dbdctl destroy {}, then set it up \
                 again; the next backup must be a full one.\n",
                minor,
                kernel::str::BStr::from_bytes(bdev),
                reason(errno),
                errno,
                minor
            ),
        }
        self.announce(minor, errno, what);
    }

    /// Sends the uevent alone, where the log has a line of its own. May sleep.
    pub(crate) fn announce(&self, minor: u32, errno: i32, what: Failure) {
        if let Err(e) = self.send(minor, errno, what) {
            pr_warn!("datto{}: no uevent sent: {}\n", minor, e.to_errno());
        }
    }

    fn send(&self, minor: u32, errno: i32, what: Failure) -> Result {
        let Some(source) = self.source.as_ref() else {
            return Ok(());
        };
        let event = match what {
            Failure::Snapshot => c"DATTO_EVENT=snapshot-failed",
            Failure::Chain => c"DATTO_EVENT=tracking-ended",
        };
        let minor = CString::try_from_fmt(fmt!("DATTO_MINOR={minor}"))?;
        let errno = CString::try_from_fmt(fmt!("DATTO_ERROR={errno}"))?;
        source.changed([event, &minor, &errno])
    }
}

/// How much has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Only the snapshot: change tracking goes on.
    Snapshot,
    /// The tracking itself.
    Chain,
}

/// What an errno means for a snapshot.
fn reason(errno: i32) -> &'static str {
    match Error::from_errno(errno) {
        EFBIG => "the COW file is full (make it larger, or switch auto-expand on)",
        ENOSPC => "no space left for the COW file",
        EIO => "an I/O error on the device or its COW file",
        ENOMEM => "not enough memory",
        ESTALE => "somebody else wrote to the blocks of the COW file",
        EMEDIUMTYPE => "its medium was exchanged, or written to from elsewhere, while it was not mounted",
        ENODEV => "its filesystem was unmounted, or the disk is gone",
        EOPNOTSUPP => "an operation that leaves no old data to keep, such as a secure erase",
        _ => "see the messages above",
    }
}
