// SPDX-License-Identifier: GPL-2.0-only
//! A file below /proc whose content is made anew for each reader.

use core::ffi::c_void;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::ffi::{c_char, c_int};
use kernel::prelude::*;

/// What the file shows.
pub(crate) trait Show: Send + Sync + 'static {
    /// Writes the whole content. Called again with an empty buffer when it did not fit, so it must
    /// not depend on being called once.
    fn show(&self, out: &mut SeqWriter<'_>) -> core::fmt::Result;
}

/// The output buffer of a reader.
pub(crate) struct SeqWriter<'a>(&'a mut bindings::seq_file);

impl core::fmt::Write for SeqWriter<'_> {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        // SAFETY: a live `seq_file` that this task alone uses; `s` is valid for its length.
        // An overflow is remembered in the `seq_file`, and leads to another call of `show`.
        unsafe { bindings::seq_write(self.0, s.as_ptr().cast(), s.len()) };
        Ok(())
    }
}

/// `struct dbd_proc_file` of shim_ctl.c, with what `data` points to behind it.
#[repr(C)]
struct Inner<S> {
    show: unsafe extern "C" fn(*mut bindings::seq_file, *mut c_void) -> c_int,
    data: *const c_void,
    content: S,
}

extern "C" {
    fn dbd_proc_create(name: *const c_char, mode: u16, file: *mut c_void) -> *mut c_void;
    fn dbd_proc_remove(entry: *mut c_void);
}

/// A file in /proc; dropping it removes it and waits for its readers.
///
/// # Invariants
///
/// `entry` is the registered entry, `inner` came from a box and is what the entry refers to.
pub(crate) struct ProcFile<S: Show> {
    entry: NonNull<c_void>,
    inner: NonNull<Inner<S>>,
}

// SAFETY: the entry may be removed by any task, `S` is `Send`.
unsafe impl<S: Show> Send for ProcFile<S> {}
// SAFETY: there is no access through a shared reference.
unsafe impl<S: Show> Sync for ProcFile<S> {}

impl<S: Show> ProcFile<S> {
    /// Creates `/proc/<name>`. It may be read before this returns.
    pub(crate) fn create(name: &'static CStr, mode: u16, content: S) -> Result<Self> {
        let inner = KBox::into_raw(KBox::new(
            Inner {
                show: show::<S>,
                data: core::ptr::null(),
                content,
            },
            GFP_KERNEL,
        )?);
        // SAFETY: a live box that only this function knows yet; `inner` has the layout of
        // `struct dbd_proc_file` at its start and stays until the entry is removed.
        let entry = unsafe {
            (*inner).data = (&raw const (*inner).content).cast();
            dbd_proc_create(name.as_ptr().cast(), mode, inner.cast())
        };
        match (NonNull::new(entry), NonNull::new(inner)) {
            // INVARIANT: as the call has it.
            (Some(entry), Some(inner)) => Ok(Self { entry, inner }),
            _ => {
                // SAFETY: from `into_raw`; without an entry nobody has the pointer.
                drop(unsafe { KBox::from_raw(inner) });
                Err(ENOMEM)
            }
        }
    }
}

impl<S: Show> Drop for ProcFile<S> {
    fn drop(&mut self) {
        // SAFETY: by the type invariant. `proc_remove` waits for calls in progress and closes open
        // files, so that the box is unused when it is freed.
        unsafe {
            dbd_proc_remove(self.entry.as_ptr());
            drop(KBox::from_raw(self.inner.as_ptr()));
        }
    }
}

/// # Safety
///
/// Called by seq_file for a file that was opened with the `content` of an `Inner<S>` as its data.
unsafe extern "C" fn show<S: Show>(m: *mut bindings::seq_file, _v: *mut c_void) -> c_int {
    // SAFETY: valid and this task's own during the call (seq_file holds its lock).
    let m = unsafe { &mut *m };
    // SAFETY: `single_open` stored the pointer to the content, which lives until the entry is gone.
    let content = unsafe { &*m.private.cast::<S>() };
    match content.show(&mut SeqWriter(m)) {
        Ok(()) => 0,
        Err(_) => ENOMEM.to_errno(),
    }
}
