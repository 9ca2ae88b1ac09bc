// SPDX-License-Identifier: GPL-2.0-only
//! The crash-safe record of what changed: the region log, and the private blocks around it.
//!
//! A write to a region of the origin that is not marked on disk waits until it is: the probe finds
//! the region closed, the bio is parked here, the mark goes to disk (FUA; all that wait share one
//! write), the region is opened, the bio goes on its way. After a power cut the changes are the last
//! written bitmap and all blocks of the marked regions. Checkpoints (`log_checkpoint.rs`) write the
//! bitmap and take marks back; an orderly end (`log_seal.rs`) leaves an exact bitmap and no mark;
//! `log_load.rs` reads all that back. `docs/formats.md` has the layout and the argument.
//!
//! # Locks
//!
//! `disk` (mutex): all that is on disk, and the order of writes to it. A leaf: whoever holds it calls
//! nothing that takes another lock of this module, and nothing of a filesystem; it is taken by the
//! unmount callback. Held across I/O to the private blocks only, which waits for nothing that could
//! wait for a held bio.
//!
//! # Failure
//!
//! When a private block cannot be written, or somebody else writes to the COW file, the record ends:
//! both roots are poisoned first, so that no reload believes them, then everything that waits is let
//! go. Tracking in memory goes on: only a crash would then cost the chain. A root that cannot be written
//! then is tried again (`log_end.rs`) for as long as its block is ours.
//!
//! While the file is sealed nobody writes to the device. So when the first write afterwards finds another
//! superblock than the root names, the medium was changed below us: the chain ends.

use crate::abi::cow::{Geometry, PrivateLayout, GROUP_BLOCKS, LOG_BLOCK_GROUPS};
use crate::events::SnapshotEvents;
use crate::faults::{self, Fault};
use crate::identity;
use crate::intercept;
use crate::logic::{
    change_map::ChangeMap,
    decide,
    extents::{locate, FileExtent},
    load::place,
    private_format::{
        check, encode_extents, encode_log, seal, GroupWord, Kind, Root, RootState,
        EXTENTS_PER_BLOCK, ROOT_EXTENTS,
    },
    regions::{Groups, Regions},
    slot_pool::SlotPool,
};
use crate::origin::Origin;
use crate::params;
use crate::sys::{
    bdev::Bdev,
    bio::{BioList, BioRef, BioStack, HeldBio},
    bio_pool::PoolId,
    errno::{EMEDIUMTYPE, ESTALE},
    ffi::NoIo,
    gate::Gate,
    plug::plugged,
    queues::Queues,
    raw_io::{Block, Durability, RawIo},
};
use crate::tracker::Tracker;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use kernel::{
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        lock::{mutex::MutexBackend, Guard},
        Arc, Mutex,
    },
    workqueue::{impl_has_delayed_work, new_delayed_work, DelayedWork, Work, WorkItem},
};

/// What is on disk, and how to change it. Guarded by [`Log::disk`].
pub(crate) struct OnDisk {
    pub(crate) io: RawIo,
    pub(crate) root: KBox<Root>,
    /// Of the root written last.
    pub(crate) generation: u64,
    /// One for each group: the marks of its regions, and the slot of its bitmap block.
    pub(crate) words: KVVec<GroupWord>,
    /// The slots that no word on disk names.
    pub(crate) slots: SlotPool,
    /// Blocks of the log that differ from `words`.
    dirty: KVVec<bool>,
    /// Room for the slots of one round of a checkpoint.
    pub(crate) taken: KVVec<u32>,
    /// Room for the bits of a group.
    pub(crate) bits: KVVec<u64>,
    pub(crate) layout: PrivateLayout,
    pub(crate) nonce: u64,
    /// The two roots, in blocks of the origin.
    pub(crate) roots: [u64; 2],
    /// Sealed while nobody had it mounted: the first block is exactly what the root says. The memory of a mounted
    /// filesystem may change while it is being written.
    pub(crate) at_rest: bool,
}

