// SPDX-License-Identifier: GPL-2.0-only
//! Publishing old data that was read, and handing held bios back.

use crate::faults::{self, Fault};
use crate::logic::index_page::Found;
use crate::snapshot::{Snapshot, Wake};
use crate::sys::{
    bio::{BioList, BioRef, Status},
    plug::plugged,
};
use core::sync::atomic::{fence, Ordering};
use kernel::{prelude::*, sync::Arc};

/// The work: publishes completed reads, then lets go every held bio whose blocks are preserved.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let mut published = false;
    for mut bio in snap.reads_done.take() {
        let (block, seq) = (bio.payload().block, bio.payload().seq);
        let n = bio.pages();
        if bio.status() == Status::Ok {
            // In the ring first: see `logic/preserved.rs`. Both under the lock, as the pager takes what
            // the ring has read for preserved.
            let mut ring = snap.ring.lock();
            for i in 0..n {
                if let Some(page) = bio.take_page(i) {
                    ring.fill(seq.saturating_add(u64::from(i)), page);
                }
            }
            snap.preserved.set(block, u64::from(n));
            drop(ring);
            published = true;
        } else {
            for i in 0..n {
                drop(bio.take_page(i));
            }
            Snapshot::fail(snap.as_arc_borrow(), EIO);
        }
        drop(bio);
        snap.reads.leave();
    }
    let go = releasable(snap);
    if published {
        snap.as_arc_borrow().wake_copy();
        // Either the pager sees what was published, or this sees that it waits.
        fence(Ordering::SeqCst);
        if snap.index.pager_waits.load(Ordering::Relaxed)
            && snap.index.pager_waits.swap(false, Ordering::SeqCst)
        {
            snap.as_arc_borrow().wake_page();
        }
    }
    let mut go = go;
    // One plug: writes that were held one by one may merge again.
    plugged(|| {
        while let Some(bio) = go.pop_front() {
            snap.hand_back(bio);
        }
    });
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
