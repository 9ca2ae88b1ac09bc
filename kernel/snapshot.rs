// SPDX-License-Identifier: GPL-2.0-only
//! One running snapshot: the copy-on-write engine's state.
//!
//! # The path of a first overwrite
//!
//! 1. [`crate::intercept`]: the probe redirects the bio to the shadow disk, which brings it here.
//! 2. [`claim`] (the submitter's task, or work on the `issue` queue): claims its blocks, takes places,
//!    reads the old data.
//! 3. [`release`] (work, `finish` queue): publishes what was read, hands back every held bio whose
//!    blocks are all preserved.
//! 4. [`copy`] (work, `issue` queue): writes copies from memory to the COW file, in large bios.
//! 5. [`stored`] (work, `finish` queue): frees the memory of what has been written.
//!
//! Beside it `index_pager` (work, `issue` queue) keeps the index within its limit.
//!
//! # Who owns a held bio
//!
//! probe → (`parked`, a lock-free stack → `claims.queue`, when it cannot be seen to at once) → the one read
//! that it waits for, or `waiting` → handed back to the block layer.
//! The `held` gate counts it from the redirection until it has been handed back; `bound` from the moment on at
//! which the tracker decides that it is ours, so that neither waits for what waits for something else.
//!
//! # Locks, in order
//!
//! `claims` (mutex; submitters only try it), `index_pages` (mutex, only the work of that name) and
//! `index.pager` (mutex) → `waiting`, `ring`, `file`, `index.places` (spinlocks, each alone, process
//! context only). Nothing in interrupt context takes a lock: completions go through lock-free stacks.
//!
//! # Failure
//!
//! `error` goes from 0 to an errno once, before any held bio is let go without its old data. From
//! then on every read of the snapshot fails, and every write passes.

use crate::abi::cow::Geometry;
use crate::delays::{self, Step};
use crate::events::SnapshotEvents;
use crate::index_read::PageReader;
use crate::index_table::{IndexFigures, IndexTable};
use crate::intercept;
use crate::log_load::CopyMap;
use crate::logic::{
    extents::{self, FileExtent},
    index::Stock,
    index_page::{Found, Run},
    preserved::Preserved,
    space::{Segment, Space},
};
use crate::origin::Origin;
use crate::snapshot_read::ReadPart;
use crate::sys::{
    bdev::Bdev,
    bio::{BioList, BioRef, BioStack, HeldBio},
    bio_pool::{BioPool, DoneStack, EndIo, PoolBio},
    delayed::flush_delayed,
    errno::EUCLEAN,
    gate::Gate,
    queues::Queues,
    rcu_cell::synchronize,
};
use crate::{claim, copy, copy_ring::CopyRing, release, stored};
use core::ops::Range;
use core::sync::atomic::{fence, AtomicBool, AtomicI32, AtomicU64, Ordering};
use kernel::{
    impl_has_work, new_mutex, new_spinlock, new_work,
    prelude::*,
    sync::{Arc, ArcBorrow, Mutex, SpinLock},
    workqueue::{impl_has_delayed_work, new_delayed_work, DelayedWork, Work, WorkItem},
};

/// Blocks of one read or write of ours: 1 MiB, the most that one bio holds.
pub(crate) const MAX_JOB: u64 = 256;

/// Reads of old data, and writes of copies, that are always possible at once.
const RESERVED_BIOS: u32 = 16;

/// Where the COW file lies.
pub(crate) struct FileMap {
    /// In order of file blocks.
    pub(crate) by_file: KVVec<FileExtent>,
    /// In order of origin blocks, without the index: its blocks are read as those of any other file.
    pub(crate) by_origin: KVVec<FileExtent>,
}

impl FileMap {
    /// Both orders of `list`, which is in order of file blocks.
    pub(crate) fn new(list: &[FileExtent], index: &Range<u64>) -> Result<Self> {
        let mut by_file = KVVec::with_capacity(list.len(), GFP_KERNEL)?;
        by_file.extend_from_slice(list, GFP_KERNEL)?;
        let mut by_origin = KVVec::with_capacity(list.len(), GFP_KERNEL)?;
        for piece in list.iter().flat_map(|e| extents::outside(*e, index)).filter(|e| e.len != 0) {
            by_origin.push(piece, GFP_KERNEL)?;
        }
        extents::sort_by_origin(&mut by_origin);
        Ok(Self { by_file, by_origin })
    }
}