/// See the module's description.
#[pin_data]
pub(crate) struct Log {
    bdev: Bdev,
    /// Keeps `bdev` in memory; and for messages.
    pub(crate) origin: Arc<Origin>,
    tracker: u64,
    origin_sectors: u64,
    held: Arc<Gate>,
    queues: Arc<Queues>,
    /// The map whose bits the bitmap on disk is made of.
    pub(crate) changes: Arc<ChangeMap>,
    pub(crate) regions: Regions,
    /// Tells our writes from everybody else's.
    writes: PoolId,
    events: Arc<dyn SnapshotEvents>,
    /// Nothing is recorded, and nobody waits, any more. Never cleared.
    pub(crate) stopped: AtomicBool,
    /// As `stopped`, and a root on disk does not say so yet. Set before `stopped`; cleared under the lock, for good.
    pub(crate) unsaid: AtomicBool,
    /// How often that was tried again.
    pub(crate) tries: AtomicU8,
    /// [`FOREIGN`]: somebody else writes to the COW file, and nobody goes before the record has been ended. Bits 0
    /// and 1: a root has been overwritten like that, and must not be written to any more.
    foreign: AtomicU8,
    /// The two roots, in blocks of the origin.
    roots: [u64; 2],
    /// The bio (its key) that may write to the first block: what it makes of it is in the root.
    let_through: AtomicUsize,
    /// Checkpoints are made.
    pub(crate) checkpoints: AtomicBool,
    parked: BioStack,
    #[pin]
    disk: Mutex<OnDisk>,
    #[pin]
    mark_work: Work<Log, 0>,
    #[pin]
    pub(crate) checkpoint_work: DelayedWork<Log, 1>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Log { self.mark_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, 1> for Log { self.checkpoint_work }
}

impl WorkItem<0> for Log {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        run_marks(&this);
    }
}

impl WorkItem<1> for Log {
    type Pointer = Arc<Self>;
    fn run(this: Arc<Self>) {
        if this.is_unsaid() {
            Self::say_end(&this);
        } else if Self::checkpoint(&this) {
            Self::checkpoint_later(&this);
        }
    }
}

/// In `Log::foreign`.
const FOREIGN: u8 = 0x80;

/// 64-bit words of a group's bits.
pub(crate) const GROUP_WORDS: usize = (GROUP_BLOCKS / 64) as usize;

/// What a log is made from.
pub(crate) struct LogSetup<'a> {
    pub(crate) origin: &'a Arc<Origin>,
    pub(crate) tracker: &'a Tracker,
    pub(crate) changes: &'a Arc<ChangeMap>,
    pub(crate) nonce: u64,
    pub(crate) roots: [u64; 2],
    pub(crate) root: KBox<Root>,
    /// Of `root`, when it was read from disk; else 0.
    pub(crate) generation: u64,
    /// As read from disk; else all empty.
    pub(crate) words: KVVec<GroupWord>,
}

/// The extents of a file's private blocks, for its root. EFBIG: too many.
#[inline(never)] // Large on the stack.
pub(crate) fn own_extents(
    file: &[FileExtent],
    layout: &PrivateLayout,
) -> Result<[(u64, u64); ROOT_EXTENTS]> {
    let mut out = [(0, 0); ROOT_EXTENTS];
    let mut slots = out.iter_mut();
    let mut at = layout.roots;
    while at < layout.end {
        let (block, run) = locate(file, at).ok_or(EINVAL)?;
        let len = run.min(layout.end.saturating_sub(at));
        *slots.next().ok_or(EFBIG)? = (block, len);
        at = at.saturating_add(len);
    }
    Ok(out)
}

impl OnDisk {
    /// Where a private block lies on the origin.
    pub(crate) fn place(&self, file_block: u64) -> Result<u64> {
        Ok(place(&self.root, &self.layout, file_block)?)
    }

    /// Writes the root, as it is now, over the older one of its copies.
    pub(crate) fn write_root(&mut self, durability: Durability) -> Result {
        let generation = self.generation.saturating_add(1);
        let number = self.layout.roots.saturating_add(generation % 2);
        let place = match generation % 2 {
            0 => self.roots[0],
            _ => self.roots[1],
        };
        let (root, nonce) = (&self.root, self.nonce);
        let mut once = Some(place);
        self.io.write(durability, |block| {
            let place = once.take()?;
            root.encode(block);
            seal(block, Kind::Root, nonce, number, generation);
            Some(place)
        })?;
        self.generation = generation;
        Ok(())
    }

