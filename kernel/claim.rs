// SPDX-License-Identifier: GPL-2.0-only
//! Claiming: from here on a first overwrite waits until its old data has been read.
//!
//! Whoever brings a held write here claims for it at once, in its own task, when nobody else is claiming
//! and nothing stands in the way; that neither sleeps nor waits, and the read of the old data goes down the
//! stack right behind. Everything else is left to a work item. Both hold `claims`, so claims need no
//! arbitration, and the places in the COW file are given out in the order in which the reads are submitted.

use crate::delays::{self, Step};
use crate::faults::{self, Fault};
use crate::logic::extents::FileExtent;
use crate::logic::index::Stock;
use crate::logic::index_page::{Found, Run};
use crate::snapshot::{OldRead, Snapshot, Wake, MAX_JOB};
use crate::sys::{
    bio::{BioList, HeldBio},
    bio_pool::PoolBio,
    errno::EUCLEAN,
    page::CopyPages,
    plug::plugged,
};
use core::sync::atomic::Ordering;
use kernel::{bindings, prelude::*, sync::Arc};

/// Pages that the claimers keep at hand.
const PAGES_AT_HAND: usize = 64;

/// What whoever claims has taken over but not finished.
pub(crate) struct Claims {
    /// Bios that have not been looked at, oldest first.
    queue: BioList,
    /// Blocks of the bio looked at last (it is on the `waiting` list already) that are not claimed
    /// yet: next and end.
    current: Option<(u64, u64)>,
    /// Places that were taken but found no page: first block and count.
    spare: Option<(u64, u64)>,
    /// The part of the COW file that the last place was in.
    extent: FileExtent,
    /// Single pages.
    pages: KVec<CopyPages>,
    /// Memory for the index to grow.
    stock: Stock,
}

impl Claims {
    /// Nothing is claimed. May sleep.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            queue: BioList::new(),
            current: None,
            spare: None,
            extent: FileExtent::default(),
            pages: KVec::with_capacity(PAGES_AT_HAND, GFP_KERNEL)?,
            stock: Stock::empty(),
        })
    }

    /// Nothing is left to be claimed.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.is_none()
    }

    /// A single page; from the system only when none is left over.
    fn page(&mut self, snap: &Snapshot) -> Option<CopyPages> {
        if self.pages.is_empty() {
            snap.ring.lock().take_singles(&mut self.pages);
        }
        self.pages
            .pop()
            .or_else(CopyPages::alloc)
            .or_else(|| snap.ring.lock().reserve_page())
    }

    /// The largest buffer of at most `blocks` blocks that can be had.
    fn buffer(&mut self, snap: &Snapshot, blocks: u64) -> Option<CopyPages> {
        if blocks < 2 {
            return self.page(snap);
        }
        let kept = snap.ring.lock().take_large(blocks);
        kept.or_else(|| CopyPages::alloc_large(blocks)).or_else(|| self.page(snap))
    }

    /// Where `place` lies on the origin, and how many blocks follow it there.
    fn locate(&mut self, snap: &Snapshot, place: u64) -> Option<(u64, u64)> {
        let behind = self.extent.file_end();
        if place < self.extent.file_block || place >= behind {
            let (origin_block, len) = Snapshot::locate(&snap.file_map(), place)?;
            self.extent = FileExtent { file_block: place, origin_block, len };
        }
        let rest = self.extent.skip(place.saturating_sub(self.extent.file_block));
        Some((rest.origin_block, rest.len))
    }
}

/// Why claiming stops.
enum Stop {
    /// The ring is full, or memory is short, or the index has had its share of it: whoever retires
    /// copies, or writes the index, wakes us.
    Blocked(u64),
    /// Going on from this block would sleep.
    Sleeps(u64),
    /// The snapshot has failed.
    Failed,
}

/// What a claimer may do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Nothing but look: it is in somebody else's `submit_bio`.
    None,
    /// Sleep until a bio of a pool is free.
    Sleep,
}

/// Takes a held write to blocks that are not all preserved. Neither sleeps nor waits.
pub(crate) fn submit(snap: &Arc<Snapshot>, bio: HeldBio) {
    delays::at(Step::Claim);
    // Behind those that wait already: room that comes free is theirs.
    let turn = snap
        .claims
        .try_lock()
        .filter(|c| c.is_idle() && snap.parked.is_empty() && !snap.lets_go());
    let Some(mut claims) = turn else {
        snap.parked.push(bio);
        snap.as_arc_borrow().wake_claim();
        return;
    };
    let preserved = begin(snap, &mut claims, bio, Patience::None);
    drop(claims);
    if let Some(bio) = preserved {
        snap.hand_back(bio);
    }
}

