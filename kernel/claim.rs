// SPDX-License-Identifier: GPL-2.0-only
//! Claiming: a first overwrite waits here until its old data is being read.
//!
//! A single work item at a time claims, so claims need no arbitration, and the places in the COW file
//! are given out in the order in which the reads are submitted.

use crate::faults::{self, Fault};
use crate::logic::index::Stock;
use crate::logic::index_page::{Found, Run};
use crate::snapshot::{OldRead, Snapshot, Wake, MAX_JOB};
use crate::sys::{
    bio::BioList,
    page::CopyPage,
    plug::plugged,
};
use core::sync::atomic::Ordering;
use kernel::{bindings, prelude::*, sync::Arc};

/// What the claim work has taken over but not finished.
pub(crate) struct Claims {
    /// Bios that have not been looked at, oldest first.
    queue: BioList,
    /// Blocks of the bio looked at last (it is on the `waiting` list already) that are not claimed
    /// yet: next and end.
    current: Option<(u64, u64)>,
    /// Places that were taken but found no page: first block and count.
    spare: Option<(u64, u64)>,
    /// Memory for the index to grow.
    stock: Stock,
}

impl Claims {
    pub(crate) const fn new() -> Self {
        Self { queue: BioList::new(), current: None, spare: None, stock: Stock::empty() }
    }

    /// Nothing is left to be claimed.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.current.is_none()
    }
}

/// Why claiming stops.
enum Stop {
    /// The ring is full, or memory is short, or the index has had its share of it: whoever retires
    /// copies, or writes the index, wakes us.
    Blocked(u64),
    /// The snapshot has failed.
    Failed,
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
        let (next, end) = match claims.current.take() {
            Some(range) => range,
            None => {
                let Some(bio) = claims.queue.pop_front() else { return };
                let (start, len) = snap.blocks_of(bio.view());
                snap.counters.held.fetch_add(1, Ordering::Relaxed);
                // On the list before its reads are submitted: whoever completes the last one finds
                // it there. It cannot be let go before all its blocks are preserved.
                snap.waiting.lock().push_back(bio);
                (start, start.saturating_add(len))
            }
        };
        match claim_range(snap, &mut claims, next, end) {
            // Perhaps others had claimed everything and are done: look once.
            Ok(submitted) => {
                if !submitted || faults::active(Fault::PublishEarly) {
                    snap.as_arc_borrow().wake_release();
                }
            }
            Err(Stop::Failed) => {}
            Err(Stop::Blocked(at)) => {
                claims.current = Some((at, end));
                snap.claim_blocked.store(true, Ordering::SeqCst);
                // Either the one who retires sees the flag, or we see what it has retired.
                if snap.index.is_full() {
                    snap.as_arc_borrow().wake_page();
                    return;
                }
                if snap.ring.lock().room() == 0 || CopyPage::alloc().is_none() {
                    snap.as_arc_borrow().wake_copy();
                    return;
                }
            }
        }
    });
}

/// Claims the unclaimed blocks of `next..end` and submits the reads of their old data. Whether there
/// was any.
fn claim_range(
    snap: &Arc<Snapshot>,
    claims: &mut Claims,
    mut next: u64,
    end: u64,
) -> Result<bool, Stop> {
    let mut submitted = false;
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
                submitted = true;
                claim_run(snap, claims, next, len)?
            }
        });
    }
    Ok(submitted)
}

/// Claims up to `len` blocks from `block` on, all of them unclaimed, and submits one read for them.
/// How many.
fn claim_run(
    snap: &Arc<Snapshot>,
    claims: &mut Claims,
    block: u64,
    len: u64,
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
    let Claims { spare, stock, .. } = claims;
    // A quarter of the ring at most, so that the copier has something to do while a large bio claims.
    let want = len.min(MAX_JOB).min(room).min(snap.copy_quarter());
    let (place, want) = match spare.take() {
        Some((place, n)) => {
            let used = n.min(want);
            if used < n {
                *spare = Some((place.saturating_add(used), n.saturating_sub(used)));
            }
            (place, used)
        }
        None => snap.space.take(want).ok_or_else(|| fail(EFBIG))?,
    };
    snap.space_taken(snap.space.free_blocks());
    if snap.preserved.reserve(block, want).is_err() {
        return Err(fail(ENOMEM));
    }

    // May sleep until an earlier read completes; the `finish` queue sees to that.
    let mut bio = snap.read_pool.alloc(
        snap.bdev,
        want as u16,
        bindings::req_op_REQ_OP_READ | REQ_SYNC,
        block.saturating_mul(8),
        OldRead { snapshot: snap.clone(), block, seq: 0 },
    );
    let mut got = 0;
    while got < want {
        let Some(page) = CopyPage::alloc().or_else(|| snap.ring.lock().reserve_page()) else {
            break;
        };
        let bytes = snap.block_bytes(block.saturating_add(got));
        page.zero_from(bytes);
        bio.add_page(page, bytes);
        got += 1;
    }
    if got < want {
        // Nothing else is taken from the spare now, see above: it is empty unless it was too long,
        // and then it follows right behind.
        let rest = want.saturating_sub(got);
        *spare = Some(match *spare {
            Some((_, n)) => (place.saturating_add(got), rest.saturating_add(n)),
            None => (place.saturating_add(got), rest),
        });
    }
    if got == 0 {
        // Pages come back when copies under way reach the disk. None under way: nothing to wait for.
        return Err(if snap.ring.lock().in_use() == 0 { fail(ENOMEM) } else { Stop::Blocked(block) });
    }
    let seq = snap.ring.lock().push(place, got);
    bio.payload_mut().seq = seq;
    // In the ring first: the pager lets go of entries when all that was in the ring before has been read.
    if let Err(e) = snap.index.insert(Run { block, place, len: got }, stock) {
        for i in 0..bio.pages() {
            drop(bio.take_page(i));
        }
        return Err(fail(e));
    }
    snap.reads.enter();
    bio.submit();
    Snapshot::index_grew(snap);
    Ok(got)
}

/// `REQ_SYNC` (`include/linux/blk_types.h`): somebody waits for this.
const REQ_SYNC: u32 = 1 << bindings::req_flag_bits___REQ_SYNC;
