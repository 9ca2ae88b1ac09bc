// SPDX-License-Identifier: GPL-2.0-only
//! The index of a running snapshot: where the copies of blocks lie in the COW file, in memory up to the
//! device's cache limit, beyond that on disk.
//!
//! New entries go to the *active* part. When that has grown too large it is *frozen*, written to the COW
//! file as one sorted *run* of pages (`index_pager.rs`) and forgotten. What is on disk is never changed:
//! two runs of like size are merged into a new one. So nobody reads a page in order to write it, writers
//! need nothing of what is on disk, and a look-up asks at most about log2(disk / memory) pages
//! (`index_read.rs`).
//!
//! The pages lie in slots that are taken from the data part of the COW file, like places for copies. So
//! they are guarded, shown as zeros, entered as changed and given back as copies are, on filesystems of
//! any block size. The index area of the file would cost no room, but a program reads it through the
//! filesystem in the end, which takes it for unwritten only as far as the filesystem has not converted
//! extents on its own account (`ext4` zeroes what is near a write, or all of it when it is full): old pages
//! would be taken for change map. And it has room for one page for 512 blocks, which scattered changes
//! fill to a hundredth.
//!
//! # Memory
//!
//! Of the limit seven sixteenths each are for the active and the frozen part, and an eighth is for pages
//! that were read. When the active part is full and the frozen one not yet written, claims wait as they
//! do for room in the ring; that needs nothing but the completion of our own writes. Not
//! counted are the buffers of the I/O (three times 16 pages and what belongs to them, as long as pages are
//! on disk), 16 bytes for each page on disk, one run of entries, and one page for each 64 GiB of the
//! device, without which the entries of a large one would not fit at all; nor less than 64 KiB.
//!
//! # Rest
//!
//! Nothing is written while the file is sealed: a crash then leaves the file as it was sealed, and its next
//! life does not know of pages behind the copy map. So a lower limit is kept from the next claim on. A
//! reload whose entries are too many for the memory breaks the seal first.
//!
//! # Locks
//!
//! `places` (spinlock, process context): all that is known, so that whatever moves is always in one of
//! the parts. `pager` (mutex): who writes pages; taken before `places`.

use crate::index_pager::Pager;
use crate::logic::{
    index::{Index, Stock},
    index_page::{Found, PageRef, Run, SPAN},
};
use crate::snapshot::{Snapshot, Wake};
use crate::sys::{
    bio_pool::{PoolId, PoolSlot},
    task::random_u64,
};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kernel::{
    new_mutex, new_spinlock,
    prelude::*,
    sync::{Arc, Mutex, SpinLock},
};

/// The smallest limit that is followed.
const MIN_LIMIT: u64 = 64 << 10;

/// Pages of runs that nobody reads any more.
#[pin_data]
pub(crate) struct FreeSlots {
    #[pin]
    lists: SpinLock<KVec<KVVec<PageRef>>>,
}

impl FreeSlots {
    fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { lists <- new_spinlock!(KVec::new(), "dattobd::slots") }),
            GFP_KERNEL,
        )
    }

    /// The slots of one run.
    pub(crate) fn take(&self) -> Option<KVVec<PageRef>> {
        self.lists.lock().pop()
    }

    /// Slots that may be used again. Without memory they are lost, which costs room in the file.
    pub(crate) fn give(&self, pages: KVVec<PageRef>) {
        let need = self.lists.lock().len().saturating_add(8);
        let mut longer = KVec::with_capacity(need, GFP_KERNEL).ok();
        let mut lists = self.lists.lock();
        if lists.len() == lists.capacity() {
            if let Some(longer) = longer.as_mut().filter(|l| l.capacity() > lists.len()) {
                for list in lists.drain_all() {
                    let _ = longer.push_within_capacity(list);
                }
                core::mem::swap(&mut *lists, longer);
            }
        }
        // What there is no room for goes past the lock.
        let lost = lists.push_within_capacity(pages);
        drop(lists);
        drop(lost);
    }
}

/// A sorted run of pages on disk. Its slots are free when nobody refers to it.
pub(crate) struct IndexRun {
    pub(crate) pages: KVVec<PageRef>,
    /// Generation of its pages, different for every run of the snapshot.
    pub(crate) id: u64,
    pub(crate) free: Arc<FreeSlots>,
}

impl Drop for IndexRun {
    fn drop(&mut self) {
        self.free.give(core::mem::take(&mut self.pages));
    }
}

/// All runs; the older, larger ones first.
pub(crate) type Runs = KVec<Arc<IndexRun>>;