/// The work: claims blocks for all parked bios, as far as there is room.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let mut claims = snap.claims.lock();
    plugged(|| loop {
        let mut new = snap.parked.take();
        claims.queue.append(&mut new);
        if snap.lets_go() {
            // Nobody's old data is needed any more: hand back whatever is held.
            claims.current = None;
            let mut all = core::mem::replace(&mut claims.queue, BioList::new());
            snap.waiting.lock().append(&mut all);
            snap.as_arc_borrow().wake_release();
            return;
        }
        if let Some((next, end)) = claims.current.take() {
            match claim_range(snap, &mut claims, next, end, &mut None, Patience::Sleep) {
                // Perhaps others had claimed everything and are done: look once.
                Ok(()) => snap.as_arc_borrow().wake_release(),
                Err(stop) => stopped(snap, &mut claims, stop, end),
            }
        } else {
            let Some(bio) = claims.queue.pop_front() else { return };
            if let Some(bio) = begin(snap, &mut claims, bio, Patience::Sleep) {
                snap.waiting.lock().push_back(bio);
                snap.as_arc_borrow().wake_release();
            }
        }
        if claims.current.is_some() {
            return;
        }
    });
}

/// Claims for one bio. It comes back when there is nothing that it has to wait for.
fn begin(
    snap: &Arc<Snapshot>,
    claims: &mut Claims,
    bio: HeldBio,
    patience: Patience,
) -> Option<HeldBio> {
    let (start, len) = snap.blocks_of(bio.view());
    let end = start.saturating_add(len);
    snap.counters.held.fetch_add(1, Ordering::Relaxed);
    let mut bio = Some(bio);
    let result = claim_range(snap, claims, start, end, &mut bio, patience);
    if let Some(bio) = bio {
        if result.is_ok() && snap.preserved.all(start, len) {
            return Some(bio);
        }
        snap.waiting.lock().push_back(bio);
        // What it waits for may have come just now.
        snap.as_arc_borrow().wake_release();
    }
    if let Err(stop) = result {
        stopped(snap, claims, stop, end);
    }
    None
}

/// Sees to it that claiming goes on, once it can, with the blocks before `end`.
fn stopped(snap: &Arc<Snapshot>, claims: &mut Claims, stop: Stop, end: u64) {
    match stop {
        // Whoever stored the failure has woken all.
        Stop::Failed => {}
        Stop::Sleeps(at) => {
            claims.current = Some((at, end));
            snap.as_arc_borrow().wake_claim();
        }
        Stop::Blocked(at) => {
            claims.current = Some((at, end));
            snap.claim_blocked.store(true, Ordering::SeqCst);
            // Either the one who retires sees the flag, or we see what it has retired.
            if snap.index.is_full() {
                snap.as_arc_borrow().wake_page();
                return;
            }
            let room = snap.ring.lock().room();
            let page = claims.page(snap);
            if room == 0 || page.is_none() {
                Snapshot::write_copies(snap);
            } else if snap.claim_blocked.swap(false, Ordering::SeqCst) {
                snap.as_arc_borrow().wake_claim();
            }
            if let Some(page) = page {
                // There is room, as one was taken out or none was there.
                let _ = claims.pages.push_within_capacity(page);
            }
        }
    }
}

/// Claims the unclaimed blocks of `next..end` and submits the reads of their old data. `bio`, which waits
/// for all of them, goes to whoever will let it go; it stays when nothing was submitted.
fn claim_range(
    snap: &Arc<Snapshot>,
    claims: &mut Claims,
    mut next: u64,
    end: u64,
    bio: &mut Option<HeldBio>,
    patience: Patience,
) -> Result<(), Stop> {
    let whole = end.saturating_sub(next);
    while next < end {
        let left = end.saturating_sub(next);
        // The memory first: what it does not know (any more) and is not preserved *afterwards* was
        // never claimed.
        let free = match snap.index.in_memory(next, left) {
            Found::Run { len, .. } => {
                next = next.saturating_add(len);
                continue;
            }
            Found::Gap(len) => len,
        };
        next = next.saturating_add(match snap.preserved.run(next, free) {
            (true, len) => len,
            (false, len) => {
                let one_read = len == whole && !faults::active(Fault::PublishEarly);
                claim_run(snap, claims, (next, len), bio, one_read, patience)?
            }
        });
    }
    Ok(())
}

