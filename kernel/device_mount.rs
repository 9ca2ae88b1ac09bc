// SPDX-License-Identifier: GPL-2.0-only
//! The life of a tracked device between an unmount and the next mount.
//!
//! When the filesystem goes away only what belongs to the filesystem is let go of: the inode, the
//! handle of the block device. Interception, change map, copies and log go on, block by block: the
//! writes of the unmount itself come after the notice, and so do fsck, dd and mkfs.
//!
//! A mount announces itself by the bios that it needs: the probe tells of the first one, which queues a
//! look ([`Device::look_soon`]); a slow poll makes sure. The COW file is then found by its inode number,
//! checked to lie where it lay, and protected again.

use crate::sys::errno::{EMEDIUMTYPE, ESTALE};
use kernel::prelude::*;
use kernel::str::BStr;
use kernel::sync::Arc;
use kernel::time::{delay::fsleep, msecs_to_jiffies, Delta};

use crate::cow_create::load_extents;
use crate::cow_file::CowFile;
use crate::device::{Device, Live, Watch, POLL, RELEASE};
use crate::events::UnmountHandler;
use crate::faults::{self, Fault};
use crate::log_seal::Keep;
use crate::logic::extents::FileExtent;
use crate::logic::private_format::Sibling;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::snapshot_disk::SnapshotDisk;
use crate::sys::superblock;
use crate::sys::vfs::FileId;

/// How often an unmounted device is looked at when nobody uses it, in milliseconds. Then, too, a
/// device that was quiet all that time is sealed.
const POLL_MS: u32 = 2000;
/// How soon after its first bio a mount is looked for: no more than so often while a device that is not
/// mounted is in use.
const SOON_MS: i64 = 20;
/// How often a shutdown asks, that long after one another, whether an operation has come to its end.
const SHUT_DOWN_TRIES: u32 = 100;

impl Device {
    /// The filesystem goes away. In the task that unmounts, under `s_umount`: waits for nothing.
    pub(crate) fn filesystem_gone(this: &Arc<Self>) {
        let mut view = this.view.lock();
        if view.unmounted {
            return;
        }
        view.unmounted = true;
        let (tracker, running) = (view.tracker.clone(), view.running.clone());
        drop(view);
        if let Some(snapshot) = running.as_ref() {
            snapshot.set_mounted(false);
        }
        if let Some(tracker) = tracker.as_ref() {
            tracker.listen(true);
        }
        Self::queue::<RELEASE>(this);
    }

    /// Lets go of the filesystem and the block device after an unmount, in a work item: not in the
    /// callback, which an operation on this device may be waiting for.
    pub(crate) fn let_go(this: &Arc<Self>) {
        let mut op = this.op.lock();
        let Some(live) = (*op).as_mut() else { return };
        if !this.unmounted() {
            return;
        }
        if let Some(file) = live.file.as_mut().filter(|file| file.is_gone()) {
            file.unmounted();
        }
        // Nobody finds the device busy because of us: it may be repartitioned, or go away.
        live.origin.close();
        Self::look_later(this);
    }

    /// The work item behind the first bio.
    pub(crate) fn look_soon(this: &Arc<Self>) {
        fsleep(Delta::from_millis(SOON_MS));
        Self::look_for_mount(this);
    }

    /// The work item behind the poll.
    pub(crate) fn poll_for_mount(this: &Arc<Self>) {
        if Self::look_for_mount(this) {
            Self::look_later(this);
        }
    }

    /// Starts to poll, if that is not done yet.
    pub(crate) fn look_later(this: &Arc<Self>) {
        let delay = msecs_to_jiffies(POLL_MS);
        let _ = this.outlet.queue().enqueue_delayed::<_, POLL>(this.clone(), delay);
    }

