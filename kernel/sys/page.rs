// SPDX-License-Identifier: GPL-2.0-only
//! Reference-counted memory that holds copies of old blocks.

use super::ffi;
use core::ptr::NonNull;
use kernel::bindings;

/// Pages of the largest buffer, as a power of two: 1 MiB.
pub(crate) const MAX_ORDER: u32 = 8;

/// Bytes of memory that this machine has.
pub(crate) fn memory() -> u64 {
    // SAFETY: no preconditions.
    unsafe { ffi::dbd_memory() }
}

/// One reference to a buffer of 2^n pages in a row. A page is a block.
///
/// # Invariants
///
/// Owns one reference count of a valid page, or of the first page of a valid compound page.
pub(crate) struct CopyPages(NonNull<bindings::page>);

// SAFETY: A page reference belongs to no task.
unsafe impl Send for CopyPages {}
// SAFETY: `&CopyPages` only allows taking further references and address look-ups.
unsafe impl Sync for CopyPages {}

impl CopyPages {
    /// A page, not zeroed; `None` when memory is short. Never sleeps.
    pub(crate) fn alloc() -> Option<Self> {
        // SAFETY: Plain allocation.
        // INVARIANT: The allocation carries one reference.
        NonNull::new(unsafe { ffi::dbd_alloc_pages(0) }).map(Self)
    }

    /// A page for a reserve, not zeroed. Sleeps until reclaim has found one, so only where no write waits for the
    /// caller; `None` when there is nothing to reclaim.
    pub(crate) fn alloc_for_reserve() -> Option<Self> {
        // SAFETY: Plain allocation.
        // INVARIANT: The allocation carries one reference.
        NonNull::new(unsafe { ffi::dbd_alloc_reserve_page() }).map(Self)
    }

    /// The largest buffer of at most `blocks` blocks that is free in one piece; `None` when that would
    /// be a single page. Not zeroed. Never sleeps, and wakes nobody to make room.
    pub(crate) fn alloc_large(blocks: u64) -> Option<Self> {
        let mut order = blocks.checked_ilog2()?.min(MAX_ORDER);
        while order > 0 {
            // SAFETY: Plain allocation.
            // INVARIANT: As above; of this order it is a compound page.
            if let Some(page) = NonNull::new(unsafe { ffi::dbd_alloc_pages(order) }) {
                return Some(Self(page));
            }
            order = order.saturating_sub(2);
        }
        None
    }

    /// # Safety
    ///
    /// The caller passes on one reference that it owns.
    pub(super) unsafe fn from_raw(page: NonNull<bindings::page>) -> Self {
        Self(page)
    }

    pub(super) fn into_raw(self) -> NonNull<bindings::page> {
        let page = self.0;
        core::mem::forget(self);
        page
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::page {
        self.0.as_ptr()
    }

    /// Its size in pages, as a power of two.
    pub(crate) fn order(&self) -> u32 {
        // SAFETY: The page is valid while we own a reference.
        unsafe { ffi::dbd_page_order(self.as_ptr()) }
    }

    /// Blocks that it has room for.
    pub(crate) fn blocks(&self) -> u64 {
        1u64.wrapping_shl(self.order())
    }

    /// One more reference to the same buffer.
    pub(crate) fn share(&self) -> Self {
        // SAFETY: The page is valid while we own a reference.
        unsafe { ffi::dbd_get_page(self.as_ptr()) };
        Self(self.0)
    }

    /// Whether this is the only reference.
    pub(crate) fn is_sole(&self) -> bool {
        // SAFETY: The page is valid while we own a reference.
        unsafe { ffi::dbd_page_is_sole(self.as_ptr()) }
    }

    /// Zeroes the block that byte `offset` is in, from there to its end; nothing when that is where a
    /// block begins. `offset` lies within the buffer, or at its end.
    pub(crate) fn zero_rest_of_block(&self, offset: u32) {
        if offset % 4096 != 0 {
            // SAFETY: The page is valid and `offset` lies in it: not at the end, see above.
            unsafe { ffi::dbd_zero_rest_of_page(self.as_ptr(), offset) }
        }
    }
}

impl Drop for CopyPages {
    fn drop(&mut self) {
        // SAFETY: We own the reference that is given back here.
        unsafe { ffi::dbd_put_page(self.as_ptr()) }
    }
}
