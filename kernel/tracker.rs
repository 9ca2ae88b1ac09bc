// SPDX-License-Identifier: GPL-2.0-only
//! One tracked block device: decides about each bio sent to it, and holds back those that must wait.

use crate::claim;
use crate::epoch::{Epoch, Guard};
use crate::events::SnapshotEvents;
use crate::faults::{self, Fault};
use crate::intercept;
use crate::logic::{
    decide::{self, Decision, Facts, Op, Protection},
    extents::FileExtent,
    space::Segment,
};
use crate::origin::Origin;
use crate::region_log::Log;
use crate::snapshot::Snapshot;
use crate::sys::{
    bdev::{Bdev, Home},
    bio::{BioRef, BioStack, HeldBio, Status},
    disk::{BioDisk, BioDriver, Kind},
    errno::ETIMEDOUT,
    gate::Gate,
    queues::Queues,
    rcu_cell::{RcuCell, Retired},
};
use core::sync::atomic::{fence, AtomicBool, AtomicU64, Ordering};
use kernel::{
    bindings, new_spinlock,
    prelude::*,
    str::CString,
    sync::{rcu, Arc, ArcBorrow, SpinLock},
};

/// Numbers trackers, so that a bio that concerns several meets them in one order.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// How long a point waits for what a disk without a queue has under way, in milliseconds. The filesystem is
/// frozen meanwhile, and writes elsewhere on the disk wait. A disk at rest takes a thousandth of it; a busy array
/// of hard disks, with hundreds of requests under way, whole seconds: that is no reason to refuse it a backup.
const SETTLE_MS: u32 = 5000;

/// Whom bios may have to wait for. The epoch with them is published under the same lock: a bio that waits for its
/// snapshot and its logs is entered in its maps.
struct Waits {
    /// Cleared only when no epoch has it, and it has been shut down.
    snapshot: Option<Arc<Snapshot>>,
    logs: [Option<Arc<Log>>; 2],
    guard: Option<Arc<Guard>>,
}

/// What is to be done with a held bio.
enum Next {
    /// Complete it without issuing it, for the sake of this snapshot or of the COW file.
    Drop(Option<Arc<Snapshot>>),
    /// Have its regions marked in this log.
    Mark(Arc<Log>),
    /// Show it to the tracker as if it had just come.
    AskAgain,
    /// It may go, once this snapshot has its old data.
    Go(Option<Arc<Snapshot>>),
}

/// Where redirected bios arrive. Apart from the tracker, so that the shadow disk can own it.
#[pin_data]
pub(crate) struct HoldQueue {
    id: u64,
    bdev: Bdev,
    /// The range of the disk that is tracked, in sectors. Fixed: a device that grows online is
    /// outgrown.
    start: u64,
    sectors: u64,
    origin: Arc<Origin>,
    /// Bios redirected and not yet handed back.
    held: Arc<Gate>,
    /// Writes wait at the door ([`HoldQueue::shut`]).
    shut: AtomicBool,
    /// Those that do.
    at_door: BioStack,
    /// Process context only.
    #[pin]
    waits: SpinLock<Waits>,
}

impl BioDriver for HoldQueue {
    fn submit(this: ArcBorrow<'_, Self>, mut bio: HeldBio) {
        bio.restore_device(this.origin.home(), this.bdev.whole());
        this.park(bio);
    }
}

impl HoldQueue {
    /// Takes a bio that was counted in `held`. Waits for nothing.
    ///
    /// First its marks have to be on disk; whoever sees to that asks again. Then its old data has to be
    /// preserved.
    pub(crate) fn park(&self, bio: HeldBio) {
        if self.shut.load(Ordering::Relaxed) {
            self.at_door.push(bio);
            // Either we see that the door was opened, or whoever opens it sees the bio.
            fence(Ordering::SeqCst);
            if !self.shut.load(Ordering::Relaxed) {
                self.let_in();
            }
            return;
        }
        let next = match self.range(bio.view()) {
            Some(_) => self.next_step(bio.view()),
            // It had to wait at the door, no more.
            None => Next::AskAgain,
        };
        match next {
            Next::Drop(snapshot) => {
                if let Some(s) = snapshot {
                    s.counters.discards.fetch_add(1, Ordering::Relaxed);
                }
                bio.end(Status::Ok);
                self.held.leave();
            }
            Next::Mark(log) => Log::park(&log, bio),
            Next::AskAgain => {
                intercept::ask_all_again(bio);
                self.held.leave();
            }
            Next::Go(snapshot) => {
                // Another point may have passed since: for the time behind it this is a change too.
                intercept::mark_again(bio.view(), self.id);
                match snapshot {
                    Some(s) => claim::submit(&s, bio),
                    None => {
                        intercept::resume(bio, self.id);
                        self.held.leave();
                    }
                }
            }
        }
    }