    /// Looks whether the filesystem is mounted again. Whether to go on looking.
    fn look_for_mount(this: &Arc<Self>) -> bool {
        let mut op = this.op.lock();
        let Some(live) = (*op).as_mut() else { return false };
        let Some(tracker) = live.tracker.clone() else { return false };
        if !this.unmounted() || this.chain_error() != 0 {
            tracker.listen(false);
            let _ = this.catch_up(live);
            return live.behind && this.chain_error() == 0;
        }
        if live.origin.device().is_gone() {
            this.end_chain(ENODEV);
            return false;
        }
        // Before looking: a mount that begins now announces itself again.
        let quiet = !tracker.rearm();
        match Self::adopt(this, live) {
            Ok(true) => {
                tracker.listen(false);
                if this.unmounted() {
                    // Just now: the callback may have come before that.
                    tracker.listen(true);
                }
                this.show(live);
                // Only now: who sees the device mounted finds the node open and the COW file before this
                // one complete.
                let mut view = this.view.lock();
                view.joining = false;
                view.unverified = false;
                drop(view);
                Self::rearm_auto_expand(this, live);
                if live.behind {
                    Self::look_later(this);
                }
                return false;
            }
            Ok(false) => this.view.lock().joining = false,
            Err(e) => {
                this.view.lock().joining = false;
                this.end_chain(e);
                return false;
            }
        }
        if quiet {
            if let Some(log) = live.log.as_ref() {
                // A power cut from now on costs nothing, until the next write. Failure ends the
                // record, which says so itself.
                let _ = Log::seal(log, live.snapshot.as_ref(), Keep::Changes, false);
            }
        }
        true
    }

    /// The tracking cannot be trusted any more.
    fn end_chain(&self, error: Error) {
        if self.break_chain(error.to_errno()) {
            self.report();
        }
    }

    /// Joins the mounted filesystem, if there is one. False: there is none.
    ///
    /// # Errors
    ///
    /// Why the chain has ended: it is mounted, but the COW file is not what it was.
    fn adopt(this: &Arc<Self>, live: &mut Live) -> Result<bool> {
        let handler: Arc<dyn UnmountHandler> = Arc::new(Watch(this.clone()), GFP_KERNEL)?;
        let file = live.file.as_mut().ok_or(EINVAL)?;
        let Some(found) = superblock::adopt(live.origin.device(), file.id, &handler) else {
            return Ok(false);
        };
        let say = |why: &str| {
            pr_err!(
                "datto{}: {} is mounted, but {}: {}\n",
                this.minor(),
                BStr::from_bytes(this.bdev_path().to_bytes()),
                "its COW file cannot be used any more",
                why
            );
        };
        let other_size = found.sectors.saturating_mul(512) != live.geometry.origin_bytes;
        match found.watch {
            // In our hands whatever comes now: DESTROY ends its protection and deletes it.
            Ok(watch) => file.watch = Some(watch),
            Err(_) if other_size => {}
            Err(e) if e == ESTALE => {
                say("the file is gone");
                return Err(ENOENT);
            }
            Err(e) => {
                say("it could not be protected");
                return Err(e);
            }
        }
        if other_size {
            say("the device has another size");
            return Err(EINVAL);
        }
        let mut view = this.view.lock();
        (view.unmounted, view.joining) = (false, true);
        drop(view);
        // The handle keeps the device as a mount does; without it I/O works just as well.
        let _ = live.origin.reopen(found.dev);
        file.place.dev = found.dev;
        if let Some(log) = live.log.as_ref() {
            // A mount for writing has met this question with its first write.
            if Log::at_rest(log).is_err_and(|e| e == EMEDIUMTYPE) {
                say("its medium was exchanged, or written to from elsewhere, while it was not mounted");
                return Err(EMEDIUMTYPE);
            }
        }
        match still_there(file) {
            Ok(true) => {}
            Ok(false) => {
                say("it lies somewhere else");
                return Err(ESTALE);
            }
            // Unmounted again: the callback may have come before we took note of the mount.
            Err(e) if e == ESTALE => {
                this.view.lock().unmounted = true;
                file.unmounted();
                live.origin.close();
                return Ok(false);
            }
            // Frozen, or no memory: it lay there when it was set up, and nobody could move it.
            Err(e) => this.step_error("comparing the COW file", e),
        }
        this.joined(live);
        Ok(true)
    }

