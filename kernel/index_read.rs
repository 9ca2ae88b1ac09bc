// SPDX-License-Identifier: GPL-2.0-only
//! Looking places up in the pages of the index that are on disk, for reads of the snapshot. From the
//! work that repeats reads only: it may sleep.

use crate::index_pager::read_page;
use crate::index_table::{IndexRun, IndexTable};
use crate::logic::{
    index_page::{page_of, Found, Page},
    private_format::Block,
};
use crate::mem::{Context, LeafBox};
use crate::snapshot::Snapshot;
use crate::sys::{errno::EUCLEAN, raw_io::RawIo};
use core::sync::atomic::Ordering;
use kernel::prelude::*;

/// A page that was read.
struct Cached {
    /// Number of the run, 0 for none; and of the page in it.
    key: (u64, usize),
    block: LeafBox<Block>,
}

/// Pages that were read, each at the one place that it may have: who comes last stays.
pub(crate) struct PageReader {
    io: Option<RawIo>,
    /// As many as the limit allowed when it was last looked at, or as there was memory for.
    cache: KVVec<Option<Cached>>,
    allowed: usize,
}

impl PageReader {
    pub(crate) const fn new() -> Self {
        Self { io: None, cache: KVVec::new(), allowed: 0 }
    }

    /// The place of a preserved block of which the memory says nothing for `max` blocks, and how many
    /// blocks go on from there.
    ///
    /// # Errors
    ///
    /// EIO, EUCLEAN: a page cannot be read, or the block is nowhere; ENOMEM.
    pub(crate) fn find(
        &mut self,
        snap: &Snapshot,
        block: u64,
        max: u64,
    ) -> Result<(u64, u64)> {
        if self.io.is_none() {
            self.io = Some(RawIo::for_worker(snap.bdev)?);
        }
        self.fit_cache(&snap.index);
        // Taken after the look at the memory: what was there no more is here. The older ones hold more.
        for run in snap.index.runs().iter() {
            let Some(page) = page_of(&run.pages, block) else { continue };
            let content = self.page(snap, run, page)?;
            if let Found::Run { place, len } = Page::open(content).ok_or(EUCLEAN)?.find(block, max) {
                return Ok((place, len));
            }
        }
        Err(EUCLEAN)
    }

    /// As many places as the limit allows.
    fn fit_cache(&mut self, index: &IndexTable) {
        let want = index.cache_pages() as usize;
        if self.allowed == want {
            return;
        }
        self.allowed = want;
        self.cache = KVVec::new();
        index.cached.store(0, Ordering::Relaxed);
        // Without memory: fewer, or none.
        while self.cache.len() < want && self.cache.push(None, GFP_KERNEL).is_ok() {}
    }

    fn page(&mut self, snap: &Snapshot, run: &IndexRun, page: usize) -> Result<&Block> {
        let slot = run.pages.get(page).ok_or(EUCLEAN)?.slot;
        let key = (run.id, page);
        let n = self.cache.len().max(1);
        let at = (run.id.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize).wrapping_add(page) % n;
        let io = self.io.as_mut().ok_or(EIO)?;
        let Some(place) = self.cache.get_mut(at) else {
            return read_page(snap, io, run.id, slot);
        };
        let hit = place.as_ref().is_some_and(|c| c.key == key);
        if !hit {
            let fresh = match place.take() {
                Some(old) => Some(old.block),
                None => {
                    let fresh = LeafBox::<Block>::new(Context::Sleep).ok();
                    if fresh.is_some() {
                        snap.index.cached.fetch_add(4096, Ordering::Relaxed);
                    }
                    fresh
                }
            };
            let Some(mut block) = fresh else {
                return read_page(snap, io, run.id, slot);
            };
            match read_page(snap, io, run.id, slot) {
                Ok(read) => block.copy_from_slice(read),
                Err(e) => {
                    snap.index.cached.fetch_sub(4096, Ordering::Relaxed);
                    return Err(e);
                }
            }
            *place = Some(Cached { key, block });
        }
        place.as_ref().map(|c| &*c.block).ok_or(EIO)
    }
}