/// A count in [`Snapshot::bind`], taken back when dropped.
pub(crate) struct Bound<'a>(&'a Gate);

impl Bound<'_> {
    /// The bio is given to the snapshot, which takes it back ([`Snapshot::hand_back`]).
    pub(crate) fn keep(self) {
        core::mem::forget(self);
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A read of old data; the buffers are in the bio, one for each chunk.
pub(crate) struct OldRead {
    pub(crate) snapshot: Arc<Snapshot>,
    /// First block of the origin.
    pub(crate) block: u64,
    /// First sequence number in the ring.
    pub(crate) seq: u64,
    /// A held bio that has to wait for this read and nothing else.
    pub(crate) waiter: Option<HeldBio>,
}

/// A write of copies; the bio holds a reference to each buffer of its own.
pub(crate) struct CopyWrite {
    pub(crate) snapshot: Arc<Snapshot>,
    /// First sequence number in the ring.
    pub(crate) seq: u64,
}

impl EndIo for OldRead {
    fn end_io(bio: PoolBio<Self>) {
        // The clone keeps the snapshot alive over the push: the worker may already be at it.
        let snapshot = bio.payload().snapshot.clone();
        snapshot.reads_done.push(bio);
        snapshot.as_arc_borrow().wake_release();
    }
}

impl EndIo for CopyWrite {
    fn end_io(bio: PoolBio<Self>) {
        let snapshot = bio.payload().snapshot.clone();
        snapshot.writes_done.push(bio);
        snapshot.as_arc_borrow().wake_stored();
    }
}

/// Figures for the status calls.
#[derive(Default)]
pub(crate) struct Counters {
    /// Writes held for their old data.
    pub(crate) held: AtomicU64,
    /// Discards completed without being issued.
    pub(crate) discards: AtomicU64,
}

/// See the module's description.
#[pin_data]
pub(crate) struct Snapshot {
    pub(crate) bdev: Bdev,
    /// Keeps `bdev` open.
    _origin: Arc<Origin>,
    /// The tracker that holds bios for us.
    tracker: u64,
    /// Size of the origin.
    bytes: u64,
    /// First block of the file behind header and index.
    pub(crate) first_data: u64,
    pub(crate) preserved: Preserved,
    #[pin]
    pub(crate) index: IndexTable,
    /// Only the work that repeats reads.
    #[pin]
    pub(crate) index_pages: Mutex<PageReader>,
    #[pin]
    file: SpinLock<Arc<FileMap>>,
    pub(crate) space: Space,
    #[pin]
    pub(crate) ring: SpinLock<CopyRing>,
    /// 0, or the negative errno that the snapshot failed with.
    error: AtomicI32,
    /// The COW file may no longer be ours: held bios wait for our own writes.
    must_drain: AtomicBool,
    /// The snapshot is being given up in an orderly way.
    closing: AtomicBool,
    /// The filesystem is not mounted.
    dormant: AtomicBool,
    pub(crate) parked: BioStack,
    #[pin]
    pub(crate) claims: Mutex<claim::Claims>,
    /// The claim work waits for room in the ring, or for a page.
    pub(crate) claim_blocked: AtomicBool,
    /// The copy work is not to wait for full bios, once.
    pub(crate) copy_at_once: AtomicBool,
    /// The delayed work that ends the gathering of copies is under way.
    pub(crate) gathering: AtomicBool,
    #[pin]
    pub(crate) waiting: SpinLock<BioList>,
    pub(crate) reads_done: DoneStack<OldRead>,
    pub(crate) writes_done: DoneStack<CopyWrite>,
    pub(crate) rereads: DoneStack<ReadPart>,
    pub(crate) read_pool: BioPool<OldRead>,
    pub(crate) write_pool: BioPool<CopyWrite>,
    pub(crate) part_pool: BioPool<ReadPart>,
    pub(crate) reads: Gate,
    pub(crate) writes: Gate,
    /// Parts of snapshot reads under way. Shared, so that the last part can leave after it has let go
    /// of the snapshot.
    pub(crate) readers: Arc<Gate>,
    held: Arc<Gate>,
    /// Those of the held bios that were given to us.
    bound: Gate,
    pub(crate) queues: Arc<Queues>,
    events: Arc<dyn SnapshotEvents>,
    /// Free blocks below which `events.space_low` is called; 0: never.
    low_water: AtomicU64,
    low_told: AtomicBool,
    /// Most copies in memory, in blocks.
    copy_blocks: u64,
    pub(crate) counters: Counters,
    #[pin]
    claim_work: Work<Snapshot, 0>,
    #[pin]
    release_work: Work<Snapshot, 1>,
    #[pin]
    copy_work: Work<Snapshot, 2>,
    #[pin]
    stored_work: Work<Snapshot, 3>,
    #[pin]
    reread_work: Work<Snapshot, 4>,
    #[pin]
    page_work: Work<Snapshot, 5>,
    #[pin]
    gather_work: DelayedWork<Snapshot, 6>,
    #[pin]
    shrink_work: DelayedWork<Snapshot, 7>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 6> for Snapshot { self.gather_work }
    impl HasDelayedWork<Self, 7> for Snapshot { self.shrink_work }
}
impl_has_work! {
    impl HasWork<Self, 0> for Snapshot { self.claim_work }
    impl HasWork<Self, 1> for Snapshot { self.release_work }
    impl HasWork<Self, 2> for Snapshot { self.copy_work }
    impl HasWork<Self, 3> for Snapshot { self.stored_work }
    impl HasWork<Self, 4> for Snapshot { self.reread_work }
    impl HasWork<Self, 5> for Snapshot { self.page_work }
}

impl WorkItem<0> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        delays::at(Step::Claim);
        claim::run(&this);
    }
}

