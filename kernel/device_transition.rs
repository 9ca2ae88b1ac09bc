// SPDX-License-Identifier: GPL-2.0-only
//! From snapshot to incremental and back: TRANSITION_INC, DROP_SNAPSHOT, TRANSITION_SNAP; and
//! RECONFIGURE, which changes a number only.

use crate::sys::errno::ESTALE;
use kernel::prelude::*;
use kernel::str::BStr;
use kernel::sync::Arc;

use crate::abi::cow;
use crate::device::{Device, Live};
use crate::cow_file::CowFile;
use crate::device_point::{
    guard, origin_extents, private_extents, Predecessor, Prepared, Wanted,
};
use crate::device_setup::cache_size_or_default;
use crate::epoch::Epoch;
use crate::logic::change_map::ChangeMap;
use crate::logic::extents::{locate, FileExtent};
use crate::logic::private_format::{RootState, Sibling};
use crate::logic::state::Call;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::snapshot_disk::SnapshotDisk;
use crate::tracker::Tracker;
use core::sync::atomic::Ordering;

/// The rules for writes while nothing is in transition: with `snapshot` at work, or in incremental mode.
/// Writes to `guarded`, which is the COW file or what of it is ours, are noticed.
pub(crate) fn steady_epoch(
    changes: &Arc<ChangeMap>,
    log: Option<&Arc<Log>>,
    snapshot: Option<&Arc<Snapshot>>,
    guarded: &[FileExtent],
) -> Result<KBox<Epoch>> {
    Ok(KBox::new(
        Epoch {
            changes: changes.clone(),
            previous: None,
            log: log.cloned(),
            previous_log: None,
            snapshot: snapshot.cloned(),
            coming: None,
            guard: guard(&[guarded])?,
        },
        GFP_KERNEL,
    )?)
}

/// Enters the blocks that received copies, in the map and on disk: they leave the COW file at `file`, and
/// what is in them was never written by the filesystem. For the next snapshot they are changed blocks.
fn mark_taken(
    changes: &ChangeMap,
    log: Option<&Arc<Log>>,
    snapshot: &Snapshot,
    file: &[FileExtent],
) {
    let mut runs = KVVec::new();
    let mut complete = true;
    for run in snapshot.space.taken_runs() {
        let (mut at, mut left) = (run.start, run.len);
        while let Some((block, n)) = locate(file, at).filter(|_| left != 0) {
            let n = n.min(left);
            changes.mark(block, n);
            complete &= runs.push((block, n), GFP_KERNEL).is_ok();
            at = at.saturating_add(n);
            left = left.saturating_sub(n);
        }
    }
    match log {
        Some(log) if complete => Log::mark_extents(log, runs.iter().copied()),
        // They are in the map in memory only: never to be believed after a crash.
        Some(log) => Log::abandon(log),
        None => {}
    }
}

/// A file, as another file's root names it.
fn sibling_of(file: &CowFile) -> Sibling {
    Sibling {
        nonce: file.ext.nonce,
        roots: file.ext.roots,
        ino: file.id.ino,
        igen: file.id.generation,
    }
}

/// Notes in the running record which file is about to take over, and keeps its marks until that has
/// happened: from the switch on its change map is not complete any more. What goes wrong ends the
/// record, which says so itself.
fn announce_successor(log: Option<&Arc<Log>>, prepared: &Prepared) {
    let (Some(log), Some(file)) = (log, prepared.file.file()) else { return };
    log.checkpoints.store(false, Ordering::Release);
    if prepared.log.log().is_none() {
        // No reload could find where it lies. Copies are going to be put there.
        Log::mark_extents(log, file.extents().iter().map(|e| (e.origin_block, e.len)));
        return;
    }
    let successor = sibling_of(file);
    let _ = Log::update_root(log, |root| root.successor = successor);
}

/// The file that was to take over will not. Before anything is done to it: a successor whose root says anything
/// else than that it was made ready has taken over.
fn withdraw_successor(log: Option<&Arc<Log>>) {
    let Some(log) = log else { return };
    let _ = Log::update_root(log, |root| root.successor = Sibling::default());
    log.checkpoints.store(true, Ordering::Release);
}

