// SPDX-License-Identifier: GPL-2.0-only
//! Reference-counted pages that hold copies of old blocks.

use super::ffi;
use core::ptr::NonNull;
use kernel::bindings;

/// One reference to a page.
///
/// # Invariants
///
/// Owns one reference count of a valid order-0 page.
pub(crate) struct CopyPage(NonNull<bindings::page>);

// SAFETY: A page reference belongs to no task.
unsafe impl Send for CopyPage {}
// SAFETY: `&CopyPage` only allows taking further references and address look-ups.
unsafe impl Sync for CopyPage {}

impl CopyPage {
    /// A page, not zeroed; `None` when memory is short. Never sleeps.
    pub(crate) fn alloc() -> Option<Self> {
        // SAFETY: Plain allocation.
        // INVARIANT: The allocation carries one reference.
        NonNull::new(unsafe { ffi::dbd_alloc_page() }).map(Self)
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

    /// One more reference to the same page.
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

    /// Zeroes the page from byte `offset` (below 4096) to its end.
    pub(crate) fn zero_from(&self, offset: u32) {
        if offset < 4096 {
            // SAFETY: The page is valid and `offset` lies in it.
            unsafe { ffi::dbd_zero_page_from(self.as_ptr(), offset) }
        }
    }
}

impl Drop for CopyPage {
    fn drop(&mut self) {
        // SAFETY: We own the reference that is given back here.
        unsafe { ffi::dbd_put_page(self.as_ptr()) }
    }
}
