// SPDX-License-Identifier: GPL-2.0-only
//! Copies that have reached the COW file: frees their memory. Nobody need be told: who does not find a
//! preserved block's page in the ring knows that it is on disk.

use crate::snapshot::{Snapshot, Wake};
use crate::sys::bio::Status;
use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc};

/// The work: takes note of completed writes.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    for mut bio in snap.writes_done.take() {
        let seq = bio.payload().seq;
        let n = bio.pages();
        // The bio's own references go first, so that the ring's is the last and can be recycled.
        for i in 0..n {
            drop(bio.take_page(i));
        }
        if bio.status() == Status::Ok {
            let mut ring = snap.ring.lock();
            for seq in seq..seq.saturating_add(u64::from(n)) {
                ring.retire(seq);
            }
        } else {
            Snapshot::fail(snap.as_arc_borrow(), EIO);
        }
        drop(bio);
        snap.writes.leave();
    }
    if snap.lets_go() {
        snap.as_arc_borrow().wake_release();
    }
    if snap.claim_blocked.swap(false, Ordering::SeqCst) {
        snap.as_arc_borrow().wake_claim();
    }
    snap.as_arc_borrow().wake_copy();
}