    /// From now on new writes wait, wherever on the disk; they have not been looked at. For a moment only.
    fn shut(&self) {
        self.shut.store(true, Ordering::Relaxed);
    }

    /// They wait no longer.
    fn open(&self) {
        self.shut.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.let_in();
    }

    fn let_in(&self) {
        let mut waiting = self.at_door.take();
        while let Some(bio) = waiting.pop_front() {
            intercept::ask_all_again(bio);
            self.held.leave();
        }
    }

    /// What is to be done with a bio now.
    fn next_step(&self, bio: BioRef<'_>) -> Next {
        let waits = self.waits.lock();
        // Before the logs are asked: whoever closes them sees the bio in one place or the other.
        let bound = waits.snapshot.as_ref().map(|s| s.bind());
        let next = self.decide_step(&waits, bio);
        if let (Next::Go(Some(_)), Some(bound)) = (&next, bound) {
            // Until it is handed back.
            bound.keep();
        }
        next
    }

    fn decide_step(&self, waits: &Waits, bio: BioRef<'_>) -> Next {
        let discard = op_of(bio) == Op::Discard;
        if discard && waits.guard.as_ref().is_some_and(|g| self.hits(g, bio)) {
            // A hint, and following it would lose data of ours: say yes and do nothing.
            return Next::Drop(None);
        }
        if !discard {
            // A snapshot point may have passed since the probe, and a log that came with it covers what is in its map
            // when it is asked. (What becomes of a discard is decided anew.)
            intercept::mark_again(bio, self.id);
        }
        for log in waits.logs.iter().flatten() {
            let (start, len) = log.blocks_of(bio);
            if !log.is_open(start, len, bio.key()) {
                return Next::Mark(log.clone());
            }
        }
        for log in waits.logs.iter().flatten() {
            log.gone(log.blocks_of(bio).0, bio.key());
        }
        if discard {
            let active = waits.snapshot.as_ref().filter(|s| !s.lets_go());
            let (start, len) = active.map_or((0, 0), |s| s.blocks_of(bio));
            return match active.filter(|s| !s.preserved.all(start, len)) {
                // The same for old data.
                Some(s) => Next::Drop(Some(s.clone())),
                // What spoke against it has ended meanwhile, and it was not entered as a change: it
                // begins anew.
                None => Next::AskAgain,
            };
        }
        Next::Go(waits.snapshot.clone())
    }

    /// The blocks that a bio touches, as first block and count; none: it goes elsewhere on the disk, or nowhere.
    #[inline]
    fn range(&self, bio: BioRef<'_>) -> Option<(u64, u64)> {
        decide::block_range(bio.sector(), bio.sectors(), self.start, self.sectors)
    }

