// SPDX-License-Identifier: GPL-2.0-only
//! A misc device that answers ioctls.
//!
//! The `kernel` crate has one too, but on 7.2 its file operations have no owner (an open node would
//! not hold the module), and none of its versions sets the node's mode.

use core::mem::zeroed;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::container_of;
use kernel::ffi::{c_int, c_long, c_uint, c_ulong};
use kernel::prelude::*;
use kernel::types::Opaque;

use super::kobject::EventSource;
use super::module::this_module;

/// What the node does.
pub(crate) trait Calls: Send + Sync + 'static {
    /// Answers an ioctl; runs in the calling task.
    fn call(&self, cmd: u32, arg: u64) -> Result;
}

struct Inner<C> {
    calls: C,
    fops: bindings::file_operations,
    /// Linked into the kernel's list while registered: only touched through raw pointers.
    misc: Opaque<bindings::miscdevice>,
}

/// A registered misc device; dropping it removes the node.
///
/// # Invariants
///
/// The pointer came from a box. Its `misc` is registered, and `misc.fops` points to its `fops`.
pub(crate) struct MiscNode<C: Calls>(NonNull<Inner<C>>);

// SAFETY: registration and removal may happen in different tasks, `C` is `Send`.
unsafe impl<C: Calls> Send for MiscNode<C> {}
// SAFETY: shared access only reaches `&C`, which is `Sync`, and fields that no longer change.
unsafe impl<C: Calls> Sync for MiscNode<C> {}

impl<C: Calls> MiscNode<C> {
    /// Creates `/dev/<name>` with `mode`. Calls may arrive before this returns.
    pub(crate) fn register(name: &'static CStr, mode: u16, calls: C) -> Result<Self> {
        // SAFETY: a plain C struct of pointers and flags, for which all zeros means "not there".
        let mut fops: bindings::file_operations = unsafe { zeroed() };
        fops.owner = this_module();
        fops.unlocked_ioctl = Some(ioctl::<C>);
        // No `compat_ioctl`: the argument structs hold 64-bit pointers and longs.

        // SAFETY: as above; the list head is initialised by `misc_register`.
        let mut misc: bindings::miscdevice = unsafe { zeroed() };
        misc.minor = bindings::MISC_DYNAMIC_MINOR as c_int;
        misc.name = name.as_ptr().cast();
        misc.mode = mode;

        let inner = KBox::new(
            Inner {
                calls,
                fops,
                misc: Opaque::new(misc),
            },
            GFP_KERNEL,
        )?;
        let inner = KBox::into_raw(inner);
        // SAFETY: `inner` is a live box that only this function knows; the address of `fops` in it
        // stays the same until the box is freed.
        let misc = unsafe {
            let misc = (*inner).misc.get();
            (*misc).fops = &raw const (*inner).fops;
            misc
        };
        // SAFETY: filled in as `misc_register` wants it; `name` is static.
        let registered = kernel::error::to_result(unsafe { bindings::misc_register(misc) });
        if let Err(e) = registered {
            // SAFETY: from `into_raw` above; nobody else has the pointer, as it is not registered.
            drop(unsafe { KBox::from_raw(inner) });
            return Err(e);
        }
        // INVARIANT: just established.
        NonNull::new(inner).map(Self).ok_or(ENOMEM)
    }

    /// Where events about this node come from.
    pub(crate) fn event_source(&self) -> Option<EventSource> {
        // SAFETY: registered by the type invariant, so `this_device` is a live device.
        unsafe {
            let misc = (*self.0.as_ptr()).misc.get();
            EventSource::new(&raw mut (*(*misc).this_device).kobj)
        }
    }
}

impl<C: Calls> Drop for MiscNode<C> {
    fn drop(&mut self) {
        // SAFETY: registered by the type invariant, removed once. After that no file of the node is
        // open: an open one would hold the module (`fops.owner`), and the node is dropped only when
        // the module goes, or fails to load. So nobody uses the box any more.
        unsafe {
            bindings::misc_deregister((*self.0.as_ptr()).misc.get());
            drop(KBox::from_raw(self.0.as_ptr()));
        }
    }
}

/// # Safety
///
/// Called by the VFS for an open file of a `MiscNode<C>`.
unsafe extern "C" fn ioctl<C: Calls>(
    file: *mut bindings::file,
    cmd: c_uint,
    arg: c_ulong,
) -> c_long {
    // SAFETY: `misc_open` has stored the address of the `miscdevice` there, and nothing here
    // changes it.
    let misc = unsafe { (*file).private_data }.cast::<Opaque<bindings::miscdevice>>();
    // SAFETY: that `miscdevice` is the `misc` of an `Inner<C>`, which lives while a file is open.
    let inner: *const Inner<C> = unsafe { container_of!(misc, Inner<C>, misc) };
    // SAFETY: `calls` is only ever shared.
    let calls = unsafe { &(*inner).calls };
    match calls.call(cmd, arg as u64) {
        Ok(()) => 0,
        Err(e) => e.to_errno() as c_long,
    }
}
