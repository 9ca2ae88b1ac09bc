// SPDX-License-Identifier: GPL-2.0-only
//! Memory for copies: buffers that have come back are used again.
//!
//! A fresh page costs more than the copy that goes into it, where the kernel clears all memory that it
//! hands out (`init_on_alloc`, Debian's default). What is kept here and what is in use are together never
//! more than the bound for copies; when a snapshot has been idle for a while only the reserve is kept.

use crate::sys::page::{CopyPages, MAX_ORDER};
use core::array::from_fn;
use kernel::alloc::AllocError;
use kernel::prelude::*;

/// Pages kept back for when the system has none, so that writeback through us always gets on.
pub(crate) const RESERVE_PAGES: usize = 256;

const ORDERS: usize = MAX_ORDER as usize + 1;

/// See the module's description. Guarded by the lock of the ring that it belongs to; nothing sleeps.
pub(crate) struct CopyMemory {
    /// By the power of two of their size.
    pools: [KVVec<CopyPages>; ORDERS],
    /// Blocks in them.
    kept: u64,
    /// The bound for copies, in blocks.
    capacity: u64,
}

impl CopyMemory {
    /// Memory for at most `capacity` blocks. Allocates the reserve. May sleep, until
    /// reclaim has made room: no write may wait for the caller.
    pub(crate) fn new(capacity: u64) -> Result<Self, AllocError> {
        let n = usize::try_from(capacity).map_err(|_| AllocError)?.max(RESERVE_PAGES);
        let mut pools = from_fn(|_| KVVec::new());
        for (order, pool) in pools.iter_mut().enumerate() {
            *pool = KVVec::with_capacity(n >> order, GFP_KERNEL)?;
        }
        let mut memory = Self { pools, kept: 0, capacity };
        while memory.singles() < RESERVE_PAGES {
            memory.put(CopyPages::alloc_for_reserve().ok_or(AllocError)?);
        }
        Ok(memory)
    }

    fn singles(&self) -> usize {
        self.pools.first().map_or(0, |pool| pool.len())
    }

    fn put(&mut self, pages: CopyPages) {
        let order = pages.order();
        let Some(pool) = self.pools.get_mut(order as usize) else { return };
        // Full: dropped, that is freed.
        if pool.push_within_capacity(pages).is_ok() {
            self.kept = self.kept.saturating_add(1u64.wrapping_shl(order));
        }
    }

    fn pop(&mut self, order: u32) -> Option<CopyPages> {
        let pages = self.pools.get_mut(order as usize)?.pop()?;
        self.kept = self.kept.saturating_sub(1u64.wrapping_shl(order));
        Some(pages)
    }

    /// A page from the reserve.
    pub(crate) fn reserve_page(&mut self) -> Option<CopyPages> {
        self.pop(0)
    }

    /// Moves pages that are not reserved to `out`, as far as it has room.
    pub(crate) fn take_singles(&mut self, out: &mut KVec<CopyPages>) {
        while self.singles() > RESERVE_PAGES && out.len() < out.capacity() {
            let Some(page) = self.pop(0) else { return };
            // There is room: see above.
            let _ = out.push_within_capacity(page);
        }
    }

    /// The largest buffer of at most `blocks` blocks, if one is kept; else makes sure that there may be
    /// another one beside the `used` blocks that are in use. Not for single pages.
    pub(crate) fn take_large(&mut self, blocks: u64, used: u64) -> Option<CopyPages> {
        let order = blocks.checked_ilog2()?.min(MAX_ORDER);
        let kept = if order > 0 { self.pop(order) } else { None };
        if kept.is_none() {
            let room = self.capacity.saturating_sub(used).saturating_sub(blocks);
            self.shrink_to(room);
        }
        kept
    }

    /// Takes a buffer back, beside `used` blocks that are in use still.
    pub(crate) fn give(&mut self, pages: CopyPages, used: u64) {
        let total = used.saturating_add(self.kept).saturating_add(pages.blocks());
        // Somebody who reads it may have it still: then it is not ours to write to.
        if pages.is_sole() && (total <= self.capacity || self.singles() < RESERVE_PAGES) {
            self.put(pages);
        }
    }

    /// Gives back about so many blocks, but not the reserve.
    pub(crate) fn shrink_by(&mut self, blocks: u64) {
        self.shrink_to(self.kept.saturating_sub(blocks));
    }

    /// Keeps at most so many blocks, and the reserve.
    fn shrink_to(&mut self, blocks: u64) {
        for order in (0..=MAX_ORDER).rev() {
            while self.kept > blocks && (order > 0 || self.singles() > RESERVE_PAGES) {
                if self.pop(order).is_none() {
                    break;
                }
            }
        }
    }

    /// Whether there is more than the reserve.
    pub(crate) fn can_shrink(&self) -> bool {
        self.kept > RESERVE_PAGES as u64
    }
}
