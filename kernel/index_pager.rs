// SPDX-License-Identifier: GPL-2.0-only
//! Writing the index to the COW file, and merging what is there. `index_table.rs` says what for.
//!
//! The frozen part leaves the memory when its pages are written *and* all its blocks are preserved. So
//! what is claimed and not preserved is in memory always. A crash loses the snapshot, with or without its
//! index: nothing here is flushed.

use crate::faults::{self, Fault};
use crate::index_table::{IndexRun, Runs};
use crate::logic::{
    index_page::{Filling, Page, PageRef, Run},
    private_format::{check, seal, Block, Kind},
};
use crate::mem::{Context, LeafBox};
use crate::snapshot::{Snapshot, Wake};
use crate::sys::{
    errno::EUCLEAN,
    ffi::NoIo,
    raw_io::{Durability, RawIo},
};
use core::sync::atomic::{fence, Ordering};
use kernel::{prelude::*, sync::Arc};

/// Pages that are written in one go.
const BATCH: usize = 16;

/// A page that is about to be written: its slot, and where that lies on the origin.
#[derive(Clone, Copy, Default)]
struct Slot {
    slot: u64,
    place: u64,
}

/// Who writes pages, one at a time.
pub(crate) struct Pager {
    /// For writing. There is none before the first page.
    out: Option<RawIo>,
    /// For reading what is merged.
    input: Option<RawIo>,
    /// Number of the last run.
    last_id: u64,
    /// Slots that may be used.
    slots: KVVec<PageRef>,
    /// The frozen part, written; and the number in the ring below which its blocks have to be read.
    written: Option<(Arc<IndexRun>, u64)>,
    merge: Option<Merge>,
}

/// Two runs that become one.
struct Merge {
    from: [Cursor; 2],
    id: u64,
    pages: KVVec<PageRef>,
}

/// How far a run has been read.
pub(crate) struct Cursor {
    run: Arc<IndexRun>,
    /// The page in `block`, and the next entry of it.
    page: usize,
    entry: usize,
    loaded: bool,
    block: LeafBox<Block>,
}

impl Cursor {
    pub(crate) fn new(run: Arc<IndexRun>) -> Result<Self> {
        Ok(Self {
            run,
            page: 0,
            entry: 0,
            loaded: false,
            block: LeafBox::new(Context::Sleep)?,
        })
    }

    /// The next entry, which stays the next.
    fn peek(&mut self, snap: &Snapshot, io: &mut RawIo) -> Result<Option<Run>> {
        loop {
            if !self.loaded {
                let Some(page) = self.run.pages.get(self.page) else {
                    return Ok(None);
                };
                self.block.copy_from_slice(read_page(snap, io, self.run.id, page.slot)?);
                self.loaded = true;
                self.entry = 0;
            }
            let page = Page::open(&self.block).ok_or(EUCLEAN)?;
            if let Some(run) = page.entry(self.entry) {
                return Ok(Some(run));
            }
            self.loaded = false;
            self.page = self.page.saturating_add(1);
        }
    }

    /// Goes on to the entry behind the one that was seen.
    fn pass(&mut self) {
        self.entry = self.entry.saturating_add(1);
    }
}

/// Reads a page of the run number `id`. EUCLEAN: it is not what was written there.
pub(crate) fn read_page<'a>(
    snap: &Snapshot,
    io: &'a mut RawIo,
    id: u64,
    slot: u64,
) -> Result<&'a Block> {
    let (place, _) = Snapshot::locate(&snap.file_map(), slot).ok_or(EUCLEAN)?;
    let block = io.read(place)?;
    match check(block, Kind::Index, snap.index.nonce, slot) {
        Some(found) if found == id => Ok(block),
        _ => Err(EUCLEAN),
    }
}

/// How a step of the pager has ended.
enum Step {
    /// There may be more to do.
    More,
    /// Nothing can be done until somebody wakes us.
    Done,
}