impl Device {
    /// Makes the new file the one that counts on disk. Until its root says so, a crash goes back to the
    /// old file, whose marks cover everything; from then on forward to the new one, which completes the
    /// old one's hand-over. What goes wrong ends a record, which says so itself; the snapshot is good.
    fn commit(&self, old: Option<&Arc<Log>>, tracker: &Tracker, prepared: &mut Prepared) {
        self.step("committing");
        let written = old.map_or(Ok(()), Log::write_final);
        let taken_over = prepared.log.log().is_some_and(|new| {
            let complete = written.is_ok();
            let live = Log::update_root_and_identity(new, |root| {
                root.state = RootState::Live;
                if !complete {
                    root.predecessor = Sibling::default();
                }
            });
            live.is_ok()
        });
        let close = |old: &Arc<Log>| {
            let closed = Log::update_root(old, |root| root.state = RootState::Closed);
            if closed.is_err() {
                // The last time that its roots are written.
                Log::abandon(old);
            }
        };
        if let Some(old) = old.filter(|_| !taken_over) {
            // Nothing on disk says that another file counts now, and from the switch on its marks are not all.
            close(old);
        }
        if let Some(epoch) = prepared.committed.take() {
            match self.switch(tracker, epoch) {
                Ok(old) => drop(old.wait()),
                Err(e) => self.step_error("committing", e),
            }
        }
        if let Some(old) = old {
            if taken_over {
                close(old);
            }
            Log::stop(old);
        }
    }

    /// TRANSITION_INC.
    pub(crate) fn transition_to_incremental(&self) -> Result {
        self.end_snapshot(Call::TransitionInc)
    }

    /// DROP_SNAPSHOT: the same, for a snapshot that has failed.
    pub(crate) fn drop_snapshot(&self) -> Result {
        self.end_snapshot(Call::DropSnapshot)
    }

    fn end_snapshot(&self, call: Call) -> Result {
        let mut op = self.op.lock();
        let live = (*op).as_mut().ok_or(ENOENT)?;
        live.close_node()?;
        let result = self.to_incremental(live, call);
        if result.is_err() {
            live.reopen_node();
        }
        result
    }

    /// The node is shut.
    fn to_incremental(&self, live: &mut Live, call: Call) -> Result {
        self.may(call)?;
        let file = live.file.as_mut().ok_or(EINVAL)?;
        let tracker = live.tracker.as_ref().ok_or(EINVAL)?;
        let private = private_extents(file.extents(), live.geometry)?;
        let cow_extents = Arc::new(origin_extents(&private)?, GFP_KERNEL)?;
        let epoch = steady_epoch(&live.changes, live.log.as_ref(), None, &private)?;
        let old = self.switch(tracker, epoch)?;
        // The point of no return.
        self.step("ending the snapshot");
        drop(old.wait());
        live.disk = None;
        if let Some(snapshot) = live.snapshot.take() {
            Snapshot::shutdown(&snapshot);
            tracker.forget_snapshot();
            mark_taken(&live.changes, live.log.as_ref(), &snapshot, file.extents());
        }
        live.snapshot_mode = false;
        live.free_at_point = None;
        // What is guarded from now on, with a record in it or without: others must not get any of it.
        let keep = live.geometry.private().end;
        let bytes = file.bytes_to_keep(keep);
        if let Some(log) = live.log.as_ref() {
            // Before the blocks go: a file that is longer than its list is still the same file. What
            // goes wrong ends the record, which says so itself.
            let _ = Log::update_extents(log, &private, |root| {
                root.snapshot = false;
                root.map_words = 0;
                root.file_bytes = bytes;
            });
        }
        self.step("truncating the COW file");
        match file.drop_data(keep) {
            Ok(()) => live.cow_extents = cow_extents,
            // Unmounted just now: the device is being reported as ended.
            Err(e) if e == ESTALE => {}
            // The file stays larger than it need be: nothing is lost.
            Err(e) => pr_warn!(
                "datto{}: the COW file keeps its size: error {}\n",
                self.minor(),
                e.to_errno()
            ),
        }
        self.show(live);
        Ok(())
    }

    /// TRANSITION_SNAP.
    pub(crate) fn transition_to_snapshot(
        this: &Arc<Self>,
        cow: &CStr,
        fallocated_mib: u64,
    ) -> Result {
        let mut op = this.op.lock();
        let live = (*op).as_mut().ok_or(ENOENT)?;
        live.close_node()?;
        let result = this
            .may(Call::TransitionSnap)
            .and_then(|()| Self::to_snapshot(this, live, cow, fallocated_mib));
        if result.is_err() {
            live.reopen_node();
        }
        result
    }