impl WorkItem<1> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        delays::at(Step::Publish);
        release::run(&this);
    }
}

impl WorkItem<2> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        delays::at(Step::Copy);
        copy::run(&this);
    }
}

impl WorkItem<3> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        delays::at(Step::Stored);
        stored::run(&this);
    }
}

impl WorkItem<4> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        crate::snapshot_read::repeat(&this);
    }
}

impl WorkItem<5> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        crate::index_pager::run(&this);
    }
}

impl WorkItem<6> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        Self::gathered(&this);
    }
}

impl WorkItem<7> for Snapshot {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        this.shrink();
    }
}

/// What a snapshot is made from.
pub(crate) struct Setup {
    pub(crate) origin: Arc<Origin>,
    /// The device itself; `origin` keeps it open.
    pub(crate) bdev: Bdev,
    pub(crate) tracker: u64,
    pub(crate) held: Arc<Gate>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) events: Arc<dyn SnapshotEvents>,
    /// Most copies in memory, in blocks.
    pub(crate) copy_blocks: u64,
    /// First block of the file behind all that is private.
    pub(crate) first_data: u64,
    /// The usable blocks of the file; `None`: all from `first_data` on.
    pub(crate) segments: Option<KVVec<Segment>>,
}

impl Snapshot {
    /// Prepares a snapshot whose copies go to the data part of the file at `file` (in order of file
    /// blocks). Allocates all that the write path needs; may sleep. Nothing happens until an epoch
    /// with it is published.
    pub(crate) fn new(setup: Setup, file: &[FileExtent]) -> Result<Arc<Self>> {
        let bytes = setup.origin.bytes();
        let preserved = Preserved::new(setup.origin.blocks())?;
        let index = IndexTable::new(setup.origin.blocks())?;
        let index_blocks = Geometry { origin_bytes: bytes }.index_blocks();
        let map_of_file = Arc::new(FileMap::new(file, &index_blocks)?, GFP_KERNEL)?;
        let space = Space::new()?;
        match &setup.segments {
            Some(segments) => {
                for &segment in segments {
                    space.add(segment)?;
                }
            }
            None => {
                for e in file {
                    let end = e.file_block.saturating_add(e.len);
                    let start = e.file_block.max(setup.first_data);
                    if start < end {
                        space.add(Segment { start, len: end.saturating_sub(start) })?;
                    }
                }
            }
        }
        let ring = CopyRing::new(setup.copy_blocks)?;
        let claims = claim::Claims::new()?;
        let read_pool = BioPool::new(RESERVED_BIOS, true, false)?;
        let write_pool = BioPool::new(RESERVED_BIOS, true, false)?;
        let part_pool = BioPool::new(RESERVED_BIOS * 4, false, true)?;
        let readers = Arc::new(Gate::new(), GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                bdev: setup.bdev,
                _origin: setup.origin,
                tracker: setup.tracker,
                bytes,
                first_data: setup.first_data,
                preserved,
                index <- index,
                index_pages <- new_mutex!(PageReader::new(), "dattobd::index_pages"),
                file <- new_spinlock!(map_of_file, "dattobd::file"),
                space,
                ring <- new_spinlock!(ring, "dattobd::ring"),
                error: AtomicI32::new(0),
                must_drain: AtomicBool::new(false),
                closing: AtomicBool::new(false),
                dormant: AtomicBool::new(false),
                parked: BioStack::new(),
                claims <- new_mutex!(claims, "dattobd::claims"),
                claim_blocked: AtomicBool::new(false),
                copy_at_once: AtomicBool::new(false),
                gathering: AtomicBool::new(false),
                waiting <- new_spinlock!(BioList::new(), "dattobd::waiting"),
                reads_done: DoneStack::new(),
                writes_done: DoneStack::new(),
                rereads: DoneStack::new(),
                read_pool,
                write_pool,
                part_pool,
                reads: Gate::new(),
                writes: Gate::new(),
                readers,
                held: setup.held,
                bound: Gate::new(),
                queues: setup.queues,
                events: setup.events,
                low_water: AtomicU64::new(0),
                low_told: AtomicBool::new(false),
                copy_blocks: setup.copy_blocks.max(4),
                counters: Counters::default(),
                claim_work <- new_work!("dattobd::claim"),
                release_work <- new_work!("dattobd::release"),
                copy_work <- new_work!("dattobd::copy"),
                stored_work <- new_work!("dattobd::stored"),
                reread_work <- new_work!("dattobd::reread"),
                page_work <- new_work!("dattobd::page"),
                gather_work <- new_delayed_work!("dattobd::gather"),
                shrink_work <- new_delayed_work!("dattobd::shrink"),
            }),
            GFP_KERNEL,
        )
    }

    /// Whether a bio is one of our writes to the COW file.
    pub(crate) fn is_own(&self, bio: BioRef<'_>) -> bool {
        bio.is_of(self.write_pool.id()) || self.index.is_own(|pool| bio.is_of(pool))
    }

    /// The blocks that a bio touches, as first block and count.
    pub(crate) fn blocks_of(&self, bio: BioRef<'_>) -> (u64, u64) {
        crate::logic::decide::block_range(
            bio.sector(),
            bio.sectors(),
            self.bdev.start_sector(),
            self.bytes >> 9,
        )
        .unwrap_or((0, 0))
    }

    /// Size of the origin in 512-byte sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.bytes >> 9
    }

    /// How many bytes `len` blocks from `block` on have, which fit one bio: 4096 each, or less for the
    /// last one of an odd-sized device.
    pub(crate) fn bytes_of(&self, block: u64, len: u64) -> u32 {
        let start = block.saturating_mul(4096);
        self.bytes.saturating_sub(start).min(len.min(MAX_JOB).saturating_mul(4096)) as u32
    }

    /// Where the COW file lies now.
    pub(crate) fn file_map(&self) -> Arc<FileMap> {
        self.file.lock().clone()
    }

    /// The negative errno that it failed with.
    pub(crate) fn error(&self) -> Option<i32> {
        // Acquire pairs with `fail`: see the module's description.
        match self.error.load(Ordering::Acquire) {
            0 => None,
            e => Some(e),
        }
    }

    /// Held bios need not wait for their old data any more.
    pub(crate) fn lets_go(&self) -> bool {
        self.error().is_some() || self.closing.load(Ordering::Acquire)
    }

    /// Held bios must still wait for our own writes.
    pub(crate) fn must_wait_for_writes(&self) -> bool {
        // The error was stored before; see `copy::write_run` for the other half.
        fence(Ordering::SeqCst);
        self.must_drain.load(Ordering::Acquire) && self.writes.count() > 0
    }

    /// Ends the snapshot: readers get EIO, held writes go, change tracking goes on. Idempotent; any
    /// context.
    pub(crate) fn fail(this: ArcBorrow<'_, Self>, error: Error) {
        let errno = error.to_errno();
        // SeqCst: stored before any held bio is let go because of it, and before the overwrite that
        // a reader's re-check could otherwise miss.
        if this.error.compare_exchange(0, errno, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            this.events.failed(errno);
            this.wake_all();
        }
    }

    /// Somebody else writes to blocks of the COW file: the filesystem has given them away. Ends the
    /// snapshot; held bios wait until none of our writes can hit those blocks any more.
    pub(crate) fn fail_foreign(this: ArcBorrow<'_, Self>, error: Error) {
        this.must_drain.store(true, Ordering::Release);
        Self::fail(this, error);
    }

    /// Gives the snapshot up in an orderly way: hands back what is held, waits for our own I/O. The
    /// caller has published an epoch without the snapshot and waited for the old one. Idempotent;
    /// sleeps; not from our own work.
    pub(crate) fn shutdown(this: &Arc<Self>) {
        this.closing.store(true, Ordering::Release);
        this.as_arc_borrow().wake_all();
        // Not all that is held: what waits for its marks only passes by here, and may come without end.
        this.bound.wait_empty();
        this.reads.wait_empty();
        this.writes.wait_empty();
        // A completion that has left the gate by its work may still hold a reference, which must not be the last:
        // dropping that one sleeps.
        synchronize();
        // After the work that may have set it off, before the queue that it would run on goes.
        this.queues.flush();
        flush_delayed(&this.gather_work);
        flush_delayed(&this.shrink_work);
        this.queues.flush();
    }

    /// Waits until all copies are in the COW file and nothing is under way. The caller keeps new
    /// writes away. False when that takes longer than ten seconds, or the snapshot has failed. Sleeps.
    pub(crate) fn settle(this: &Arc<Self>) -> bool {
        for _ in 0..10_000 {
            if this.error().is_some() {
                return false;
            }
            let quiet = this.bound.count() == 0
                && this.parked.is_empty()
                && this.claims.lock().is_idle()
                && this.reads.count() == 0
                && this.waiting.lock().is_empty()
                && this.ring.lock().in_use() == 0
                && this.writes.count() == 0;
            if quiet {
                return true;
            }
            Self::write_copies(this);
            kernel::time::delay::fsleep(kernel::time::Delta::from_millis(1));
        }
        false
    }

    /// Enters the copies that a former life of the COW file held. Before the snapshot is published. When
    /// they are too many for the memory, `break_seal` is called first: see `index_table.rs`.
    ///
    /// # Errors
    ///
    /// ENOMEM; EUCLEAN: they cannot be; what the index pages are written with.
    pub(crate) fn restore(
        this: &Arc<Self>,
        copies: &CopyMap,
        break_seal: impl Fn() -> Result,
    ) -> Result {
        // The copy map's own blocks were overwritten as copies are: they read as zeros and are changed.
        this.space.restore(copies.end);
        let mut stock = Stock::empty();
        for &(block, place, len) in &copies.runs {
            let free = this.index.in_memory(block, len) == Found::Gap(len)
                && this.preserved.run(block, len) == (false, len);
            if !free {
                return Err(EUCLEAN);
            }
            this.preserved.reserve(block, len)?;
            this.index.insert(Run { block, place, len }, &mut stock)?;
            this.preserved.set(block, len);
            if this.index.is_large() {
                if this.index.rests() {
                    break_seal()?;
                    this.index.wake();
                }
                crate::index_pager::run(this);
                if let Some(errno) = this.error() {
                    return Err(Error::from_errno(errno));
                }
            }
        }
        Ok(())
    }

    /// The filesystem of the origin is mounted, or not: only then the snapshot can be read.
    pub(crate) fn set_mounted(&self, mounted: bool) {
        self.dormant.store(!mounted, Ordering::Release);
    }

    /// Reads are refused for now: see [`Snapshot::set_mounted`].
    pub(crate) fn is_dormant(&self) -> bool {
        self.dormant.load(Ordering::Acquire)
    }

    /// Counts a bio that is about to be given to us. Any context.
    pub(crate) fn bind(&self) -> Bound<'_> {
        self.bound.enter();
        // Before whatever the caller looks at next.
        fence(Ordering::SeqCst);
        Bound(&self.bound)
    }

    /// Hands a bio back to whoever submitted it.
    pub(crate) fn hand_back(&self, bio: HeldBio) {
        delays::at(Step::Release);
        intercept::resume(bio, self.tracker);
        self.bound.leave();
        self.held.leave();
    }

    /// Blocks gained by growing the file: all of them are ours (`extents`), but only those in `usable`
    /// may take copies. Both in order of file blocks.
    pub(crate) fn add_space(&self, extents: &[FileExtent], usable: &[Segment]) -> Result {
        let old = self.file_map();
        let mut all = KVVec::with_capacity(old.by_file.len().saturating_add(extents.len()), GFP_KERNEL)?;
        all.extend_from_slice(&old.by_file, GFP_KERNEL)?;
        all.extend_from_slice(extents, GFP_KERNEL)?;
        let index_blocks = Geometry { origin_bytes: self.bytes }.index_blocks();
        let new = Arc::new(FileMap::new(&all, &index_blocks)?, GFP_KERNEL)?;
        // Keep the old one past the lock: dropping it frees memory.
        let _old = core::mem::replace(&mut *self.file.lock(), new);
        for &segment in usable {
            self.space.add(segment)?;
        }
        self.index.set_no_room(false);
        self.low_told.store(false, Ordering::Release);
        Ok(())
    }

    /// Sets the number of free blocks below which `space_low` is called; 0 for never.
    pub(crate) fn set_low_water(&self, blocks: u64) {
        self.low_water.store(blocks, Ordering::Relaxed);
        self.low_told.store(false, Ordering::Release);
    }

    /// Called when places were taken and `free` are left.
    pub(crate) fn space_taken(&self, free: u64) {
        if free < self.low_water.load(Ordering::Relaxed)
            && !self.low_told.swap(true, Ordering::AcqRel)
        {
            self.events.space_low();
        }
    }

    /// Where block `file_block` of the COW file lies, and how many blocks follow it there.
    pub(crate) fn locate(map: &FileMap, file_block: u64) -> Option<(u64, u64)> {
        extents::locate(&map.by_file, file_block)
    }

    /// The most blocks that one read may claim, so that copying can overlap with it.
    pub(crate) fn copy_quarter(&self) -> u64 {
        self.copy_blocks / 4
    }

    /// Bytes of the bitmap of preserved blocks, and what the index takes.
    pub(crate) fn map_memory(&self) -> (u64, IndexFigures) {
        (self.preserved.memory_bytes(), self.index.figures())
    }

    /// Bytes of copies that are not on disk yet, and their bound.
    pub(crate) fn copy_memory(&self) -> (u64, u64) {
        let ring = self.ring.lock();
        (ring.in_use().saturating_mul(4096), ring.capacity().saturating_mul(4096))
    }
}

/// Waking the pieces of work. Any context; work that is queued already stays queued once.
pub(crate) trait Wake: Sized {
    fn wake_claim(self);
    fn wake_release(self);
    fn wake_copy(self);
    fn wake_stored(self);
    fn wake_reread(self);
    fn wake_page(self);
    /// All that may have something to hand back.
    fn wake_all(self);
}

macro_rules! wake {
    ($($name:ident: $queue:ident, $id:literal;)*) => { $(
        fn $name(self) {
            let this: Arc<Snapshot> = self.into();
            let queues = this.queues.clone();
            // An error gives back the reference: it was queued already.
            let _ = queues.$queue.queue().enqueue::<_, $id>(this);
        }
    )* };
}

impl Wake for ArcBorrow<'_, Snapshot> {
    wake! {
        wake_claim: issue, 0;
        wake_release: finish, 1;
        wake_copy: issue, 2;
        wake_stored: finish, 3;
        wake_reread: issue, 4;
        wake_page: issue, 5;
    }

    fn wake_all(self) {
        self.wake_claim();
        self.wake_release();
        self.wake_stored();
    }
}