    /// Writes the blocks of the log that have changed, durably.
    pub(crate) fn write_log(&mut self) -> Result {
        // Nothing is allocated here: memory may be waiting for the write that waits for this.
        let per_block = LOG_BLOCK_GROUPS as usize;
        let (words, nonce) = (&self.words, self.nonce);
        let (root, layout) = (&self.root, &self.layout);
        let mut left = (0u64..).zip(self.dirty.iter_mut());
        let mut lost = None;
        let written = self.io.write(Durability::Itself, |block| {
            let (i, dirty) = left.find(|(_, dirty)| **dirty)?;
            *dirty = false;
            let number = layout.log.saturating_add(i);
            match place(root, layout, number) {
                Ok(at) => {
                    let from = (i as usize).saturating_mul(per_block);
                    let to = from.saturating_add(per_block).min(words.len());
                    encode_log(block, nonce, number, words.get(from..to).unwrap_or(&[]));
                    Some(at)
                }
                Err(flaw) => {
                    lost = Some(flaw.into());
                    None
                }
            }
        });
        match lost {
            Some(e) => Err(e),
            None => written,
        }
    }

    /// The word of a group, to be changed.
    pub(crate) fn word_mut(&mut self, group: usize) -> Option<&mut GroupWord> {
        if let Some(dirty) = self.dirty.get_mut(group / LOG_BLOCK_GROUPS as usize) {
            *dirty = true;
        }
        self.words.get_mut(group)
    }

    /// Everything of the log is to be written.
    pub(crate) fn all_dirty(&mut self) {
        self.dirty.iter_mut().for_each(|d| *d = true);
    }

    /// Writes a new list of the file's extents, to the place of the older one, and enters it in the
    /// root, which the caller writes. EFBIG: there is no room for so many.
    pub(crate) fn write_extents(&mut self, file: &[FileExtent]) -> Result {
        let room = (self.layout.list_blocks as usize).saturating_mul(EXTENTS_PER_BLOCK);
        if file.len() > room {
            return Err(EFBIG);
        }
        let list = self.root.list ^ 1;
        let generation = self.root.list_generation.saturating_add(1);
        let first = self
            .layout
            .lists
            .saturating_add(u64::from(list & 1).saturating_mul(self.layout.list_blocks));
        let mut places = KVec::new();
        for (i, _) in (0u64..).zip(file.chunks(EXTENTS_PER_BLOCK)) {
            let number = first.saturating_add(i);
            places.push((number, self.place(number)?), GFP_KERNEL)?;
        }
        let nonce = self.nonce;
        let mut left = places.iter().zip(file.chunks(EXTENTS_PER_BLOCK));
        self.io.write(Durability::Itself, |block| {
            let (&(number, place), chunk) = left.next()?;
            encode_extents(block, chunk);
            seal(block, Kind::Extents, nonce, number, generation);
            Some(place)
        })?;
        self.root.list = list;
        self.root.extents = u32::try_from(file.len()).map_err(|_| EFBIG)?;
        self.root.list_generation = generation;
        Ok(())
    }

    /// Makes sure that no reload believes what is on disk. Tries both roots, whatever happens, but for those
    /// in the mask `foreign`.
    pub(crate) fn poison(&mut self, foreign: u8) -> Result {
        self.root.state = RootState::Poisoned;
        let mut result = Ok(());
        for _ in 0..2 {
            let next = self.generation.saturating_add(1);
            let written = match foreign & (1 << (next % 2)) {
                0 => self.write_root(Durability::Itself),
                _ => Ok(()),
            };
            // A root that was not written keeps its number: go on to the other one.
            self.generation = next;
            result = result.and(written);
        }
        result
    }

