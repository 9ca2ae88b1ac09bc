// SPDX-License-Identifier: GPL-2.0-only
//! Reading and writing single blocks of a device, and waiting for it: for metadata of our own.
//!
//! All memory is there before the first write, as writeback may be waiting for the write.

use super::{
    bdev::Bdev,
    bio_pool::{BioPool, EndIo, PoolBio, PoolId},
    bio::Status,
    ffi,
    gate::Gate,
    plug,
};
use crate::mem::Context;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use kernel::{bindings, prelude::*, sync::Arc};

/// A block in memory.
pub(crate) type Block = [u8; 4096];

/// Blocks that are written at once.
const BATCH: usize = 16;

/// `REQ_*` (`include/linux/blk_types.h`).
const SYNC: u32 = 1 << bindings::req_flag_bits___REQ_SYNC;
const META: u32 = 1 << bindings::req_flag_bits___REQ_META;
const FUA: u32 = 1 << bindings::req_flag_bits___REQ_FUA;
const PREFLUSH: u32 = 1 << bindings::req_flag_bits___REQ_PREFLUSH;

/// What has to be on stable storage when a write returns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Nothing yet: a later flush sees to it.
    Later,
    /// The write itself.
    Itself,
    /// The write itself, and before it everything that had completed.
    AfterAllBefore,
}

impl Durability {
    const fn flags(self) -> u32 {
        match self {
            Durability::Later => 0,
            Durability::Itself => FUA,
            Durability::AfterAllBefore => FUA | PREFLUSH,
        }
    }
}

/// A page of its own.
struct Page(NonNull<Block>);

// SAFETY: Plain memory, owned.
unsafe impl Send for Page {}

impl Page {
    fn new(context: Context) -> Result<Self> {
        // SAFETY: Plain allocation of a zeroed page.
        NonNull::new(unsafe { ffi::dbd_alloc_leaf(context.gfp()) }.cast())
            .map(Self)
            .ok_or(ENOMEM)
    }

    fn block(&self) -> &Block {
        // SAFETY: Owned, a page long. No I/O is under way while a reference exists: see `RawIo`.
        unsafe { self.0.as_ref() }
    }

    fn block_mut(&mut self) -> &mut Block {
        // SAFETY: As above.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: Allocated as a single page in `new`.
        unsafe { bindings::free_pages(self.0.as_ptr() as usize, 0) }
    }
}

/// What completions report to.
struct Progress {
    under_way: Gate,
    failed: AtomicBool,
}

/// The payload of our bios.
struct Completion(Arc<Progress>);

impl EndIo for Completion {
    fn end_io(bio: PoolBio<Self>) {
        let progress = bio.payload().0.clone();
        if bio.status() != Status::Ok {
            progress.failed.store(true, Ordering::Release);
        }
        drop(bio);
        progress.under_way.leave();
    }
}

/// Writes and reads blocks of one device. All methods sleep until their I/O is done, so the pages are
/// ours again whenever none of them runs.
pub(crate) struct RawIo {
    bdev: Bdev,
    pages: KVec<Page>,
    /// The blocks that are in the first pages because of [`RawIo::read_ahead`], until they are read.
    ahead: KVec<Option<u64>>,
    progress: Arc<Progress>,
    // Last: bios refer to it.
    pool: BioPool<Completion>,
}

impl RawIo {
    /// For the device `bdev`, which stays valid for as long as the result lives. No write may wait for the caller.
    pub(crate) fn new(bdev: Bdev) -> Result<Self> {
        Self::with_room(bdev, BATCH)
    }

    /// The same, with room for so many blocks at once.
    pub(crate) fn with_room(bdev: Bdev, blocks: usize) -> Result<Self> {
        Self::build(bdev, blocks, Context::Control)
    }

    /// The same as [`RawIo::new`], for a worker that writes may wait for.
    pub(crate) fn for_worker(bdev: Bdev) -> Result<Self> {
        Self::build(bdev, BATCH, Context::Sleep)
    }