    fn to_snapshot(this: &Arc<Self>, live: &mut Live, cow: &CStr, fallocated_mib: u64) -> Result {
        // The new root names the file of now as the one before it: the one before that must be complete.
        match this.catch_up(live) {
            Err(e) if [EBUSY, EROFS, ENOMEM, ENOSPC, EINTR].contains(&e) => {
                pr_err!(
                    "datto{}: the COW file before this one is not complete yet (error {}), and would be lost: \
                     try again\n",
                    this.minor(),
                    e.to_errno()
                );
                return Err(e);
            }
            // It is, or never will be: its reader sees which.
            Ok(()) | Err(_) => {}
        }
        let file = live.file.as_ref().ok_or(EINVAL)?;
        let tracker = live.tracker.as_ref().ok_or(EINVAL)?;
        if live.outgrown() {
            pr_err!(
                "datto{}: {} has changed its size since it was set up, and what lies behind the old \
                 end is not tracked: dbdctl destroy {}, then set it up again\n",
                this.minor(),
                BStr::from_bytes(this.bdev_path().to_bytes()),
                this.minor()
            );
            return Err(EINVAL);
        }
        let private = private_extents(file.extents(), live.geometry)?;
        let retreat = steady_epoch(&live.changes, live.log.as_ref(), None, &private)?;
        let wanted = Wanted {
            cow,
            fallocated_mib,
            seqid: live.seqid.checked_add(1).ok_or(EOVERFLOW)?,
            uuid: live.uuid,
        };
        let predecessor = Predecessor {
            changes: &live.changes,
            private: &private,
            log: live.log.as_ref(),
            sibling: live.log.as_ref().map_or(Sibling::default(), |_| sibling_of(file)),
        };
        let (mut prepared, point) =
            Self::prepare(this, &live.origin, tracker, &wanted, Some(&predecessor))?;
        let snapshot = prepared.snapshot.clone();
        announce_successor(live.log.as_ref(), &prepared);
        live.freeze_ns = match this.take_point(&prepared.file, tracker, point) {
            Ok(held) => held,
            Err(e) => {
                this.retreat(tracker, &snapshot, retreat);
                // Copies may have reached the new file's blocks, which go back to the filesystem.
                let old_log = live.log.as_ref();
                mark_taken(&live.changes, old_log, &snapshot, prepared.file.extents());
                // The old record stands alone again.
                withdraw_successor(live.log.as_ref());
                drop(prepared);
                return Err(e);
            }
        };
        this.commit(live.log.as_ref(), tracker, &mut prepared);

        // The point of no return: the increment is complete, the next one has begun.
        let old_log = core::mem::replace(&mut live.log, prepared.log.keep());
        let old_changes = core::mem::replace(&mut live.changes, prepared.changes);
        let old_file = core::mem::replace(&mut live.file, prepared.file.keep());
        live.seqid = wanted.seqid;
        live.falloc_size = prepared.sizes.reported_bytes;
        live.cow_path = prepared.cow_path;
        live.cow_extents = prepared.cow_extents;
        live.snapshot = Some(prepared.snapshot);
        live.snapshot_mode = true;
        live.crash_blocks = 0;
        if let Some(old_log) = old_log {
            Log::finish(&old_log);
        }

        this.step("sealing the finished COW file");
        if let Some(old_file) = old_file {
            let header = cow::Header {
                flags: cow::FLAG_CLEAN | cow::FLAG_INDEX_ONLY,
                fpos: live.geometry.first_data_position(),
                fsize: live.geometry.data_offset(),
                seqid: wanted.seqid.saturating_sub(1),
                uuid: live.uuid,
                version: cow::VERSION,
                nr_changed_blocks: old_changes.count(),
            };
            match old_file.seal(&header, &old_changes) {
                Ok(()) => {
                    live.behind = false;
                    if let Some(log) = live.log.as_ref() {
                        let _ = Log::update_root(log, |root| root.predecessor = Sibling::default());
                    }
                }
                // The snapshot is as good as any. That the increment is not there, its reader sees: the
                // file is not marked clean. The poll and the next mount try again.
                Err(e) => {
                    pr_err!(
                        "datto{}: the finished COW file could not be completed: error {}. The new \
                         snapshot is good; without that file the next backup must be a full one.\n",
                        this.minor(),
                        e.to_errno()
                    );
                    live.behind = true;
                    Self::look_later(this);
                }
            }
        }
        match SnapshotDisk::add(this.minor(), snapshot.clone()) {
            Ok(disk) => live.disk = Some(disk),
            Err(e) => {
                pr_err!(
                    "datto{}: no snapshot node: error {}\n",
                    this.minor(),
                    e.to_errno()
                );
                Snapshot::fail(snapshot.as_arc_borrow(), e);
            }
        }
        this.show(live);
        Self::resume_auto_expand(this, live);
        Ok(())
    }

    /// RECONFIGURE.
    pub(crate) fn reconfigure(&self, cache_size: u64) -> Result {
        let op = self.op.lock();
        let live = op.as_ref().ok_or(ENOENT)?;
        live.close_node()?;
        let result = self.may(Call::Reconfigure);
        if result.is_ok() {
            let cache_size = cache_size_or_default(cache_size);
            self.view.lock().cache_size = cache_size;
            if let Some(snapshot) = live.snapshot.as_ref() {
                Snapshot::set_cache_limit(snapshot, cache_size);
            }
        }
        live.reopen_node();
        result
    }
}
