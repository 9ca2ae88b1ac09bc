// SPDX-License-Identifier: GPL-2.0-only
//! One tracked block device: decides about each bio sent to it, and holds back those that must wait.

use crate::epoch::Epoch;
use crate::events::SnapshotEvents;
use crate::faults::{self, Fault};
use crate::intercept;
use crate::logic::{
    decide::{self, Decision, Facts, Op, Protection},
    extents,
};
use crate::origin::Origin;
use crate::snapshot::{Snapshot, Wake};
use crate::sys::{
    bdev::Bdev,
    bio::{BioRef, HeldBio, Status},
    disk::{BioDisk, BioDriver, Kind},
    gate::Gate,
    queues::Queues,
    rcu_cell::{RcuCell, Retired},
};
use core::sync::atomic::{AtomicU64, Ordering};
use kernel::{
    bindings, new_spinlock,
    prelude::*,
    str::CString,
    sync::{rcu, Arc, ArcBorrow, SpinLock},
};

/// Numbers trackers, so that a bio that concerns several meets them in one order.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Where redirected bios arrive. Apart from the tracker, so that the shadow disk can own it.
#[pin_data]
pub(crate) struct HoldQueue {
    bdev: Bdev,
    /// Bios redirected and not yet handed back.
    held: Arc<Gate>,
    /// The snapshot that holds them. Set before the epoch with it is published; cleared only when
    /// `held` is empty and no epoch has it. Process context only.
    #[pin]
    snapshot: SpinLock<Option<Arc<Snapshot>>>,
}

impl BioDriver for HoldQueue {
    fn submit(this: ArcBorrow<'_, Self>, mut bio: HeldBio) {
        bio.restore_device(this.bdev);
        this.park(bio);
    }
}

impl HoldQueue {
    /// Takes a bio that was counted in `held`. Neither sleeps nor allocates.
    pub(crate) fn park(&self, bio: HeldBio) {
        let snapshot = self.snapshot.lock().clone();
        if op_of(bio.view()) == Op::Discard {
            // A hint, and following it would lose old data: say yes and do nothing.
            if let Some(s) = &snapshot {
                s.counters.discards.fetch_add(1, Ordering::Relaxed);
            }
            bio.end(Status::Ok);
            self.held.leave();
            return;
        }
        match snapshot {
            Some(s) => {
                s.parked.push(bio);
                s.as_arc_borrow().wake_claim();
            }
            None => {
                bio.resubmit();
                self.held.leave();
            }
        }
    }
}

/// What the probe does with a bio.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Lets it go.
    Pass,
    /// Sends it to the shadow disk.
    Redirect,
}

/// See the module's description.
#[pin_data]
pub(crate) struct Tracker {
    id: u64,
    pub(crate) bdev: Bdev,
    /// The range of the disk that is tracked, in sectors. Fixed: a device that grows online is
    /// outgrown.
    start: u64,
    sectors: u64,
    epoch: RcuCell<Epoch>,
    /// Set for good when tracking has ended. Guards the publication of epochs.
    #[pin]
    ended: SpinLock<bool>,
    hold: Arc<HoldQueue>,
    shadow: BioDisk<HoldQueue>,
    shadow_bdev: Bdev,
    held: Arc<Gate>,
    queues: Arc<Queues>,
    events: Arc<dyn SnapshotEvents>,
    origin: Arc<Origin>,
}

fn op_of(bio: BioRef<'_>) -> Op {
    if bio.sectors() == 0 {
        return Op::Flush;
    }
    match bio.op() {
        bindings::req_op_REQ_OP_READ => Op::Read,
        bindings::req_op_REQ_OP_WRITE | bindings::req_op_REQ_OP_ZONE_APPEND => Op::Write,
        bindings::req_op_REQ_OP_DISCARD => Op::Discard,
        bindings::req_op_REQ_OP_SECURE_ERASE => Op::SecureErase,
        bindings::req_op_REQ_OP_WRITE_ZEROES => Op::WriteZeroes,
        _ => Op::Other,
    }
}