    /// Which of the two roots, a bit each, hold something else on disk than a good root of this file.
    pub(crate) fn roots_not_ours(&mut self) -> Result<u8> {
        let mut others = 0;
        for (i, place) in self.roots.into_iter().enumerate() {
            let number = self.layout.roots.saturating_add(i as u64);
            if check(self.io.read(place)?, Kind::Root, self.nonce, number).is_none() {
                others |= 1 << i;
            }
        }
        Ok(others)
    }

    /// Before the first write after a good end: from now on the bitmap is not all there is, and the copies
    /// of a snapshot are no longer where its map says. EMEDIUMTYPE: see [`OnDisk::same_medium`].
    fn unseal(&mut self) -> Result {
        if self.root.state != RootState::Sealed || faults::active(Fault::NoUnseal) {
            return Ok(());
        }
        if self.at_rest {
            self.same_medium()?;
        }
        self.root.state = RootState::Live;
        self.root.map_words = 0;
        self.write_root(Durability::Itself)
    }

    /// Enters in the root what `bio` makes of the first block. The device starts at sector `start`.
    ///
    /// The write before to the same sectors has completed, since nobody writes a superblock twice at a
    /// time, and the flush before the root makes it durable: so what is on disk now is one of the two from
    /// here on.
    fn note_first_block(&mut self, bio: BioRef<'_>, start: u64) -> Result {
        let (now, next) = identity::after(&mut self.io, bio, start)?;
        let before = self.root.identity;
        self.root.identity.write(&now, &next);
        if self.root.identity == before {
            return Ok(());
        }
        self.write_root(Durability::AfterAllBefore)
    }

    /// Makes sure that the first block is what the last write of which we know has left there, or what was there
    /// before it. To be asked while the device is at rest.
    ///
    /// # Errors
    ///
    /// EMEDIUMTYPE: somebody has exchanged the medium, or written to it below the device.
    pub(crate) fn same_medium(&mut self) -> Result {
        let found = identity::read(&mut self.io)?;
        if !self.root.identity.contradicts(&found) || faults::active(Fault::NoReloadCheck) {
            return Ok(());
        }
        Err(EMEDIUMTYPE)
    }

    /// Takes note of the first block as it is now; a write to it may be on its way.
    pub(crate) fn read_identity(&mut self) -> Result {
        let now = identity::read(&mut self.io)?;
        self.root.identity.see(&now);
        Ok(())
    }

    /// Enters the regions of all `bios` in the log and writes it.
    fn mark(&mut self, blocks: impl Fn(BioRef<'_>) -> (u64, u64), bios: &BioList) -> Result {
        self.unseal()?;
        let mut new = false;
        bios.for_each(|bio| {
            let (start, len) = blocks(bio);
            for (group, mask) in Groups::of(start, len) {
                if self.words.get(group).is_some_and(|w| w.marks & mask != mask) {
                    if let Some(word) = self.word_mut(group) {
                        word.marks |= mask;
                        new = true;
                    }
                }
            }
        });
        if new {
            self.write_log()?;
        }
        Ok(())
    }
}

/// Access to what is on disk. No allocation of this task starts I/O meanwhile: it might wait for a bio
/// that waits for us.
pub(crate) struct Locked<'a> {
    // Dropped in this order.
    disk: Guard<'a, OnDisk, MutexBackend>,
    _no_io: NoIo,
}

impl Deref for Locked<'_> {
    type Target = OnDisk;

    fn deref(&self) -> &OnDisk {
        &self.disk
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut OnDisk {
        &mut self.disk
    }
}

