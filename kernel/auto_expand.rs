// SPDX-License-Identifier: GPL-2.0-only
//! Growing the COW file: EXPAND, and growing by itself at a watermark.
//!
//! Growing is work of the tracked filesystem, whose own writes may be waiting for room in the COW
//! file. So no held write ever waits for it: it starts while there is room, in a work item, and when
//! copies outrun it the snapshot fails as it would without.
//!
//! Blocks that the file gains after the point may have belonged to another file at the point. Copies
//! go only to those that the snapshot does not need any more: free at the point, or preserved
//! already. What was free at the point says the snapshot's own filesystem; the list is taken in the
//! calling task, for the mount needs one.

use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;

use crate::abi::ioctl::Extent;
use crate::device::{Device, Live};
use crate::device_point::origin_extents;
use crate::device_status::AutoExpand;
use crate::device_transition::steady_epoch;
use crate::free_at_point::free_at_point;
use crate::logic::extents::FileExtent;
use crate::logic::sizes::{mib_to_bytes, MIB};
use crate::logic::space::Segment;
use crate::logic::state::Call;
use crate::region_log::Log;
use crate::snapshot::Snapshot;

/// Steps that one crossing of the watermark leads to at most: a step may gain nothing usable.
const STEPS: u32 = 8;

/// Least room at which growing starts, in bytes.
const MIN_WATERMARK: u64 = 16 * MIB;

/// Free blocks below which the file grows: half a step, so that the next one is ready before this one
/// is used up, but not so much of a small file that it would grow at once.
fn watermark(step_mib: u64, total_blocks: u64) -> u64 {
    let step = step_mib.saturating_mul(MIB) / 2;
    (step.max(MIN_WATERMARK) / 4096).min(total_blocks / 2)
}

fn bytes(mib: u64) -> Result<u64> {
    mib_to_bytes(mib).map_err(|e| Error::from_errno(e.negative()))
}

/// Those blocks of the gained extents that may take copies, as segments of the file.
fn usable(gained: &[FileExtent], free: &[Extent], snapshot: &Snapshot) -> Result<KVVec<Segment>> {
    let mut out: KVVec<Segment> = KVVec::new();
    for e in gained {
        let mut i = 0;
        while i < e.len {
            let block = e.origin_block.saturating_add(i);
            let left = e.len.saturating_sub(i);
            let run = match free_run(free, block) {
                0 if snapshot.preserved.all(block, 1) => 1,
                0 => {
                    i = i.saturating_add(1);
                    continue;
                }
                n => n.min(left),
            };
            let start = e.file_block.saturating_add(i);
            match out.last_mut() {
                Some(last) if last.end() == start => last.len = last.len.saturating_add(run),
                _ => out.push(Segment { start, len: run }, GFP_KERNEL)?,
            }
            i = i.saturating_add(run);
        }
    }
    Ok(out)
}

/// How many blocks from `block` on the sorted list holds without a gap.
fn free_run(free: &[Extent], block: u64) -> u64 {
    let i = free.partition_point(|e| e.start.saturating_add(e.len) <= block);
    match free.get(i) {
        Some(e) if e.start <= block => e.start.saturating_add(e.len).saturating_sub(block),
        _ => 0,
    }
}

impl Device {
    /// EXPAND_COW_FILE.
    pub(crate) fn expand(&self, mib: u64) -> Result {
        let mut op = self.op.lock();
        let live = (*op).as_mut().ok_or(ENOENT)?;
        self.may(Call::Expand)?;
        let add = bytes(mib)?;
        if add == 0 {
            return Ok(());
        }
        // The snapshot may have failed while it was read: then the answer is that of a failed one.
        let free = self.free_at_point(live).or_else(|e| self.may(Call::Expand).and(Err(e)))?;
        let gained = self.grow(live, add, 0, &free)?;
        if gained == 0 {
            pr_warn!(
                "datto{}: the COW file has grown, but on blocks that the snapshot still needs: no \
                 more room for copies\n",
                self.minor()
            );
        }
        Ok(())
    }

    /// RECONFIGURE_AUTO_EXPAND; a step of 0 switches it off.
    pub(crate) fn set_auto_expand(this: &Arc<Self>, step_mib: u64, reserve_mib: u64) -> Result {
        let mut op = this.op.lock();
        let live = (*op).as_mut().ok_or(ENOENT)?;
        this.may(Call::AutoExpand)?;
        bytes(step_mib)?;
        bytes(reserve_mib)?;
        if step_mib == 0 {
            this.view.lock().auto_expand = None;
            live.free_at_point = None;
            if let Some(snapshot) = live.snapshot.as_ref() {
                snapshot.set_low_water(0);
            }
            return Ok(());
        }
        live.free_at_point =
            Some(this.free_at_point(live).or_else(|e| this.may(Call::AutoExpand).and(Err(e)))?);
        let auto = AutoExpand {
            step_mib,
            reserve_mib,
        };
        this.view.lock().auto_expand = Some(auto);
        Self::arm(this, live, auto);
        Ok(())
    }