impl Tracker {
    /// Prepares tracking of `origin` and starts to look at its bios; until an epoch is published they
    /// all pass. May sleep.
    pub(crate) fn new(
        origin: Arc<Origin>,
        minor: u32,
        events: Arc<dyn SnapshotEvents>,
    ) -> Result<Arc<Self>> {
        let bdev = origin.device();
        let held = Arc::new(Gate::new(), GFP_KERNEL)?;
        let counted = held.clone();
        let hold = Arc::pin_init(
            pin_init!(HoldQueue {
                bdev,
                held: counted,
                snapshot <- new_spinlock!(None, "dattobd::hold"),
            }),
            GFP_KERNEL,
        )?;
        let name = CString::try_from_fmt(fmt!("datto-shadow{minor}"))?;
        let shadow = BioDisk::add(Kind::Shadow, &name, bdev, bdev.sectors(), hold.clone())?;
        let shadow_bdev = shadow.bdev().ok_or(ENODEV)?;
        let queues = Arc::new(Queues::new(minor)?, GFP_KERNEL)?;
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let tracker = Arc::pin_init(
            pin_init!(Self {
                id,
                bdev,
                start: bdev.start_sector(),
                sectors: bdev.sectors(),
                epoch: RcuCell::empty(),
                ended <- new_spinlock!(false, "dattobd::ended"),
                hold,
                shadow,
                shadow_bdev,
                held,
                queues,
                events,
                origin,
            }),
            GFP_KERNEL,
        )?;
        intercept::attach(tracker.clone())?;
        Ok(tracker)
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn held(&self) -> &Arc<Gate> {
        &self.held
    }

    pub(crate) fn hold(&self) -> &HoldQueue {
        &self.hold
    }

    pub(crate) fn shadow_bdev(&self) -> Bdev {
        self.shadow_bdev
    }

    /// A snapshot of this device, to be published with an epoch. The copies go to the file blocks
    /// from `first_data` on. May sleep.
    pub(crate) fn new_snapshot(
        &self,
        file: &[extents::FileExtent],
        first_data: u64,
        copy_bytes: u64,
    ) -> Result<Arc<Snapshot>> {
        Snapshot::new(
            crate::snapshot::Setup {
                origin: self.origin.clone(),
                bdev: self.bdev,
                tracker: self.id,
                held: self.held.clone(),
                queues: self.queues.clone(),
                events: self.events.clone(),
                copy_blocks: copy_bytes / 4096,
                first_data,
            },
            file,
        )
    }

    /// Publishes `epoch`. The store inside is the snapshot point. Neither sleeps nor allocates.
    ///
    /// The old epoch comes back: probes may use it until its [`Retired::wait`] has returned.
    ///
    /// # Errors
    ///
    /// The new epoch comes back if tracking has ended meanwhile.
    pub(crate) fn switch(&self, epoch: KBox<Epoch>) -> Result<Retired<Epoch>, KBox<Epoch>> {
        let ended = self.ended.lock();
        if *ended {
            return Err(epoch);
        }
        if let Some(s) = &epoch.snapshot {
            // What was there is the same snapshot (the epoch after the point), or nothing.
            *self.hold.snapshot.lock() = Some(s.clone());
        }
        Ok(self.epoch.replace(Some(epoch)))
    }

    /// Forgets the snapshot that held bios go to. After [`Snapshot::shutdown`]. May sleep.
    pub(crate) fn forget_snapshot(&self) {
        let old = self.hold.snapshot.lock().take();
        drop(old);
    }

    /// Ends tracking for good; nothing is held back any more. Idempotent. Sleeps for a grace period.
    pub(crate) fn end(&self) {
        let retired = {
            let mut ended = self.ended.lock();
            *ended = true;
            self.epoch.replace(None)
        };
        drop(retired.wait());
    }

    /// Stops looking at bios. The tracker can be dropped then. Idempotent; sleeps; not from the
    /// engine's own work.
    pub(crate) fn stop(&self) {
        self.end();
        intercept::detach(self.id);
        self.held.wait_empty();
        self.forget_snapshot();
        self.queues.flush();
    }

    /// Waits until bios that passed the probe before the point have reached the device. Call with
    /// the filesystem thawed, after the old epoch has been waited for.
    pub(crate) fn drain_point(&self) {
        self.bdev.drain();
    }

    /// The probe's work for one bio: marks what changes, and decides. Does not sleep. The sector of
    /// `bio` is absolute.
    pub(crate) fn on_bio(&self, guard: &rcu::Guard, bio: BioRef<'_>) -> Action {
        if bio.disk() != self.bdev.disk() {
            return Action::Pass;
        }
        let Some((block, len)) =
            decide::block_range(bio.sector(), bio.sectors(), self.start, self.sectors)
        else {
            return Action::Pass;
        };
        let Some(epoch) = self.epoch.read(guard) else { return Action::Pass };
        let snapshot = epoch.snapshot.as_ref();
        if snapshot.is_some_and(|s| bio.is_of(s.copy_writes())) {
            return Action::Pass;
        }
        let decision = decide::decide(Facts {
            op: op_of(bio),
            protection: match snapshot {
                None => Protection::None,
                Some(s) if s.error().is_some() => Protection::Failed,
                Some(_) if faults::active(Fault::NoCow) => Protection::Failed,
                Some(_) => Protection::Active,
            },
            preserved: snapshot.is_some_and(|s| s.map.preserved(block, len)),
            hits_guard: !faults::active(Fault::NoGuard)
                && extents::overlaps(&epoch.guard, block, len),
        });
        if decision.marks() && !faults::active(Fault::NoMark) {
            epoch.changes.mark(block, len);
            if let Some(previous) = &epoch.previous {
                previous.mark(block, len);
            }
        }
        self.follow(decision, snapshot)
    }

    fn follow(&self, decision: Decision, snapshot: Option<&Arc<Snapshot>>) -> Action {
        match decision {
            Decision::Pass | Decision::MarkAndPass => Action::Pass,
            Decision::Hold | Decision::DropDiscard => Action::Redirect,
            Decision::FailThenPass(errno) => {
                if let Some(s) = snapshot {
                    Snapshot::fail(s.as_arc_borrow(), Error::from_errno(errno.negative()));
                }
                Action::Pass
            }
            Decision::FailThenHold(errno) => match snapshot {
                Some(s) => {
                    let error = Error::from_errno(errno.negative());
                    Snapshot::fail_foreign(s.as_arc_borrow(), error);
                    Action::Redirect
                }
                None => Action::Pass,
            },
            Decision::BreakChainThenHold(errno) => {
                // In incremental mode nothing of ours is on its way to the file: no need to hold.
                self.events.chain_broken(errno.negative());
                Action::Pass
            }
        }
    }
}