impl Log {
    /// Locks what is on disk.
    pub(crate) fn lock(&self) -> Locked<'_> {
        let _no_io = NoIo::enter();
        Locked { disk: self.disk.lock(), _no_io }
    }

    /// A log that is, or is to be, on disk as `setup` says. Writes nothing.
    pub(crate) fn new(setup: LogSetup<'_>) -> Result<Arc<Self>> {
        let bdev = setup.origin.device();
        let geometry = Geometry { origin_bytes: setup.origin.bytes() };
        let layout = geometry.private();
        let io = RawIo::new(bdev)?;
        let writes = io.id();
        let mut dirty = KVVec::new();
        dirty.resize(layout.log_blocks as usize, false, GFP_KERNEL)?;
        let mut bits = KVVec::new();
        bits.resize(GROUP_WORDS, 0, GFP_KERNEL)?;
        let mut slots = SlotPool::new(layout.slot_count)?;
        for word in &setup.words {
            // Slot 0 means none. One that does not exist, or is named twice, holds no block that a
            // reload would believe; its group counts as changed.
            if let Some(slot) = word.slot.checked_sub(1) {
                slots.occupy(slot);
            }
        }
        let spare = layout.slot_count.saturating_sub(layout.groups);
        let taken = KVVec::with_capacity(spare as usize, GFP_KERNEL)?;
        let disk = OnDisk {
            slots,
            taken,
            bits,
            io,
            root: setup.root,
            generation: setup.generation,
            words: setup.words,
            dirty,
            layout,
            nonce: setup.nonce,
            roots: setup.roots,
            // When it was read from disk, nobody has mounted it yet.
            at_rest: setup.generation != 0,
        };
        let regions = Regions::new(layout.groups)?;
        let (held, queues) = (setup.tracker.held().clone(), setup.tracker.queues().clone());
        let (tracker, origin) = (setup.tracker.id(), setup.origin.clone());
        let origin_sectors = setup.origin.bytes() >> 9;
        let changes = setup.changes.clone();
        let events = setup.tracker.events().clone();
        let roots = setup.roots;
        Arc::pin_init(
            pin_init!(Self {
                bdev,
                roots,
                origin,
                tracker,
                origin_sectors,
                held,
                queues,
                changes,
                regions,
                writes,
                events,
                let_through: AtomicUsize::new(0),
                stopped: AtomicBool::new(false),
                unsaid: AtomicBool::new(false),
                tries: AtomicU8::new(0),
                foreign: AtomicU8::new(0),
                checkpoints: AtomicBool::new(true),
                parked: BioStack::new(),
                disk <- new_mutex!(disk, "dattobd::log"),
                mark_work <- new_work!("dattobd::mark"),
                checkpoint_work <- new_delayed_work!("dattobd::checkpoint"),
            }),
            GFP_KERNEL,
        )
    }

    /// Writes a new file's private blocks: an empty log, the list of extents, the root.
    pub(crate) fn write_new(&self, file: &[FileExtent]) -> Result {
        let mut disk = self.lock();
        disk.all_dirty();
        disk.write_log()?;
        disk.write_extents(file)?;
        // Both copies: what lay there before may look like a root of ours.
        disk.write_root(Durability::AfterAllBefore)?;
        disk.write_root(Durability::Itself)
    }

    /// Whether a bio is one of our own writes.
    pub(crate) fn is_own(&self, bio: BioRef<'_>) -> bool {
        bio.is_of(self.writes)
    }

    /// Whether a write to these blocks may go as far as the log is concerned. The caller has entered
    /// them in the change map and passed a full barrier. Any context.
    ///
    /// A write to the first block, which holds the superblock, never finds it open: what it makes of the
    /// block has to be in the root first. `bio` is its key: once that has been done it may go.
    #[inline]
    pub(crate) fn is_open(&self, start: u64, len: u64, bio: usize) -> bool {
        (self.is_stopped() && !self.has_last_word())
            || faults::active(Fault::NoLog)
            || (!self.is_foreign()
                && (start != 0 || self.let_through.load(Ordering::Acquire) == bio)
                && (faults::active(Fault::NoRegionMark) || self.regions.is_open(start, len)))
    }

    /// A bio that found the log open is on its way: a later one at the same place in memory is another.
    /// Any context.
    pub(crate) fn gone(&self, start: u64, bio: usize) {
        if start == 0 {
            let _ = self.let_through.compare_exchange(bio, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Notes in the root what `bio` makes of the first block, and lets it through.
    fn note_first_block(this: &Arc<Self>, bio: BioRef<'_>) {
        let mut disk = this.lock();
        if this.is_stopped() {
            return;
        }
        match disk.note_first_block(bio, this.bdev.start_sector()) {
            Ok(()) => this.let_through.store(bio.key(), Ordering::Release),
            Err(e) => Self::lose(this, &mut disk, e),
        }
    }

    /// The roots that somebody else is overwriting, a bit each.
    pub(crate) fn foreign_roots(&self) -> u8 {
        self.foreign.load(Ordering::Acquire) & !FOREIGN
    }

    fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Acquire) & FOREIGN != 0
    }

    /// These roots, a bit each, are not written to any more.
    pub(crate) fn leave_roots(&self, roots: u8) {
        self.foreign.fetch_or(roots & !FOREIGN, Ordering::AcqRel);
    }

    /// The medium is not ours any more: no root is written from now on, and the device hears of it. Under the lock.
    pub(crate) fn other_medium(&self, error: Error) {
        self.leave_roots(0b11);
        self.events.other_medium(error.to_errno());
    }

    /// Waits for the work that is queued now. Not from that work.
    pub(crate) fn flush_queue(&self) {
        self.queues.log.flush();
    }

    /// Nothing is recorded any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The record has ended, and a root on disk does not say so yet.
    pub(crate) fn is_unsaid(&self) -> bool {
        self.unsaid.load(Ordering::Acquire)
    }

    /// Somebody else writes to the COW file of a record that has ended, while a root is still to be written: that
    /// write has to wait until nothing of ours can land on top of it.
    fn has_last_word(&self) -> bool {
        self.is_foreign() && self.is_unsaid()
    }

    /// Somebody else writes to `len` blocks of the COW file from `start` on. Whether the bio is to be parked
    /// here: then it goes when the record has been ended, and no write of ours can land on top of it. Any context.
    pub(crate) fn foreign_write(&self, start: u64, len: u64) -> bool {
        let end = start.saturating_add(len);
        let mut hit = 0;
        for (number, root) in self.roots.iter().enumerate() {
            if (start..end).contains(root) {
                hit |= 1 << number;
            }
        }
        if self.is_stopped() {
            // Only roots may still be written to. One that we know of is left alone by now, or will be when those
            // go that wait already.
            let known = self.foreign.load(Ordering::Acquire);
            if !self.is_unsaid() || (hit & !known == 0 && known & FOREIGN == 0) {
                return false;
            }
            if hit & !known == 0 {
                return true;
            }
        }
        // In one step: who sees the root's bit sees the other one, or that the lock has been taken since.
        self.foreign.fetch_or(hit | FOREIGN, Ordering::AcqRel);
        true
    }

    /// The blocks that a bio touches, as first block and count.
    pub(crate) fn blocks_of(&self, bio: BioRef<'_>) -> (u64, u64) {
        decide::block_range(
            bio.sector(),
            bio.sectors(),
            self.bdev.start_sector(),
            self.origin_sectors,
        )
        .unwrap_or((0, 0))
    }

    /// Takes over a bio that has to wait for its marks. It was counted in the tracker's gate. Any
    /// context.
    pub(crate) fn park(this: &Arc<Self>, bio: HeldBio) {
        this.parked.push(bio);
        Self::wake(this);
    }

    pub(crate) fn wake(this: &Arc<Self>) {
        let queues = this.queues.clone();
        let _ = queues.log.queue().enqueue::<_, 0>(this.clone());
    }

    fn checkpoint_later(this: &Arc<Self>) {
        Self::work_later(this, params::checkpoint_ms());
    }

    /// Has the second work item run in `ms` milliseconds, unless it is to run earlier.
    pub(crate) fn work_later(this: &Arc<Self>, ms: u32) {
        let queues = this.queues.clone();
        let delay = kernel::time::msecs_to_jiffies(ms);
        let _ = queues.log.queue().enqueue_delayed::<_, 1>(this.clone(), delay);
    }

    /// The COW file is about to be written to: what it says when it is sealed does not hold any more. On
    /// failure the record ends.
    pub(crate) fn break_seal(this: &Arc<Self>) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() {
            return Err(ENDED);
        }
        let result = disk.unseal();
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    /// Enters blocks that we ourselves have put in the change map, durably: they belonged to a COW file, and
    /// no write of the filesystem marks them. On failure the record ends.
    pub(crate) fn mark_extents(this: &Arc<Self>, extents: impl Iterator<Item = (u64, u64)>) {
        let mut extents = extents.peekable();
        if extents.peek().is_none() {
            // Nothing is written: what is sealed stays so.
            return;
        }
        let mut disk = this.lock();
        if this.is_stopped() {
            return;
        }
        let mut result = disk.unseal();
        for (start, len) in extents {
            for (group, mask) in Groups::of(start, len) {
                if let Some(word) = disk.word_mut(group) {
                    word.marks |= mask;
                }
            }
        }
        result = result.and_then(|()| disk.write_log());
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
    }

    /// Makes sure that a device whose file is still sealed is the one that it was sealed on.
    ///
    /// # Errors
    ///
    /// EMEDIUMTYPE, and record and chain end: it is not. EIO: that could not be read, and the record ends.
    pub(crate) fn at_rest(this: &Arc<Self>) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() || disk.root.state != RootState::Sealed || !disk.at_rest {
            return Ok(());
        }
        let result = disk.same_medium();
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    /// Changes the root and writes it, durably, with the first block of the device as it is now. On failure
    /// the record ends.
    pub(crate) fn update_root_and_identity(this: &Arc<Self>, change: impl FnOnce(&mut Root)) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() {
            return Err(ENDED);
        }
        change(&mut disk.root);
        let result = disk
            .read_identity()
            .and_then(|()| disk.write_root(Durability::AfterAllBefore));
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    /// Changes the root and writes it, durably. On failure the record ends.
    pub(crate) fn update_root(this: &Arc<Self>, change: impl FnOnce(&mut Root)) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() {
            return Err(ENDED);
        }
        change(&mut disk.root);
        let result = disk.write_root(Durability::AfterAllBefore);
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    /// Records that the file lies at `file` now, and what `change` does to the root.
    pub(crate) fn update_extents(
        this: &Arc<Self>,
        file: &[FileExtent],
        change: impl FnOnce(&mut Root),
    ) -> Result {
        let mut disk = this.lock();
        if this.is_stopped() {
            return Err(ENDED);
        }
        change(&mut disk.root);
        let result = disk
            .write_extents(file)
            .and_then(|()| disk.write_root(Durability::AfterAllBefore));
        if let Err(e) = result {
            Self::lose(this, &mut disk, e);
        }
        result
    }

    /// Memory of the log's own structures, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.regions.memory_bytes().saturating_mul(3) / 2
    }
}