/// The work: brings the memory below its limit, then merges.
pub(crate) fn run(snap: &Arc<Snapshot>) {
    let _no_io = NoIo::enter();
    while !snap.lets_go() {
        // Let go in between: whoever seals the file need not wait for all of it.
        let step = snap.index.pager.lock().step(snap);
        match step {
            Ok(Step::More) => {}
            Ok(Step::Done) => return,
            // Given up meanwhile: no failure.
            Err(_) if snap.lets_go() => return,
            Err(e) => return Snapshot::fail(snap.as_arc_borrow(), e),
        }
    }
}

/// Writes what `next` fills in. Counted like the copies are: see `copy::write_run`.
fn write(
    snap: &Arc<Snapshot>,
    io: &mut RawIo,
    next: impl FnMut(&mut Block) -> Option<u64>,
) -> Result {
    snap.writes.enter();
    fence(Ordering::SeqCst);
    let result = if snap.lets_go() {
        Err(EIO)
    } else {
        io.write(Durability::Later, next)
    };
    snap.writes.leave();
    if snap.lets_go() {
        snap.as_arc_borrow().wake_release();
    }
    result
}

impl Pager {
    pub(crate) const fn new() -> Self {
        Self {
            out: None,
            input: None,
            last_id: 0,
            slots: KVVec::new(),
            written: None,
            merge: None,
        }
    }

    fn step(&mut self, snap: &Arc<Snapshot>) -> Result<Step> {
        if snap.index.rests() {
            return Ok(Step::Done);
        }
        if self.written.is_none() && snap.index.freeze() {
            // What is in it was entered in the ring before.
            let seq = snap.ring.lock().head();
            match self.write_frozen(snap)? {
                Some(run) => self.written = Some((run, seq)),
                None => return Ok(Step::Done),
            }
        }
        if let Some((run, seq)) = self.written.take() {
            if !self.has_read(snap, seq) {
                self.written = Some((run, seq));
                return self.merge_step(snap);
            }
            let runs = with_one_more(&snap.index.runs(), run)?;
            snap.index.exchange_frozen(runs);
            if snap.claim_blocked.swap(false, Ordering::SeqCst) {
                snap.as_arc_borrow().wake_claim();
            }
            return Ok(Step::More);
        }
        self.merge_step(snap)
    }

    /// Whether all blocks that were entered in the ring below `seq` are preserved. If not, whoever
    /// publishes the next one wakes us.
    fn has_read(&self, snap: &Snapshot, seq: u64) -> bool {
        snap.index.pager_waits.store(true, Ordering::SeqCst);
        // Either this sees what was published, or the publisher sees the flag.
        fence(Ordering::SeqCst);
        let done = snap.ring.lock().has_read(seq);
        if done {
            snap.index.pager_waits.store(false, Ordering::SeqCst);
        }
        done
    }

    /// Up to [`BATCH`] slots. None at all: the file is full.
    fn take_slots(&mut self, snap: &Snapshot, out: &mut [Slot; BATCH]) -> Result<usize> {
        let file = snap.file_map();
        let mut n = 0usize;
        for to in out.iter_mut() {
            if self.slots.is_empty() {
                if let Some(list) = snap.index.free.take() {
                    self.slots = list;
                }
            }
            if self.slots.is_empty() {
                let Some((start, len)) = snap.space.take(BATCH as u64) else {
                    break;
                };
                snap.space_taken(snap.space.free_blocks());
                for i in (0..len).rev() {
                    let slot = start.saturating_add(i);
                    self.slots.push(PageRef { first: 0, slot }, GFP_KERNEL)?;
                }
            }
            let Some(PageRef { slot, .. }) = self.slots.pop() else {
                break;
            };
            let (place, _) = Snapshot::locate(&file, slot)
                // The file has grown since we looked.
                .or_else(|| Snapshot::locate(&snap.file_map(), slot))
                .ok_or(EUCLEAN)?;
            *to = Slot { slot, place };
            n = n.saturating_add(1);
        }
        Ok(n)
    }

