// SPDX-License-Identifier: GPL-2.0-only
//! Writing copies from memory to the COW file, in the order in which they were claimed.

use crate::snapshot::{CopyWrite, FileMap, Snapshot, Wake, MAX_JOB};
use crate::sys::errno::EUCLEAN;
use crate::sys::plug::plugged;
use core::sync::atomic::{fence, Ordering};
use kernel::{bindings, sync::Arc};

/// The work: writes what is ready.
///
/// Full bios go at once. A shorter run goes when nothing is being written, so that copies gather
/// while the disk is busy; and at any time once the ring is half full.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let file = snap.file_map();
    plugged(|| {
        while !snap.lets_go() {
            let batch = {
                let mut ring = snap.ring.lock();
                let busy = snap.writes.count() > 0 && ring.in_use() < ring.capacity() / 2;
                ring.next_batch(if busy { MAX_JOB } else { 1 }, MAX_JOB)
            };
            let Some(batch) = batch else { return };
            let mut done = 0;
            while done < batch.len {
                let left = batch.len.saturating_sub(done);
                let n = write_run(
                    snap,
                    &file,
                    batch.seq.saturating_add(done),
                    batch.file_block.saturating_add(done),
                    left,
                );
                if n == 0 {
                    // A block that was taken but lies nowhere: our own book-keeping is broken.
                    Snapshot::fail(snap.as_arc_borrow(), EUCLEAN);
                    return;
                }
                done = done.saturating_add(n);
            }
        }
    });
}

/// Writes up to `len` copies, as far as the file is contiguous on the origin. How many.
fn write_run(snap: &Arc<Snapshot>, file: &FileMap, seq: u64, file_block: u64, len: u64) -> u64 {
    let located = Snapshot::locate(file, file_block)
        // The file has grown since we looked.
        .or_else(|| Snapshot::locate(&snap.file_map(), file_block));
    let Some((origin_block, run)) = located else { return 0 };
    let n = len.min(run);
    // May sleep until an earlier write completes; the `finish` queue sees to that.
    let mut bio = snap.write_pool.alloc(
        snap.bdev,
        n as u16,
        bindings::req_op_REQ_OP_WRITE,
        origin_block.saturating_mul(8),
        CopyWrite { snapshot: snap.clone(), seq },
    );
    let mut ring = snap.ring.lock();
    for i in 0..n {
        match ring.page(seq.saturating_add(i)) {
            Some(page) => bio.add_page(page, 4096),
            None => break,
        }
    }
    drop(ring);
    if u64::from(bio.pages()) < n {
        for k in 0..bio.pages() {
            drop(bio.take_page(k));
        }
        return 0;
    }
    // Counted first, then looked: whoever fails the snapshot stores the error first and then looks at
    // the count. So a foreign write that waits for ours to end either sees this one, or this one
    // sees that it must not go.
    snap.writes.enter();
    fence(Ordering::SeqCst);
    if snap.lets_go() {
        for k in 0..bio.pages() {
            drop(bio.take_page(k));
        }
        drop(bio);
        snap.writes.leave();
        snap.as_arc_borrow().wake_release();
    } else {
        bio.submit();
    }
    n
}