    fn build(bdev: Bdev, blocks: usize, context: Context) -> Result<Self> {
        let mut pages = KVec::with_capacity(blocks, GFP_KERNEL)?;
        for _ in 0..blocks {
            pages.push(Page::new(context)?, GFP_KERNEL)?;
        }
        let progress = Arc::new(
            Progress { under_way: Gate::new(), failed: AtomicBool::new(false) },
            GFP_KERNEL,
        )?;
        // A reserve, so that some always get on. More than that are waited for if there is no memory for them.
        let pool = BioPool::new(BATCH as u32, true, false)?;
        Ok(Self { bdev, pages, ahead: KVec::with_capacity(blocks, GFP_KERNEL)?, progress, pool })
    }

    /// Tells our writes from everybody else's.
    pub(crate) fn id(&self) -> PoolId {
        self.pool.id()
    }

    fn start(&self, page: Option<&Page>, opf: u32, block: u64) {
        let mut bio = self.pool.alloc(
            self.bdev,
            u16::from(page.is_some()),
            opf,
            block.saturating_mul(8),
            Completion(self.progress.clone()),
        );
        if let Some(page) = page {
            bio.add_memory(page.0.cast());
        }
        self.progress.under_way.enter();
        bio.submit();
    }

    fn finish(&self) -> Result {
        self.progress.under_way.wait_empty();
        if self.progress.failed.swap(false, Ordering::AcqRel) {
            return Err(EIO);
        }
        Ok(())
    }

    /// Writes blocks: `next` fills one in and says which block of the device it is, until it has no
    /// more.
    ///
    /// # Errors
    ///
    /// EIO: some block may not have been written. All have been tried.
    pub(crate) fn write(
        &mut self,
        durability: Durability,
        mut next: impl FnMut(&mut Block) -> Option<u64>,
    ) -> Result {
        self.ahead.clear();
        let opf = bindings::req_op_REQ_OP_WRITE | SYNC | META | durability.flags();
        let mut result = Ok(());
        loop {
            let mut started = 0usize;
            let mut more = true;
            for i in 0..self.pages.len() {
                let Some(page) = self.pages.get_mut(i) else { break };
                let Some(block) = next(page.block_mut()) else {
                    more = false;
                    break;
                };
                if let Some(page) = self.pages.get(i) {
                    self.start(Some(page), opf, block);
                    started = started.saturating_add(1);
                }
            }
            if started != 0 {
                result = self.finish().and(result);
            }
            if !more || started == 0 {
                return result;
            }
        }
    }

    /// Waits until everything that has completed is on stable storage.
    pub(crate) fn flush(&mut self) -> Result {
        self.start(None, bindings::req_op_REQ_OP_WRITE | SYNC | PREFLUSH, 0);
        self.finish()
    }

    /// Reads a block into memory that the caller may change.
    pub(crate) fn read_mut(&mut self, block: u64) -> Result<&mut Block> {
        self.ahead.clear();
        self.read(block)?;
        Ok(self.pages.get_mut(0).ok_or(EIO)?.block_mut())
    }

    /// Reads blocks at once, as many as there is room for, so that [`RawIo::read`] has them when it comes to
    /// them; each once, and not behind a write. If one of them fails it has none: it then reads them one by one, and
    /// says itself which one it is.
    pub(crate) fn read_ahead(&mut self, blocks: &[u64]) {
        self.ahead.clear();
        plug::plugged(|| {
            for (page, block) in self.pages.iter().zip(blocks) {
                self.start(Some(page), bindings::req_op_REQ_OP_READ | SYNC | META, *block);
            }
        });
        if self.finish().is_err() {
            return;
        }
        for (_, block) in self.pages.iter().zip(blocks) {
            // There is room for one for each page.
            let _ = self.ahead.push_within_capacity(Some(*block));
        }
    }

    /// Reads a block.
    pub(crate) fn read(&mut self, block: u64) -> Result<&Block> {
        if let Some(i) = self.ahead.iter().position(|ahead| *ahead == Some(block)) {
            if let Some(taken) = self.ahead.get_mut(i) {
                *taken = None;
            }
            return Ok(self.pages.get(i).ok_or(EIO)?.block());
        }
        // Its page is the first.
        self.ahead.clear();
        let page = self.pages.first().ok_or(EIO)?;
        self.start(Some(page), bindings::req_op_REQ_OP_READ | SYNC | META, block);
        self.finish()?;
        Ok(self.pages.first().ok_or(EIO)?.block())
    }
}