    /// Slots that were not used after all.
    fn give_back(&mut self, slots: &[Slot]) -> Result {
        for s in slots {
            let slot = s.slot;
            self.slots.push(PageRef { first: 0, slot }, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// What is needed for I/O.
    fn prepare(&mut self, snap: &Snapshot) -> Result {
        if self.out.is_none() {
            let io = RawIo::for_worker(snap.bdev)?;
            // Before the first of them is submitted.
            snap.index.writes.set(io.id());
            self.out = Some(io);
        }
        if self.input.is_none() {
            self.input = Some(RawIo::for_worker(snap.bdev)?);
        }
        Ok(())
    }

    /// Writes the frozen part. `None`: the file is full.
    fn write_frozen(&mut self, snap: &Arc<Snapshot>) -> Result<Option<Arc<IndexRun>>> {
        self.prepare(snap)?;
        self.last_id = self.last_id.saturating_add(1);
        let (id, nonce) = (self.last_id, snap.index.nonce);
        let mut pages: KVVec<PageRef> = KVVec::new();
        let mut from = 0;
        loop {
            let mut slots = [Slot::default(); BATCH];
            let n = self.take_slots(snap, &mut slots)?;
            if n == 0 {
                snap.index.free.give(pages);
                if snap.index.set_no_room(true) {
                    pr_warn!(
                        "no room in the COW file for the index: it stays in memory, whatever its limit\n"
                    );
                    snap.as_arc_borrow().wake_claim();
                }
                return Ok(None);
            }
            pages.reserve(n, GFP_KERNEL)?;
            let slots = slots.get(..n).unwrap_or(&[]);
            let mut left = slots.iter();
            let io = self.out.as_mut().ok_or(EIO)?;
            write(snap, io, |block| {
                let &Slot { slot, place } = left.as_slice().first()?;
                let mut filling = Filling::default();
                snap.index.walk_frozen(from, |mut run| {
                    if faults::active(Fault::IndexWrong) {
                        run.place = run.place.saturating_sub(1);
                    }
                    let fits = filling.push(block, run);
                    if fits {
                        from = run.end();
                    }
                    fits
                });
                let first = filling.finish(block)?;
                left.next();
                seal(block, Kind::Index, nonce, slot, id);
                pages.push_within_capacity(PageRef { first, slot }).ok()?;
                Some(place)
            })?;
            let unused = left.as_slice();
            if !unused.is_empty() {
                self.give_back(unused)?;
                snap.index.set_no_room(false);
                let free = snap.index.free.clone();
                return Ok(Some(Arc::new(IndexRun { pages, id, free }, GFP_KERNEL)?));
            }
        }
    }

    /// A part of a merge, if there is one to be made.
    fn merge_step(&mut self, snap: &Arc<Snapshot>) -> Result<Step> {
        let mut merge = match self.merge.take() {
            Some(merge) => merge,
            None => match self.next_merge(&snap.index.runs())? {
                Some(merge) => merge,
                None => return Ok(Step::Done),
            },
        };
        let mut slots = [Slot::default(); BATCH];
        let n = self.take_slots(snap, &mut slots)?;
        if n == 0 {
            // Look-ups stay as slow as they are.
            snap.index.free.give(merge.pages);
            return Ok(Step::Done);
        }
        merge.pages.reserve(n, GFP_KERNEL)?;
        let slots = slots.get(..n).unwrap_or(&[]);
        let mut left = slots.iter();
        let (nonce, mut lost) = (snap.index.nonce, None);
        let out = self.out.as_mut().ok_or(EIO)?;
        let input = self.input.as_mut().ok_or(EIO)?;
        let Merge { from: [a, b], id, pages } = &mut merge;
        write(snap, out, |block| {
            let &Slot { slot, place } = left.as_slice().first()?;
            let mut filling = Filling::default();
            loop {
                let heads = a
                    .peek(snap, input)
                    .and_then(|x| Ok((x, b.peek(snap, input)?)));
                let (run, from) = match heads {
                    Ok((Some(x), Some(y))) if x.block <= y.block => (x, &mut *a),
                    Ok((_, Some(y))) => (y, &mut *b),
                    Ok((Some(x), None)) => (x, &mut *a),
                    Ok((None, None)) => break,
                    Err(e) => {
                        lost = Some(e);
                        return None;
                    }
                };
                if !filling.push(block, run) {
                    break;
                }
                from.pass();
            }
            let first = filling.finish(block)?;
            left.next();
            seal(block, Kind::Index, nonce, slot, *id);
            pages.push_within_capacity(PageRef { first, slot }).ok()?;
            Some(place)
        })?;
        if let Some(e) = lost {
            return Err(e);
        }
        let unused = left.as_slice();
        if unused.is_empty() {
            self.merge = Some(merge);
            return Ok(Step::More);
        }
        self.give_back(unused)?;
        let Merge { from: [a, b], id, pages } = merge;
        let free = snap.index.free.clone();
        let merged = Arc::new(IndexRun { pages, id, free }, GFP_KERNEL)?;
        let runs = with_merged(&snap.index.runs(), [&a.run, &b.run], merged)?;
        snap.index.replace_runs(runs);
        Ok(Step::More)
    }

    /// The last two neighbours of which the older is not twice as large as the newer.
    fn next_merge(&mut self, runs: &Runs) -> Result<Option<Merge>> {
        let pair = runs.windows(2).rev().find_map(|pair| match pair {
            [a, b] if a.pages.len() < b.pages.len().saturating_mul(2) => Some([a.clone(), b.clone()]),
            _ => None,
        });
        let Some([a, b]) = pair else { return Ok(None) };
        self.last_id = self.last_id.saturating_add(1);
        Ok(Some(Merge {
            from: [Cursor::new(a)?, Cursor::new(b)?],
            id: self.last_id,
            pages: KVVec::new(),
        }))
    }

    /// Calls `f` for all that the index knows: every entry once, in no order. The caller has seen to it
    /// that nothing is claimed meanwhile. Sleeps.
    pub(crate) fn for_each(
        &mut self,
        snap: &Snapshot,
        mut f: impl FnMut(Run) -> Result,
    ) -> Result {
        for run in snap.index.runs().iter() {
            let io = self.input.as_mut().ok_or(EIO)?;
            let mut cursor = Cursor::new(run.clone())?;
            while let Some(run) = cursor.peek(snap, io)? {
                f(run)?;
                cursor.pass();
            }
        }
        for frozen in [true, false] {
            let mut from = 0;
            loop {
                // A few at a time: `f` may sleep.
                let mut some = [Run::default(); 64];
                let mut n = 0usize;
                let fill = |run: Run| match some.get_mut(n) {
                    Some(to) => {
                        *to = run;
                        n = n.saturating_add(1);
                        true
                    }
                    None => false,
                };
                if frozen {
                    snap.index.walk_frozen(from, fill);
                } else {
                    snap.index.walk_active(from, fill);
                }
                for &run in some.iter().take(n) {
                    from = run.end();
                    f(run)?;
                }
                if n == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// A list with another run at the end.
fn with_one_more(runs: &Runs, run: Arc<IndexRun>) -> Result<Arc<Runs>> {
    let mut list = KVec::with_capacity(runs.len().saturating_add(1), GFP_KERNEL)?;
    for old in runs {
        list.push(old.clone(), GFP_KERNEL)?;
    }
    list.push(run, GFP_KERNEL)?;
    Ok(Arc::new(list, GFP_KERNEL)?)
}

/// A list with `merged` in place of `old`.
fn with_merged(
    runs: &Runs,
    old: [&Arc<IndexRun>; 2],
    merged: Arc<IndexRun>,
) -> Result<Arc<Runs>> {
    let mut list = KVec::with_capacity(runs.len(), GFP_KERNEL)?;
    let mut merged = Some(merged);
    for run in runs {
        if !old.iter().any(|o| Arc::ptr_eq(o, run)) {
            list.push(run.clone(), GFP_KERNEL)?;
        } else if let Some(merged) = merged.take() {
            list.push(merged, GFP_KERNEL)?;
        }
    }
    Ok(Arc::new(list, GFP_KERNEL)?)
}
