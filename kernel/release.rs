// SPDX-License-Identifier: GPL-2.0-only
//! Publishing old data that was read, and handing held bios back.

use crate::faults::{self, Fault};
use crate::logic::index_page::Found;
use crate::snapshot::{OldRead, Snapshot, Wake};
use crate::sys::{
    bio::{BioList, BioRef, Status},
    bio_pool::PoolBio,
    plug::plugged,
};
use core::sync::atomic::{fence, Ordering};
use kernel::{prelude::*, sync::Arc};

/// The work: publishes completed reads, then lets go every held bio whose blocks are preserved.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let mut go = BioList::new();
    let mut published = None;
    for mut bio in snap.reads_done.take() {
        let waiter = bio.payload_mut().waiter.take();
        if bio.status() == Status::Ok {
            published = Some(publish(snap, &mut bio));
        } else {
            bio.drop_pages();
            Snapshot::fail(snap.as_arc_borrow(), EIO);
        }
        drop(bio);
        if let Some(waiter) = waiter {
            if snap.lets_go() {
                // It may have to wait for our writes: see below.
                snap.waiting.lock().push_back(waiter);
            } else {
                go.push_back(waiter);
            }
        }
        snap.reads.leave();
    }
    go.append(&mut releasable(snap));
    if let Some((ready, half_full)) = published {
        Snapshot::copies_ready(snap, ready, half_full);
        // Either the pager sees what was published, or this sees that it waits.
        fence(Ordering::SeqCst);
        if snap.index.pager_waits.load(Ordering::Relaxed)
            && snap.index.pager_waits.swap(false, Ordering::SeqCst)
        {
            snap.as_arc_borrow().wake_page();
        }
    }
    // One plug: writes that were held one by one may merge again.
    plugged(|| {
        while let Some(bio) = go.pop_front() {
            snap.hand_back(bio);
        }
    });
}

/// Makes it known that the blocks of a read are preserved. How many blocks wait to be written now, and
/// whether the ring is half full.
fn publish(snap: &Snapshot, bio: &mut PoolBio<OldRead>) -> (u64, bool) {
    let (block, seq) = (bio.payload().block, bio.payload().seq);
    let mut blocks = 0u64;
    // In the ring first: see `logic/preserved.rs`. Both under the lock, as the pager takes what the ring
    // has read for preserved.
    let mut ring = snap.ring.lock();
    for i in 0..bio.buffers() {
        blocks = blocks.saturating_add(u64::from(bio.buffer_bytes(i)).div_ceil(4096));
        if let Some(pages) = bio.take_pages(i) {
            ring.fill(seq.saturating_add(u64::from(i)), pages);
        }
    }
    snap.preserved.set(block, blocks);
    (ring.ready(), ring.is_half_full())
}

/// Takes the bios off the waiting list that need not wait any more.
fn releasable(snap: &Arc<Snapshot>) -> BioList {
    let mut waiting = snap.waiting.lock();
    if !snap.lets_go() {
        return waiting.extract(|bio| may_go(snap, bio));
    }
    if snap.must_wait_for_writes() {
        // `stored` wakes us when the last of our writes is done.
        return BioList::new();
    }
    core::mem::replace(&mut *waiting, BioList::new())
}

/// Whether the old data of all its blocks is safe. Looks no further than the first block that is
/// not, so a bio that still waits costs one look-up.
fn may_go(snap: &Arc<Snapshot>, bio: BioRef<'_>) -> bool {
    let (start, len) = snap.blocks_of(bio);
    if faults::active(Fault::PublishEarly) {
        return (start..start.saturating_add(len)).all(|b| {
            snap.preserved.all(b, 1) || !matches!(snap.index.in_memory(b, 1), Found::Gap(_))
        });
    }
    snap.preserved.all(start, len)
}