/// Claims up to so many blocks from the first of `blocks` on, all of them unclaimed, and submits one read
/// for them. How many. When that is all of them, and `one_read`, `bio` waits for this read and nothing else.
fn claim_run(
    snap: &Arc<Snapshot>,
    claims: &mut Claims,
    (block, len): (u64, u64),
    bio: &mut Option<HeldBio>,
    one_read: bool,
    patience: Patience,
) -> Result<u64, Stop> {
    let fail = |error| {
        Snapshot::fail(snap.as_arc_borrow(), error);
        Stop::Failed
    };
    // Whoever comes here has broken the seal.
    snap.index.wake();
    let room = snap.ring.lock().room();
    if room == 0 || snap.index.is_full() {
        return Err(Stop::Blocked(block));
    }
    if patience == Patience::None && !(claims.stock.is_full() && snap.preserved.is_reserved(block, len)) {
        return Err(Stop::Sleeps(block));
    }
    // For the next one who cannot sleep. Without memory the index says so when it needs some.
    let _ = claims.stock.fill();
    // A quarter of the ring at most, so that the copier has something to do while a large bio claims.
    let want = len.min(MAX_JOB).min(room).min(snap.copy_quarter());
    let (place, n) = match claims.spare.take() {
        Some(spare) => spare,
        None => {
            let taken = snap.space.take(want).ok_or_else(|| fail(EFBIG))?;
            snap.space_taken(snap.space.free_blocks());
            taken
        }
    };
    claims.spare = Some((place, n));
    // A block that was taken but lies nowhere: our own book-keeping is broken.
    let (origin, run) = claims.locate(snap, place).ok_or_else(|| fail(EUCLEAN))?;
    let want = want.min(n).min(run);
    if snap.preserved.reserve(block, want).is_err() {
        return Err(fail(ENOMEM));
    }

    let read = old_read(snap, claims, (block, want), patience)?;
    let Some((mut read, got)) = read else {
        // Pages come back when copies under way reach the disk. None under way: nothing to wait for.
        return Err(if snap.ring.lock().in_use() == 0 { fail(ENOMEM) } else { Stop::Blocked(block) });
    };
    claims.spare = n.checked_sub(got).filter(|rest| *rest != 0).map(|rest| (place.saturating_add(got), rest));
    read.payload_mut().seq = enter(snap, &read, place, origin);
    // In the ring first: the pager lets go of entries when all that was in the ring before has been read.
    if let Err(e) = snap.index.insert(Run { block, place, len: got }, &mut claims.stock) {
        read.drop_pages();
        return Err(fail(e));
    }
    // Before the read goes: whoever completes it finds the bio there.
    match bio.take() {
        Some(bio) if one_read && got == len => read.payload_mut().waiter = Some(bio),
        Some(bio) => snap.waiting.lock().push_back(bio),
        None => {}
    }
    snap.reads.enter();
    read.submit();
    Snapshot::index_grew(snap);
    if faults::active(Fault::PublishEarly) {
        snap.as_arc_borrow().wake_release();
    }
    Ok(got)
}

/// A read of so many blocks from the first of `blocks` on, or of fewer when memory is short. How many;
/// `None` when there is no page.
fn old_read(
    snap: &Arc<Snapshot>,
    claims: &mut Claims,
    (block, want): (u64, u64),
    patience: Patience,
) -> Result<Option<(PoolBio<OldRead>, u64)>, Stop> {
    // One buffer for all, if the memory has it.
    let mut pages = claims.buffer(snap, want);
    let vecs = match &pages {
        Some(pages) if pages.blocks() == want => 1,
        Some(_) => want,
        None => return Ok(None),
    };
    let payload = OldRead { snapshot: snap.clone(), block, seq: 0, waiter: None };
    let op = bindings::req_op_REQ_OP_READ | REQ_SYNC;
    let sector = block.saturating_mul(8);
    let mut read = match patience {
        Patience::None => snap
            .read_pool
            .try_alloc(snap.bdev, vecs as u16, op, sector, payload)
            .map_err(|_| {
                // It may be of the reserve.
                if let Some(buffer) = pages.take() {
                    snap.ring.lock().unused(buffer);
                }
                Stop::Sleeps(block)
            })?,
        // Until an earlier read completes; the `finish` queue sees to that.
        Patience::Sleep => snap.read_pool.alloc(snap.bdev, vecs as u16, op, sector, payload),
    };
    let mut got = 0;
    while let Some(buffer) = pages.take() {
        let n = buffer.blocks();
        let bytes = snap.bytes_of(block.saturating_add(got), n);
        buffer.zero_rest_of_block(bytes);
        read.add_pages(buffer, bytes);
        got = got.saturating_add(n);
        let left = want.saturating_sub(got);
        if left != 0 {
            pages = claims.buffer(snap, left);
        }
    }
    Ok(Some((read, got)))
}

/// Enters the buffers of a read in the ring, which go to `place` and so on, `origin` on the origin. The
/// first sequence number.
fn enter(snap: &Snapshot, read: &PoolBio<OldRead>, place: u64, origin: u64) -> u64 {
    let mut ring = snap.ring.lock();
    let first = ring.head();
    let mut done = 0;
    for i in 0..read.buffers() {
        let len = u64::from(read.buffer_bytes(i)).div_ceil(4096);
        ring.push(place.saturating_add(done), origin.saturating_add(done), len);
        done = done.saturating_add(len);
    }
    first
}

/// `REQ_SYNC` (`include/linux/blk_types.h`): somebody waits for this.
const REQ_SYNC: u32 = 1 << bindings::req_flag_bits___REQ_SYNC;
