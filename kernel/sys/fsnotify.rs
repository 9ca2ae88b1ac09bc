// SPDX-License-Identifier: GPL-2.0-only
//! Keeping an inode in memory, and learning that its filesystem goes away.
//!
//! A mark on the inode holds the inode but not the mount. It is taken off by whichever comes first:
//! [`InodeWatch::close`], or the unmount, which tells us before (`FS_UNMOUNT`, in the task that
//! drops the last reference on the superblock, with `s_umount` held).
//!
//! Lock order: `s_umount`, then [`Shared::state`], then whatever the handler takes. So nobody may drop
//! an active reference on the superblock (which may unmount) with `state` held.

use super::{
    ffi_fs as ffi,
    superblock::ActiveSuper,
    vfs::{LiveInode, OpenFile},
};
use crate::events::UnmountHandler;
use crate::sys::errno::ESTALE;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    ffi::c_void,
    new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
    types::ForeignOwnable,
};

struct State {
    /// `None` when the filesystem is gone or going, or the mark was taken off by us. Valid while the
    /// lock is held: the mark holds the inode, and whoever takes the mark off comes here first.
    inode: Option<NonNull<bindings::inode>>,
    /// `None` when the mark was taken off by us. Not called once `inode` is `None`.
    handler: Option<Arc<dyn UnmountHandler>>,
}

#[pin_data]
struct Shared {
    #[pin]
    state: Mutex<State>,
}

// SAFETY: The pointer in `state` is not tied to a task.
unsafe impl Send for Shared {}
// SAFETY: All access goes through the lock.
unsafe impl Sync for Shared {}

/// # Safety
///
/// `owner` came from `Arc::<Shared>::into_foreign` and has not been released.
unsafe extern "C" fn unmounted(owner: *mut c_void) {
    // SAFETY: By the contract.
    let shared = unsafe { <Arc<Shared> as ForeignOwnable>::borrow(owner) };
    let mut state = shared.state.lock();
    if state.inode.take().is_some() {
        // Under the lock, so that `close` waits for it.
        if let Some(handler) = &state.handler {
            handler.unmounted();
        }
    }
}

/// # Safety
///
/// As for [`unmounted`]; `owner` is not used afterwards.
unsafe extern "C" fn release(owner: *mut c_void) {
    // SAFETY: By the contract.
    drop(unsafe { <Arc<Shared> as ForeignOwnable>::from_foreign(owner) });
}

static OPS: ffi::WatchOps = ffi::WatchOps { unmounted, release };

/// What all watches of the module have in common; there is one in the module, which outlives them.
pub(crate) struct Watches(());

impl Watches {
    /// Once for each load of the module.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: `OPS` is static. Called once, before any watch is made.
        to_result(unsafe { ffi::dbd_watch_init(&OPS) })?;
        Ok(Self(()))
    }
}

impl Drop for Watches {
    /// Waits until no callback of this module can run any more.
    fn drop(&mut self) {
        // SAFETY: `new` succeeded; the module drops this last.
        unsafe { ffi::dbd_watch_exit() }
    }
}

/// A mark on an inode.
///
/// # Invariants
///
/// `mark` came from `dbd_watch_add` with a reference on `shared` as its owner, and is ours to remove.
pub(crate) struct InodeWatch {
    shared: Arc<Shared>,
    mark: NonNull<ffi::DbdWatch>,
}

// SAFETY: Marks may be removed by any task.
unsafe impl Send for InodeWatch {}
// SAFETY: Shared access only reaches `shared`.
unsafe impl Sync for InodeWatch {}

impl InodeWatch {
    /// Marks an open file. `handler` may be called as soon as the file is closed.
    pub(crate) fn new(file: &OpenFile, handler: Arc<dyn UnmountHandler>) -> Result<Self> {
        let inode = NonNull::new(file.inode()).ok_or(EINVAL)?;
        // SAFETY: The open file holds its inode.
        unsafe { Self::of(inode, handler) }
    }

    /// Marks an inode. `handler` may be called at once.
    ///
    /// # Safety
    ///
    /// The inode is valid during the call, and its filesystem is not past its unmount.
    pub(super) unsafe fn of(
        inode: NonNull<bindings::inode>,
        handler: Arc<dyn UnmountHandler>,
    ) -> Result<Self> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                state <- new_mutex!(State {
                    inode: Some(inode),
                    handler: Some(handler),
                }),
            }),
            GFP_KERNEL,
        )?;
        let mut mark = core::ptr::null_mut();
        let owner = shared.clone().into_foreign();
        // SAFETY: The inode is valid by the contract; `owner` is handed over in every case. `Watches`
        // exists as long as the module has files.
        to_result(unsafe { ffi::dbd_watch_add(inode.as_ptr(), owner, &mut mark) })?;
        // INVARIANT: Just added.
        let mark = NonNull::new(mark).ok_or(EINVAL)?;
        Ok(Self { shared, mark })
    }

    fn hold(&self) -> Result<(ActiveSuper, NonNull<bindings::inode>)> {
        let state = self.shared.state.lock();
        let inode = state.inode.ok_or(ESTALE)?;
        // SAFETY: Under the lock the inode is valid, and with it its superblock: the unmount
        // would have to get past `unmounted` first.
        let sb = unsafe { ActiveSuper::get((*inode.as_ptr()).i_sb) };
        // Nothing of this drops an active reference under the lock.
        Ok((sb.ok_or(ESTALE)?, inode))
    }

    /// The filesystem, kept alive until the result is dropped. ESTALE: it is gone.
    pub(crate) fn filesystem(&self) -> Result<ActiveSuper> {
        self.hold().map(|(sb, _)| sb)
    }

    /// The inode and its filesystem, kept alive until the result is dropped. ESTALE: it is gone.
    pub(crate) fn enter(&self) -> Result<LiveInode> {
        let (sb, inode) = self.hold()?;
        // SAFETY: The filesystem is held; the mark holds the inode as long as the filesystem lives and
        // `self` is borrowed.
        unsafe { LiveInode::new(sb, inode) }
    }

    /// Ends the protection of the file, if its filesystem is not gone. Needs no memory, unlike [`Self::enter`].
    pub(crate) fn unprotect(&self) {
        if let Ok((_sb, inode)) = self.hold() {
            // SAFETY: The filesystem is held; the mark holds the inode as long as the filesystem lives and
            // `self` is borrowed.
            unsafe { ffi::dbd_inode_unprotect(inode.as_ptr()) }
        }
    }

    /// The filesystem is gone, or going.
    pub(crate) fn is_gone(&self) -> bool {
        self.shared.state.lock().inode.is_none()
    }

    /// Takes the mark off. When this returns, the handler does not run and will not be called. The
    /// inode may go out of memory.
    pub(crate) fn close(self) {}
}

impl Drop for InodeWatch {
    fn drop(&mut self) {
        let handler = {
            // Waits for a handler that runs.
            let mut state = self.shared.state.lock();
            state.inode = None;
            state.handler.take()
        };
        // Here and not when fsnotify frees the mark: that is later, in a task of its own.
        drop(handler);
        // SAFETY: By the type invariant. Also when the unmount has taken the mark off.
        unsafe { ffi::dbd_watch_remove(self.mark.as_ptr()) }
    }
}