struct Places {
    active: Index,
    frozen: Option<Index>,
    runs: Arc<Runs>,
}

impl Places {
    /// What the memory says of `block`.
    fn find(&self, block: u64, max: u64) -> Found {
        match (self.active.find(block, max), &self.frozen) {
            (Found::Gap(n), Some(frozen)) => frozen.find(block, n),
            (found, _) => found,
        }
    }
}

/// Where a copy lies.
pub(crate) enum Lookup {
    /// At this place, and so many blocks go on from there.
    Place(u64, u64),
    /// The memory says nothing of so many blocks: one of the runs must have it.
    OnDisk(u64),
    /// Nowhere.
    Nowhere,
}

/// Figures for the status calls.
pub(crate) struct IndexFigures {
    /// Bytes in memory.
    pub(crate) memory: u64,
    /// Bytes on disk.
    pub(crate) on_disk: u64,
}

/// See the module's description.
#[pin_data]
pub(crate) struct IndexTable {
    #[pin]
    places: SpinLock<Places>,
    /// The limit in bytes.
    limit: AtomicU64,
    /// What the active part may reach, in bytes.
    share: AtomicU64,
    /// Least share: see the module's description.
    least_share: u64,
    /// The frozen part cannot be written, as the COW file is full: the limit does not hold.
    no_room: AtomicBool,
    /// The pager waits for reads of old data to complete.
    pub(crate) pager_waits: AtomicBool,
    /// The COW file is sealed: nothing may be written to it. No claim has come since.
    at_rest: AtomicBool,
    /// What the pages of this snapshot are known by.
    pub(crate) nonce: u64,
    /// Bytes of pages that were read.
    pub(crate) cached: AtomicU64,
    /// Tells our writes from everybody else's, once there are any.
    pub(crate) writes: PoolSlot,
    pub(crate) free: Arc<FreeSlots>,
    #[pin]
    pub(crate) pager: Mutex<Pager>,
}

impl IndexTable {
    /// Nothing, for a device of so many blocks.
    pub(crate) fn new(blocks: u64) -> Result<impl PinInit<Self>> {
        let free = FreeSlots::new()?;
        let places = Places {
            active: Index::empty(),
            frozen: None,
            runs: Arc::new(KVec::new(), GFP_KERNEL)?,
        };
        let pages = blocks.div_ceil(SPAN).saturating_mul(2).saturating_add(6);
        Ok(pin_init!(Self {
            places <- new_spinlock!(places, "dattobd::places"),
            limit: AtomicU64::new(u64::MAX),
            share: AtomicU64::new(u64::MAX),
            least_share: pages.saturating_mul(4096),
            no_room: AtomicBool::new(false),
            pager_waits: AtomicBool::new(false),
            at_rest: AtomicBool::new(true),
            nonce: random_u64() | 1,
            cached: AtomicU64::new(0),
            writes: PoolSlot::empty(),
            free,
            pager <- new_mutex!(Pager::new(), "dattobd::pager"),
        }))
    }

    /// Whether a bio is one of our writes.
    pub(crate) fn is_own(&self, matches: impl FnOnce(PoolId) -> bool) -> bool {
        self.writes.get().is_some_and(matches)
    }

    /// Sets how much memory may be used, in bytes.
    pub(crate) fn set_limit(&self, bytes: u64) {
        let limit = bytes.max(MIN_LIMIT);
        let share = (limit / 16).saturating_mul(7).max(self.least_share);
        self.limit.store(limit, Ordering::Relaxed);
        self.share.store(share, Ordering::Relaxed);
    }

    /// The COW file is sealed: no page is written from now on. The caller holds the pager.
    pub(crate) fn rest(&self) {
        self.at_rest.store(true, Ordering::Release);
    }

    /// The COW file is not sealed any more.
    pub(crate) fn wake(&self) {
        if self.rests() {
            self.at_rest.store(false, Ordering::Release);
        }
    }

    /// Whether the COW file is sealed.
    pub(crate) fn rests(&self) -> bool {
        self.at_rest.load(Ordering::Acquire)
    }

    /// Pages that may be kept after they were read.
    pub(crate) fn cache_pages(&self) -> u64 {
        (self.limit.load(Ordering::Relaxed) / 8 / 4096).clamp(4, 8192)
    }