    /// The filesystem is mounted, the COW file is in our hands.
    fn joined(&self, live: &mut Live) {
        if faults::active(Fault::SlowJoin) {
            fsleep(Delta::from_millis(500));
        }
        if let Some(log) = live.log.as_ref().filter(|_| live.crash_blocks != 0) {
            let _ = Log::update_root(log, |root| root.crash_blocks = live.crash_blocks);
        }
        // Not for ever when it fails: it is tried again.
        let _ = self.complete_predecessor(live);
        if let Some(snapshot) = live.snapshot.as_ref() {
            let view = self.view.lock();
            if !view.unmounted {
                snapshot.set_mounted(true);
            }
            drop(view);
            if live.disk.is_none() {
                match SnapshotDisk::add(self.minor(), snapshot.clone()) {
                    Ok(disk) => live.disk = Some(disk),
                    Err(e) => {
                        pr_err!("datto{}: no snapshot node: error {}\n", self.minor(), e.to_errno());
                        Snapshot::fail(snapshot.as_arc_borrow(), e);
                    }
                }
            }
        }
        pr_info!(
            "datto{}: {} is mounted, tracking goes on\n",
            self.minor(),
            BStr::from_bytes(self.bdev_path().to_bytes())
        );
    }

    /// Does what the mount could not: it was read-only, as an initramfs mounts the root. Nothing when there is
    /// nothing to be done; else why it is still to be done.
    pub(crate) fn catch_up(&self, live: &mut Live) -> Result {
        if live.behind && !self.unmounted() && self.chain_error() == 0 {
            return self.complete_predecessor(live);
        }
        Ok(())
    }

    /// A crash or an unmount has interrupted the hand-over of the file before: completes it.
    fn complete_predecessor(&self, live: &mut Live) -> Result {
        let (Some(log), Some(file)) = (live.log.as_ref(), live.file.as_ref()) else {
            live.behind = false;
            return Ok(());
        };
        let predecessor = log.lock().root.predecessor;
        if predecessor.nonce == 0 {
            live.behind = false;
            return Ok(());
        }
        let id = FileId {
            ino: predecessor.ino,
            generation: predecessor.igen,
        };
        match file.hand_over_other(id, &predecessor, &live.origin) {
            Ok(()) => pr_info!("datto{}: the COW file before this one is complete now\n", self.minor()),
            // Deleted meanwhile: nobody wants it.
            Err(e) if e == ENOENT || e == ESTALE => {}
            Err(e) => {
                // The poll, the next transition and the next mount try again.
                if !live.behind && e == EROFS {
                    pr_info!(
                        "datto{}: the COW file before this one is completed once it can be written to\n",
                        self.minor()
                    );
                } else if !live.behind {
                    pr_err!(
                        "datto{}: the COW file before this one could not be completed: error {}\n",
                        self.minor(),
                        e.to_errno()
                    );
                }
                live.behind = true;
                return Err(e);
            }
        }
        let _ = Log::update_root(log, |root| root.predecessor = Sibling::default());
        live.behind = false;
        Ok(())
    }

    /// Logs what went wrong in a step that can be done without.
    pub(crate) fn step_error(&self, what: &str, e: Error) {
        pr_warn!("datto{}: {}: error {}\n", self.minor(), what, e.to_errno());
    }

    /// The machine goes down: makes the COW file exact, while nobody writes any more. Waits for an operation
    /// for a moment only; where one is on its way still, a running snapshot will not be there again, its changes will.
    pub(crate) fn shut_down(&self) {
        // None begins meanwhile. One that has may hold what the map of the copies is made from.
        let mut op = self.op.try_lock();
        for _ in 0..SHUT_DOWN_TRIES {
            if op.is_some() {
                break;
            }
            fsleep(Delta::from_millis(SOON_MS));
            op = self.op.try_lock();
        }
        let view = self.view.lock();
        let (log, running, mounted) = (view.log.clone(), view.running.clone(), !view.unmounted);
        drop(view);
        let keep = if op.is_some() { Keep::Snapshot } else { Keep::Changes };
        if let Some(log) = log {
            match Log::seal(&log, running.as_ref(), keep, mounted) {
                Ok(()) => pr_info!("datto{}: sealed\n", self.minor()),
                Err(e) => self.step_error("sealing", e),
            }
        }
    }
}

/// Whether the file lies where we think; what it may have gained at its end does not matter.
fn still_there(file: &CowFile) -> Result<bool> {
    let live = file.enter()?;
    let open = live.open()?;
    let now = load_extents(file.place, file.layout, file.path_in_fs(), &open)?;
    Ok(is_prefix(file.extents(), &now))
}

/// All blocks of `part` are at the same places in `all`.
fn is_prefix(part: &[FileExtent], all: &[FileExtent]) -> bool {
    part.iter().all(|e| {
        crate::logic::extents::locate(all, e.file_block)
            .is_some_and(|(block, run)| block == e.origin_block && run >= e.len)
    })
}
