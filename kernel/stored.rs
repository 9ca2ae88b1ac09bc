// SPDX-License-Identifier: GPL-2.0-only
//! Copies that have reached the COW file: frees their memory. Nobody need be told: who does not find a
//! preserved block's copy in the ring knows that it is on disk.

use crate::snapshot::{Snapshot, Wake};
use crate::sys::bio::Status;
use core::sync::atomic::Ordering;
use kernel::{prelude::*, sync::Arc};

/// How long memory is kept that nobody uses, in milliseconds.
const KEEP_MS: u32 = 2000;

/// Nothing is on its way just now.
fn shrink_later(snap: &Arc<Snapshot>) {
    let delay = kernel::time::msecs_to_jiffies(KEEP_MS);
    // It may be pending already.
    let _ = snap.queues.finish.queue().enqueue_delayed::<_, 7>(snap.clone(), delay);
}

impl Snapshot {
    /// The delayed work: gives memory back, unless it is needed again. Then this comes back as well.
    pub(crate) fn shrink(&self) {
        while self.ring.lock().shrink() {}
    }
}

/// The work: takes note of completed writes.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    for mut bio in snap.writes_done.take() {
        let seq = bio.payload().seq;
        let n = u64::from(bio.buffers());
        // The bio's own references go first, so that the ring's is the last and can be used again.
        bio.drop_pages();
        if bio.status() == Status::Ok {
            let mut ring = snap.ring.lock();
            for seq in seq..seq.saturating_add(n) {
                ring.retire(seq);
            }
            if ring.can_shrink() {
                drop(ring);
                shrink_later(snap);
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
}