    /// After TRANSITION_SNAP: growing by itself goes on with the new snapshot.
    pub(crate) fn resume_auto_expand(this: &Arc<Self>, live: &mut Live) {
        let Some(auto) = this.auto_expand() else {
            return;
        };
        match this.free_at_point(live) {
            Ok(free) => {
                live.free_at_point = Some(free);
                Self::arm(this, live, auto);
            }
            Err(e) => pr_warn!(
                "datto{}: the COW file will not grow by itself: error {} while listing the free \
                 blocks of the snapshot\n",
                this.minor(),
                e.to_errno()
            ),
        }
    }

    /// After a mount: while there was none the watermark may have been passed, and nothing could grow.
    pub(crate) fn rearm_auto_expand(this: &Arc<Self>, live: &Live) {
        if let Some(auto) = this.auto_expand() {
            Self::arm(this, live, auto);
        }
    }

    fn arm(this: &Arc<Self>, live: &Live, auto: AutoExpand) {
        if let Some(snapshot) = live.snapshot.as_ref() {
            let mark = watermark(auto.step_mib, snapshot.space.total_blocks());
            snapshot.set_low_water(mark);
            if snapshot.space.free_blocks() < mark {
                Self::wake_grow(this);
            }
        }
    }

    /// The blocks that were free at the snapshot point, in ascending order. In a task's context.
    fn free_at_point(&self, live: &Live) -> Result<KVVec<Extent>> {
        let node = CString::try_from_fmt(fmt!("/dev/datto{}", self.minor()))?;
        let free = free_at_point(&node, live.origin.fs_type())?;
        // Filesystems report in order; lookups depend on it.
        if free.is_sorted_by_key(|e| e.start) {
            Ok(free)
        } else {
            Err(EIO)
        }
    }

    /// The work item behind the watermark.
    pub(crate) fn grow_by_itself(&self) {
        let mut op = self.op.lock();
        let Some(live) = (*op).as_mut() else { return };
        let Some(auto) = self.auto_expand() else {
            return;
        };
        let Some(free) = live.free_at_point.take() else {
            return;
        };
        for _ in 0..STEPS {
            if self.may(Call::AutoExpand).is_err() || self.enough_room(live, auto) {
                break;
            }
            if let Err(e) = self.grow_a_step(live, auto, &free) {
                self.could_not_grow(live, e);
                break;
            }
        }
        live.free_at_point = Some(free);
    }

    fn enough_room(&self, live: &Live, auto: AutoExpand) -> bool {
        live.snapshot.as_ref().is_none_or(|s| {
            s.space.free_blocks() >= watermark(auto.step_mib, s.space.total_blocks())
        })
    }

    fn grow_a_step(&self, live: &mut Live, auto: AutoExpand, free: &[Extent]) -> Result {
        let reserve = bytes(auto.reserve_mib)?;
        let gained = self.grow(live, bytes(auto.step_mib)?, reserve, free)?;
        pr_info!(
            "datto{}: the COW file has grown by {} MiB, room for {} more blocks\n",
            self.minor(),
            auto.step_mib,
            gained
        );
        Ok(())
    }

    /// Says so, and tries again when half of what is left has been used.
    fn could_not_grow(&self, live: &Live, e: Error) {
        if let Some(snapshot) = live.snapshot.as_ref() {
            let left = snapshot.space.free_blocks();
            pr_warn!(
                "datto{}: the COW file cannot grow now: error {}; room for {} more blocks\n",
                self.minor(),
                e.to_errno(),
                left
            );
            // 0 would mean never.
            snapshot.set_low_water((left / 2).max(1));
        }
    }

    /// Grows the file by `add` bytes, leaving at least `reserve` bytes to the filesystem. Returns how
    /// many blocks that can take copies were gained.
    fn grow(&self, live: &mut Live, add: u64, reserve: u64, free: &[Extent]) -> Result<u64> {
        let file = live.file.as_mut().ok_or(EINVAL)?;
        let tracker = live.tracker.as_ref().ok_or(EINVAL)?;
        let snapshot = live.snapshot.as_ref().ok_or(EINVAL)?;
        let gained = file.expand(add, reserve)?;
        let usable = usable(&gained, free, snapshot)?;
        let cow_extents = Arc::new(origin_extents(file.extents())?, GFP_KERNEL)?;
        let log = live.log.as_ref();
        let epoch = steady_epoch(&live.changes, log, Some(snapshot), file.extents())?;
        if let Some(log) = log {
            // What goes wrong ends the record, which says so itself.
            let bytes = file.size();
            let _ = Log::update_extents(log, file.extents(), |root| root.file_bytes = bytes);
        }
        // The guard first: when copies go to the new blocks, a write there by others is noticed.
        drop(self.switch(tracker, epoch)?.wait());
        snapshot.add_space(&gained, &usable)?;
        if let Some(auto) = self.auto_expand() {
            // It may be lower after attempts that failed.
            snapshot.set_low_water(watermark(auto.step_mib, snapshot.space.total_blocks()));
        }
        live.cow_extents = cow_extents;
        self.show(live);
        Ok(usable
            .iter()
            .fold(0, |sum: u64, s| sum.saturating_add(s.len)))
    }
}
