// SPDX-License-Identifier: GPL-2.0-only
//! Publishing old data that was read, and handing held bios back.

use crate::faults::{self, Fault};
use crate::logic::block_map::Entry;
use crate::snapshot::{Snapshot, Wake};
use crate::sys::{
    bio::{BioList, BioRef, Status},
    plug::plugged,
};
use kernel::{prelude::*, sync::Arc};

/// The work: publishes completed reads, then lets go every held bio whose blocks are preserved.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let mut published = false;
    for mut bio in snap.reads_done.take() {
        let (block, seq) = (bio.payload().block, bio.payload().seq);
        let n = bio.pages();
        if bio.status() == Status::Ok {
            // In the ring first, so that who sees `Memory` in the map finds the page there; and both under
            // one lock, which the copier takes too: else a page could be written and retired before its
            // block is published, and the map would point to a page that is gone.
            let mut ring = snap.ring.lock();
            for i in 0..n {
                if let Some(page) = bio.take_page(i) {
                    let i = u64::from(i);
                    ring.fill(seq.saturating_add(i), page);
                    snap.map.publish(block.saturating_add(i), seq.saturating_add(i));
                }
            }
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
        return (start..start.saturating_add(len)).all(|b| snap.map.get(b) != Entry::Unclaimed);
    }
    snap.map.preserved(start, len)
}