    /// Whether a bio reaches into the COW file.
    fn hits(&self, guard: &Guard, bio: BioRef<'_>) -> bool {
        self.range(bio).is_some_and(|(block, len)| guard.is_hit(block, len))
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
    epoch: RcuCell<Epoch>,
    /// Set for good when tracking has ended. Guards the publication of epochs.
    #[pin]
    ended: SpinLock<bool>,
    /// The filesystem is not mounted: any bio may be the first of a mount.
    listening: AtomicBool,
    /// Somebody was told of one and has not looked yet.
    told: AtomicBool,
    /// There was a write that no rule covered. Never cleared.
    uncovered: AtomicBool,
    hold: Arc<HoldQueue>,
    shadow: BioDisk<HoldQueue>,
    shadow_bdev: Bdev,
    held: Arc<Gate>,
    queues: Arc<Queues>,
    events: Arc<dyn SnapshotEvents>,
    origin: Arc<Origin>,
}

#[inline]
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
        let (start, sectors) = (bdev.start_sector(), bdev.sectors());
        let held = Arc::new(Gate::new(), GFP_KERNEL)?;
        let (counted, followed) = (held.clone(), origin.clone());
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let nobody = Waits { snapshot: None, logs: [None, None], guard: None };
        let hold = Arc::pin_init(
            pin_init!(HoldQueue {
                id,
                bdev,
                start,
                sectors,
                origin: followed,
                held: counted,
                shut: AtomicBool::new(false),
                at_door: BioStack::new(),
                waits <- new_spinlock!(nobody, "dattobd::hold"),
            }),
            GFP_KERNEL,
        )?;
        let name = CString::try_from_fmt(fmt!("datto-shadow{minor}"))?;
        let shadow = BioDisk::add(Kind::Shadow, &name, bdev, sectors, hold.clone())?;
        let shadow_bdev = shadow.bdev().ok_or(ENODEV)?;
        let queues = Arc::new(Queues::new(minor)?, GFP_KERNEL)?;
        let tracker = Arc::pin_init(
            pin_init!(Self {
                id,
                bdev,
                epoch: RcuCell::empty(),
                ended <- new_spinlock!(false, "dattobd::ended"),
                listening: AtomicBool::new(false),
                told: AtomicBool::new(false),
                uncovered: AtomicBool::new(false),
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

    pub(crate) fn events(&self) -> &Arc<dyn SnapshotEvents> {
        &self.events
    }

    pub(crate) fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    /// Whether anybody has written to the device since [`Tracker::new`] without an epoch to see to it. Our own
    /// writes count: ask before there are any.
    pub(crate) fn was_written_to(&self) -> bool {
        self.uncovered.load(Ordering::Acquire)
    }

    /// Looks for a mount, or no longer. Idempotent.
    pub(crate) fn listen(&self, on: bool) {
        if self.listening.swap(on, Ordering::AcqRel) != on {
            intercept::listen(on);
        }
    }

    /// From now on the next bio is told of again. Whether there was one since the last time.
    pub(crate) fn rearm(&self) -> bool {
        self.told.swap(false, Ordering::SeqCst)
    }

    /// The probe's work for a bio that only reads.
    pub(crate) fn on_read(&self, bio: BioRef<'_>) {
        if self.listening.load(Ordering::Relaxed)
            && bio.disk() == self.bdev.disk()
            && self.hold.range(bio).is_some()
        {
            self.tell();
        }
    }

    /// Somebody uses the device although its filesystem is not mounted.
    fn tell(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            self.events.used_while_unmounted();
        }
    }

    pub(crate) fn hold(&self) -> &HoldQueue {
        &self.hold
    }

    /// What bios to the device come through now.
    pub(crate) fn home(&self) -> Home {
        self.origin.home()
    }

    pub(crate) fn shadow_bdev(&self) -> Bdev {
        self.shadow_bdev
    }

    /// A snapshot of this device, to be published with an epoch. The copies go to the file blocks
    /// from `first_data` on, or to `segments` if there are any. May sleep.
    pub(crate) fn new_snapshot(
        &self,
        file: &[FileExtent],
        first_data: u64,
        copy_bytes: u64,
        segments: Option<KVVec<Segment>>,
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
                segments,
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
        let logs = [epoch.log.clone(), epoch.previous_log.clone()];
        let guard = Some(epoch.guard.clone());
        let (old, retired) = {
            let mut waits = self.hold.waits.lock();
            if let Some(s) = &epoch.snapshot {
                // What was there is the same snapshot (the epoch after the point), or nothing.
                waits.snapshot = Some(s.clone());
            }
            let old = core::mem::replace(&mut waits.logs, logs);
            let old = (old, core::mem::replace(&mut waits.guard, guard));
            (old, self.epoch.replace(Some(epoch)))
        };
        drop(ended);
        drop(old);
        Ok(retired)
    }

    /// Forgets the snapshot that held bios go to. After [`Snapshot::shutdown`]. May sleep.
    pub(crate) fn forget_snapshot(&self) {
        let old = self.hold.waits.lock().snapshot.take();
        drop(old);
    }

    /// Forgets the logs that held bios go to, when no epoch has them and none is held. May sleep.
    fn forget_logs(&self) {
        let mut waits = self.hold.waits.lock();
        let old = core::mem::replace(&mut waits.logs, [None, None]);
        let guard = waits.guard.take();
        drop(waits);
        drop((old, guard));
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
        self.listen(false);
        self.end();
        intercept::detach(self.id);
        self.held.wait_empty();
        self.forget_snapshot();
        self.forget_logs();
        self.queues.flush();
    }

    /// Sees to it, right after the point, that nothing that was sent to the device before is still under
    /// way. Call with the filesystem frozen: then only programs that write to the device itself have some.
    /// The disk counts what it has under way for all of its partitions, and not every disk for each of
    /// them: new writes to any part of it wait meanwhile, or there would never be none on a busy one. For
    /// devices without a queue ([`Tracker::drain_point`]); sleeps.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT: some of it did not end in time. Where it will land in the device's history is not known.
    pub(crate) fn settle_point(&self) -> Result {
        if self.bdev.is_request_based() {
            return Ok(());
        }
        self.hold.shut();
        let settled = self.bdev.writes_settle(SETTLE_MS);
        self.hold.open();
        if settled {
            return Ok(());
        }
        pr_err!(
            "{}: writes that the disk had under way did not end within {SETTLE_MS} ms: no snapshot was taken\n",
            self.origin.name()
        );
        Err(ETIMEDOUT)
    }

    /// Waits until bios that passed the probe before the point have reached a request-based device. Call
    /// with the filesystem thawed, after the old epoch has been waited for.
    pub(crate) fn drain_point(&self) {
        self.bdev.drain();
    }

    /// The probe's work for one bio: marks what changes, and decides. Does not sleep. The sector of
    /// `bio` is absolute.
    pub(crate) fn on_bio(&self, guard: &rcu::Guard, bio: BioRef<'_>) -> Action {
        if bio.disk() != self.bdev.disk() {
            return Action::Pass;
        }
        let Some((block, len)) = self.hold.range(bio) else {
            // What the disk has under way is counted for all of it.
            return match self.hold.shut.load(Ordering::Relaxed) {
                true => Action::Redirect,
                false => Action::Pass,
            };
        };
        if self.listening.load(Ordering::Relaxed) {
            self.tell();
        }
        let Some(epoch) = self.epoch.read(guard) else {
            self.uncovered.store(true, Ordering::Release);
            return Action::Pass;
        };
        let snapshot = epoch.snapshot.as_ref();
        if epoch.sent(bio) {
            return Action::Pass;
        }
        let decision = decide::decide(&Facts {
            op: op_of(bio),
            protection: match snapshot {
                None => Protection::None,
                Some(s) if s.error().is_some() => Protection::Failed,
                Some(_) if faults::active(Fault::NoCow) => Protection::Failed,
                Some(_) => Protection::Active,
            },
            preserved: snapshot.is_some_and(|s| s.preserved.all(block, len)),
            hits_guard: !faults::active(Fault::NoGuard) && epoch.guard.is_hit(block, len),
        });
        let mut closed = false;
        if decision.marks() && !faults::active(Fault::NoMark) {
            // Ends in a full barrier, as the look at the logs wants it.
            epoch.changes.mark(block, len);
            if let Some(previous) = &epoch.previous {
                previous.mark(block, len);
            }
            closed = !epoch.is_open(block, len, bio.key());
        }
        let action = match decision {
            Decision::Pass | Decision::MarkAndPass => Action::Pass,
            Decision::Hold | Decision::DropDiscard => Action::Redirect,
            ending => self.end_what_is_hit(ending, epoch, (block, len)),
        };
        // The door is looked at last: it may be open again when the bio gets there, and then nobody asks anew.
        if action == Action::Redirect || closed || self.hold.shut.load(Ordering::Relaxed) {
            return Action::Redirect;
        }
        epoch.gone(block, bio.key());
        Action::Pass
    }

    /// Enters the blocks of a bio that waits in the change maps of now.
    pub(crate) fn mark_again(&self, guard: &rcu::Guard, bio: BioRef<'_>) {
        if let (Some((block, len)), Some(epoch)) = (self.hold.range(bio), self.epoch.read(guard)) {
            epoch.changes.mark(block, len);
            if let Some(previous) = &epoch.previous {
                previous.mark(block, len);
            }
        }
    }

    /// The decisions that end the snapshot, or the chain.
    #[cold]
    fn end_what_is_hit(&self, decision: Decision, epoch: &Epoch, (block, len): (u64, u64)) -> Action {
        let snapshot = epoch.snapshot.as_ref();
        match decision {
            Decision::Pass | Decision::MarkAndPass => Action::Pass,
            Decision::Hold | Decision::DropDiscard => Action::Redirect,
            Decision::FailThenPass(errno) => {
                if let Some(s) = snapshot {
                    Snapshot::fail(s.as_arc_borrow(), Error::from_errno(errno.negative()));
                }
                Action::Pass
            }
            Decision::FailThenHold(errno) => {
                self.end_logs(epoch, block, len);
                match snapshot {
                    Some(s) => {
                        let error = Error::from_errno(errno.negative());
                        Snapshot::fail_foreign(s.as_arc_borrow(), error);
                        Action::Redirect
                    }
                    None => Action::Pass,
                }
            }
            Decision::BreakChainThenHold(errno) => {
                // Only the logs write to the file in incremental mode: when they have ended, the bio
                // may go.
                let recorded = self.end_logs(epoch, block, len);
                self.events.chain_broken(errno.negative());
                if recorded {
                    Action::Redirect
                } else {
                    Action::Pass
                }
            }
        }
    }

    /// Somebody else writes to the COW file: its records end before that write goes. Whether there
    /// was one that had not ended, or has still to say so on disk.
    fn end_logs(&self, epoch: &Epoch, block: u64, len: u64) -> bool {
        let mut recorded = false;
        for log in epoch.logs() {
            recorded |= log.foreign_write(block, len);
        }
        recorded
    }
}