/// What operations on a log that has ended say.
const ENDED: Error = EIO;

/// The work: writes the marks that parked bios wait for, and lets them go.
fn run_marks(log: &Arc<Log>) {
    let mut bios = log.parked.take();
    if bios.is_empty() {
        return;
    }
    if !log.is_stopped() || log.is_unsaid() {
        let mut disk = log.lock();
        // Taken back before the roots that are left alone are looked at: who comes later waits for the lock too.
        if log.foreign.fetch_and(!FOREIGN, Ordering::AcqRel) & FOREIGN != 0 {
            // No write of ours is under way: they all happen under the lock.
            Log::lose(log, &mut disk, ESTALE);
        } else if !log.is_stopped() {
            match disk.mark(|bio| log.blocks_of(bio), &bios) {
                Ok(()) => bios.for_each(|bio| {
                    let (start, len) = log.blocks_of(bio);
                    for (group, mask) in Groups::of(start, len) {
                        log.regions.open(group, mask);
                    }
                }),
                Err(e) => Log::lose(log, &mut disk, e),
            }
        }
        drop(disk);
        Log::checkpoint_later(log);
    }
    plugged(|| {
        while let Some(bio) = bios.pop_front() {
            if log.blocks_of(bio.view()).0 == 0 {
                Log::note_first_block(log, bio.view());
            }
            intercept::ask_again(bio, log.tracker);
            log.held.leave();
        }
    });
}

/// A block buffer, as the formats know it.
const _: () = assert!(core::mem::size_of::<Block>() == 4096);
