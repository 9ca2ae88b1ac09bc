// SPDX-License-Identifier: GPL-2.0-only
//! Writing copies from memory to the COW file, in the order in which they were claimed.
//!
//! Copies gather in the ring until they make a full bio: a crash loses the snapshot anyway, so nothing is
//! gained by writing one early. They are not kept for more than a moment, nor when the ring is half full, or
//! when somebody waits for memory or for the end of it all ([`Snapshot::write_copies`]).

use crate::snapshot::{CopyWrite, Snapshot, Wake, MAX_JOB};
use crate::sys::{errno::EUCLEAN, plug::plugged};
use core::sync::atomic::{fence, Ordering};
use kernel::{bindings, sync::Arc};

/// How long copies may wait for company, in milliseconds.
const GATHER_MS: u32 = 20;

/// The work: writes what is ready.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let at_once = snap.copy_at_once.swap(false, Ordering::AcqRel);
    plugged(|| {
        while !snap.lets_go() {
            let batch = {
                let mut ring = snap.ring.lock();
                let min = if at_once || ring.is_half_full() { 1 } else { MAX_JOB };
                ring.next_batch(min, MAX_JOB)
            };
            let Some(batch) = batch else { return };
            write(snap, batch.seq, batch.chunks, batch.origin);
        }
    });
    // What is ready and not enough for a bio waits for company, and the end of that wait must be under way:
    // perhaps nothing more is claimed for hours. Not after `at_once`: what is left then stands behind an
    // old block that is still being read, and `copies_ready` hears of that one.
    if !at_once && !snap.lets_go() && snap.ring.lock().ready() > 0 {
        Snapshot::gather(snap);
    }
}

impl Snapshot {
    /// Copies have become ready: so many blocks, and whether the ring is half full. Sees to it that they
    /// are written, now or soon.
    pub(crate) fn copies_ready(this: &Arc<Self>, ready: u64, half_full: bool) {
        if ready >= MAX_JOB || half_full {
            this.as_arc_borrow().wake_copy();
        } else if ready > 0 && this.claim_blocked.load(Ordering::Relaxed) {
            // A writer waits for the memory.
            Self::write_copies(this);
        } else if ready > 0 {
            Self::gather(this);
        }
    }

    /// Sees to it that what is ready is written in a moment, if it has not found company by then.
    fn gather(this: &Arc<Self>) {
        if !this.gathering.swap(true, Ordering::AcqRel) {
            let delay = kernel::time::msecs_to_jiffies(GATHER_MS);
            let queues = this.queues.clone();
            let _ = queues.issue.queue().enqueue_delayed::<_, 6>(this.clone(), delay);
        }
    }

    /// The delayed work: nothing waits for company any more.
    pub(crate) fn gathered(this: &Arc<Self>) {
        // Before the look at the ring: what is ready later begins a new wait.
        this.gathering.swap(false, Ordering::AcqRel);
        Self::write_copies(this);
    }

    /// Has all copies that are ready written at once. Any context.
    pub(crate) fn write_copies(this: &Arc<Self>) {
        this.copy_at_once.store(true, Ordering::Release);
        this.as_arc_borrow().wake_copy();
    }
}

/// Writes chunks that go to blocks in a row.
fn write(snap: &Arc<Snapshot>, seq: u64, chunks: u16, origin: u64) {
    // May sleep until an earlier write completes; the `finish` queue sees to that.
    let mut bio = snap.write_pool.alloc(
        snap.bdev,
        chunks,
        bindings::req_op_REQ_OP_WRITE,
        origin.saturating_mul(8),
        CopyWrite { snapshot: snap.clone(), seq },
    );
    {
        let mut ring = snap.ring.lock();
        for seq in seq..seq.saturating_add(u64::from(chunks)) {
            if let Some((pages, len)) = ring.pages(seq) {
                bio.add_pages(pages, (len.min(MAX_JOB) as u32).saturating_mul(4096));
            }
        }
    }
    if bio.buffers() < chunks {
        // What is `Writing` is there: our own book-keeping is broken.
        bio.drop_pages();
        return Snapshot::fail(snap.as_arc_borrow(), EUCLEAN);
    }
    // Counted first, then looked: whoever fails the snapshot stores the error first and then looks at
    // the count. So a foreign write that waits for ours to end either sees this one, or this one
    // sees that it must not go.
    snap.writes.enter();
    fence(Ordering::SeqCst);
    if snap.lets_go() {
        bio.drop_pages();
        drop(bio);
        snap.writes.leave();
        snap.as_arc_borrow().wake_release();
    } else {
        bio.submit();
    }
}
