// SPDX-License-Identifier: GPL-2.0-only
//! From snapshot to incremental and back: TRANSITION_INC, DROP_SNAPSHOT, TRANSITION_SNAP; and
//! RECONFIGURE, which changes a number only.

use crate::sys::errno::ESTALE;
use kernel::prelude::*;
use kernel::str::BStr;
use kernel::sync::Arc;

use crate::abi::cow;
use crate::device::{Device, Live};
use crate::device_point::{guard, origin_extents, private_extents, Predecessor, Wanted};
use crate::device_setup::cache_size_or_default;
use crate::epoch::Epoch;
use crate::logic::change_map::ChangeMap;
use crate::logic::extents::{locate, FileExtent};
use crate::logic::state::Call;
use crate::snapshot::Snapshot;
use crate::snapshot_disk::SnapshotDisk;

/// The rules for writes in incremental mode.
fn incremental_epoch(changes: &Arc<ChangeMap>, private: &[FileExtent]) -> Result<KBox<Epoch>> {
    Ok(KBox::new(
        Epoch {
            changes: changes.clone(),
            previous: None,
            snapshot: None,
            guard: guard(&[private])?,
        },
        GFP_KERNEL,
    )?)
}

/// Enters the blocks that received copies: they leave the COW file at `file`, and what is in them was
/// never written by the filesystem. For the next snapshot they are changed blocks.
fn mark_taken(changes: &ChangeMap, snapshot: &Snapshot, file: &[FileExtent]) {
    for run in snapshot.space.taken_runs() {
        let (mut at, mut left) = (run.start, run.len);
        while let Some((block, n)) = locate(file, at).filter(|_| left != 0) {
            let n = n.min(left);
            changes.mark(block, n);
            at = at.saturating_add(n);
            left = left.saturating_sub(n);
        }
    }
}

impl Device {
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
        let old = self.switch(tracker, incremental_epoch(&live.changes, &private)?)?;
        // The point of no return.
        self.step("ending the snapshot");
        drop(old.wait());
        live.disk = None;
        if let Some(snapshot) = live.snapshot.take() {
            Snapshot::shutdown(&snapshot);
            tracker.forget_snapshot();
            mark_taken(&live.changes, &snapshot, file.extents());
        }
        live.free_at_point = None;
        self.step("truncating the COW file");
        match file.drop_data() {
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
        let retreat = incremental_epoch(&live.changes, &private)?;
        let wanted = Wanted {
            cow,
            fallocated_mib,
            seqid: live.seqid.checked_add(1).ok_or(EOVERFLOW)?,
            uuid: live.uuid,
        };
        let predecessor = Predecessor {
            changes: &live.changes,
            private: &private,
        };
        let (prepared, point) =
            Self::prepare(this, &live.origin, tracker, &wanted, Some(&predecessor))?;
        let snapshot = prepared.snapshot.clone();
        live.freeze_ns = match this.take_point(&prepared.file, tracker, point) {
            Ok(held) => held,
            Err(e) => {
                this.retreat(tracker, &snapshot, retreat);
                // Copies may have reached the new file's blocks, which go back to the filesystem.
                mark_taken(&live.changes, &snapshot, prepared.file.extents());
                return Err(e);
            }
        };

        // The point of no return: the increment is complete, the next one has begun.
        let old_changes = core::mem::replace(&mut live.changes, prepared.changes);
        let old_file = core::mem::replace(&mut live.file, prepared.file.keep());
        live.seqid = wanted.seqid;
        live.falloc_size = prepared.sizes.reported_bytes;
        live.cow_path = prepared.cow_path;
        live.cow_extents = prepared.cow_extents;
        live.snapshot = Some(prepared.snapshot);

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
            let sealed = old_file.seal(&header, &mut |first, out: &mut [u64]| {
                old_changes.fill_index(first, out);
            });
            if let Err(e) = sealed {
                // The snapshot is as good as any. That the increment is lost, its reader sees: the
                // file is not marked clean.
                pr_err!(
                    "datto{}: the finished COW file could not be completed: error {}. The new \
                     snapshot is good; the next backup must be a full one.\n",
                    this.minor(),
                    e.to_errno()
                );
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
            self.view.lock().cache_size = cache_size_or_default(cache_size);
        }
        live.reopen_node();
        result
    }
}