    /// Enters the places of blocks that have none. May sleep.
    ///
    /// # Errors
    ///
    /// ENOMEM; EFBIG: the place lies too far behind in the file.
    pub(crate) fn insert(&self, run: Run, stock: &mut Stock) -> Result {
        let mut rest = run;
        // A page that is split twice may find the list of pages full in between: what it lacks changes.
        let mut tries = 4;
        while rest.len != 0 {
            let n = self.places.lock().active.insert(rest, stock).ok_or(EFBIG)?;
            if n == 0 && tries == 0 {
                return Err(ENOMEM);
            }
            rest = rest.skip(n);
            if rest.len != 0 {
                stock.fill()?;
            }
            tries = if n == 0 { tries - 1 } else { 4 };
        }
        Ok(())
    }

    /// What the memory says of `block`. Every block that is claimed but not preserved is there.
    pub(crate) fn in_memory(&self, block: u64, max: u64) -> Found {
        self.places.lock().find(block, max)
    }

    /// Where the copy of a preserved block is.
    pub(crate) fn find(&self, block: u64, max: u64) -> Lookup {
        let places = self.places.lock();
        match places.find(block, max) {
            Found::Run { place, len } => Lookup::Place(place, len),
            Found::Gap(_) if places.runs.is_empty() => Lookup::Nowhere,
            Found::Gap(n) => Lookup::OnDisk(n),
        }
    }

    /// The active part has had its share of the memory.
    pub(crate) fn is_large(&self) -> bool {
        let share = self.share.load(Ordering::Relaxed);
        self.places.lock().active.memory_bytes() >= share
    }

    /// The same, and the frozen part is still there: claims have to wait.
    pub(crate) fn is_full(&self) -> bool {
        let share = self.share.load(Ordering::Relaxed);
        let places = self.places.lock();
        places.active.memory_bytes() >= share
            && places.frozen.is_some()
            && !self.no_room.load(Ordering::Acquire)
    }

    /// There is no room for pages in the COW file, or there may be again. Whether that is new.
    pub(crate) fn set_no_room(&self, no_room: bool) -> bool {
        self.no_room.swap(no_room, Ordering::AcqRel) != no_room
    }

    /// Freezes the active part if it is large. Whether there is a frozen part.
    pub(crate) fn freeze(&self) -> bool {
        let share = self.share.load(Ordering::Relaxed);
        let mut places = self.places.lock();
        if places.frozen.is_none() && places.active.memory_bytes() >= share {
            places.frozen = Some(core::mem::take(&mut places.active));
        }
        places.frozen.is_some()
    }

    /// Calls `f` for the entries of the frozen part from `block` on. Under a spinlock.
    pub(crate) fn walk_frozen(&self, block: u64, f: impl FnMut(Run) -> bool) {
        if let Some(frozen) = &self.places.lock().frozen {
            frozen.walk(block, f);
        }
    }

    /// The same for the active part.
    pub(crate) fn walk_active(&self, block: u64, f: impl FnMut(Run) -> bool) {
        self.places.lock().active.walk(block, f);
    }

    /// The runs of now.
    pub(crate) fn runs(&self) -> Arc<Runs> {
        self.places.lock().runs.clone()
    }

    /// Other runs, which say the same. The pager calls this, and so nothing changes meanwhile.
    pub(crate) fn replace_runs(&self, runs: Arc<Runs>) {
        // Past the lock: it may hold last references.
        let _old = core::mem::replace(&mut self.places.lock().runs, runs);
    }

    /// The frozen part is on disk: these runs have it.
    pub(crate) fn exchange_frozen(&self, runs: Arc<Runs>) {
        let mut places = self.places.lock();
        let old = (
            places.frozen.take(),
            core::mem::replace(&mut places.runs, runs),
        );
        drop(places);
        drop(old);
    }

    pub(crate) fn figures(&self) -> IndexFigures {
        let places = self.places.lock();
        let frozen = places.frozen.as_ref().map_or(0, Index::memory_bytes);
        let pages = places
            .runs
            .iter()
            .fold(0u64, |n, run| n.saturating_add(run.pages.len() as u64));
        IndexFigures {
            memory: places
                .active
                .memory_bytes()
                .saturating_add(frozen)
                .saturating_add(pages.saturating_mul(size_of::<PageRef>() as u64))
                .saturating_add(self.cached.load(Ordering::Relaxed)),
            on_disk: pages.saturating_mul(4096),
        }
    }
}

impl Snapshot {
    /// Sets how much memory the index may use, in bytes.
    pub(crate) fn set_cache_limit(this: &Arc<Self>, bytes: u64) {
        this.index.set_limit(bytes);
        this.as_arc_borrow().wake_page();
    }

    /// The index has gained entries.
    pub(crate) fn index_grew(this: &Arc<Self>) {
        if this.index.is_large() {
            this.as_arc_borrow().wake_page();
        }
    }
}
