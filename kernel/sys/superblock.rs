// SPDX-License-Identifier: GPL-2.0-only
//! Mounted filesystems: finding, keeping alive, freezing, and opening files in them whatever the
//! caller's mount namespace is.
//!
//! Lifetime: an active reference (`s_active`) keeps a filesystem alive, not mounted: a umount by
//! its users succeeds at once, and what is left of it happens when the reference is dropped, in our
//! task. So nothing that the unmount callback takes may be held then.

use super::{
    bdev::Bdev, block_device::OpenDevice, ffi_fs as ffi, fsnotify::InodeWatch, vfs::FileId,
};
use crate::events::UnmountHandler;
use core::ptr::NonNull;
use kernel::{
    bindings, error::from_err_ptr, error::to_result, ffi::c_int, ffi::c_void, prelude::*, sync::Arc,
};

/// More block device filesystems than a kernel has.
const MAX_TYPES: usize = 64;

/// An active reference on a superblock.
///
/// # Invariants
///
/// The superblock is valid, and `self` owns one of its `s_active`.
pub(crate) struct ActiveSuper(NonNull<bindings::super_block>);

// SAFETY: References may be dropped by any task.
unsafe impl Send for ActiveSuper {}
// SAFETY: The methods only read fields that may be read at any time, or are made for that.
unsafe impl Sync for ActiveSuper {}

impl ActiveSuper {
    /// `None`: the filesystem is dying.
    ///
    /// # Safety
    ///
    /// `sb` is valid during the call.
    pub(super) unsafe fn get(sb: *mut bindings::super_block) -> Option<Self> {
        // SAFETY: By the contract.
        if !unsafe { ffi::dbd_sb_get_active(sb) } {
            return None;
        }
        // INVARIANT: Just taken.
        NonNull::new(sb).map(Self)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::super_block {
        self.0.as_ptr()
    }

    /// Mounted read-only (all of it, not one mount).
    pub(crate) fn is_read_only(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_read_only(self.as_ptr()) }
    }

    /// On one block device, whose blocks it counts from the start. Not so btrfs.
    pub(crate) fn is_simple(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_is_simple(self.as_ptr()) }
    }

    /// On `device`.
    pub(crate) fn is_on(&self, device: &OpenDevice) -> bool {
        // SAFETY: Both valid by their type invariants.
        unsafe { ffi::dbd_sb_is_on(self.as_ptr(), device.as_ptr()) }
    }

    /// Somebody else has frozen it, or is doing so: whatever wants to write would wait.
    pub(crate) fn writes_stopped(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_writes_stopped(self.as_ptr()) }
    }

    /// Size of its blocks in bytes.
    pub(crate) fn block_size(&self) -> u64 {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_block_size(self.as_ptr()) as u64 }
    }

    /// Writes back what is dirty now, as far as that works.
    pub(crate) fn sync(&self) {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_sync(self.as_ptr()) }
    }

    /// A number that all filesystems on the same disk have in common, for as long as one of them is alive.
    pub(crate) fn disk(&self) -> usize {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_disk(self.as_ptr()) as usize }
    }

    /// Whether a filesystem on the same disk is being written back as a whole. One that was frozen now would stop
    /// its writers and wait for that.
    pub(crate) fn disk_syncs(&self) -> bool {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_sb_disk_syncs(self.as_ptr()) }
    }

    /// The largest file it can hold, in bytes.
    pub(crate) fn max_file_bytes(&self) -> u64 {
        // SAFETY: Valid by the type invariant, constant.
        u64::try_from(unsafe { (*self.as_ptr()).s_maxbytes }).unwrap_or(0)
    }

    /// The name of its type, as in `mount -t`.
    pub(crate) fn type_name(&self) -> &CStr {
        // SAFETY: A live superblock holds its type, whose name is a NUL-terminated constant.
        unsafe { CStr::from_char_ptr((*(*self.as_ptr()).s_type).name) }
    }
}

impl Drop for ActiveSuper {
    fn drop(&mut self) {
        // SAFETY: By the type invariant. If it is the last reference, this unmounts.
        unsafe { bindings::deactivate_super(self.as_ptr()) }
    }
}

/// What [`find_on`] found. A filesystem that can be written to is preferred.
struct Search<'a> {
    device: &'a OpenDevice,
    writable: Option<ActiveSuper>,
    read_only: Option<ActiveSuper>,
}

/// # Safety
///
/// `sb` is valid and locked (`s_umount`), `arg` points to a `Search`.
unsafe extern "C" fn look_at(sb: *mut bindings::super_block, arg: *mut c_void) {
    // SAFETY: By the contract; the caller of `iterate_supers_type` uses it for nothing else meanwhile.
    let search = unsafe { &mut *arg.cast::<Search<'_>>() };
    // SAFETY: Both valid.
    if !unsafe { ffi::dbd_sb_is_on(sb, search.device.as_ptr()) } {
        return;
    }
    // SAFETY: Valid by the contract.
    let slot = if unsafe { ffi::dbd_sb_read_only(sb) } {
        &mut search.read_only
    } else {
        &mut search.writable
    };
    if slot.is_none() {
        // SAFETY: Valid by the contract.
        *slot = unsafe { ActiveSuper::get(sb) };
    }
}

/// The filesystem that is mounted from `device`, in whatever namespace.
///
/// Waits for other filesystems that are being mounted, unmounted or frozen at the moment: call it
/// with nothing frozen.
pub(crate) fn find_on(device: &OpenDevice) -> Option<ActiveSuper> {
    let mut types: [*mut bindings::file_system_type; MAX_TYPES] =
        [core::ptr::null_mut(); MAX_TYPES];
    let mut search = Search {
        device,
        writable: None,
        read_only: None,
    };
    // SAFETY: Room for `MAX_TYPES` pointers.
    let n = unsafe { ffi::dbd_block_filesystems(types.as_mut_ptr(), MAX_TYPES as u32) };
    for &fs in types.iter().take(n as usize) {
        if search.writable.is_none() {
            // SAFETY: `fs` is a registered type whose module is held; `look_at` gets what it wants.
            unsafe {
                bindings::iterate_supers_type(fs, Some(look_at), (&raw mut search).cast());
            }
        }
        // SAFETY: `dbd_block_filesystems` took this reference.
        unsafe { bindings::module_put((*fs).owner) };
    }
    search.writable.or(search.read_only)
}

/// What [`adopt`] has found.
pub(crate) struct Adopted {
    pub(crate) watch: Result<InodeWatch>,
    /// Size of the device that the filesystem is on, in sectors.
    pub(crate) sectors: u64,
    /// That device's number.
    pub(crate) dev: bindings::dev_t,
}

struct Adoption<'a> {
    at: Bdev,
    id: FileId,
    handler: &'a Arc<dyn UnmountHandler>,
    found: Option<Adopted>,
}

/// # Safety
///
/// `sb` is valid and locked (`s_umount`), `arg` points to an `Adoption`.
unsafe extern "C" fn try_adopt(sb: *mut bindings::super_block, arg: *mut c_void) {
    // SAFETY: By the contract; the caller of `iterate_supers_type` uses it for nothing else meanwhile.
    let adoption = unsafe { &mut *arg.cast::<Adoption<'_>>() };
    // SAFETY: Both valid.
    if adoption.found.is_some() || !unsafe { ffi::dbd_sb_is_at(sb, adoption.at.as_ptr()) } {
        return;
    }
    // SAFETY: `dbd_sb_is_at` has seen that there is a device, which the superblock holds.
    let (sectors, dev) =
        unsafe { ((*(*sb).s_bdev).bd_nr_sectors, (*(*sb).s_bdev).bd_dev) };
    let mut inode = core::ptr::null_mut();
    // SAFETY: Valid and locked; `inode` is written to on success.
    let result = to_result(unsafe {
        ffi::dbd_adopt_inode(sb, adoption.id.ino, adoption.id.generation, &mut inode)
    });
    let watch = result.and_then(|()| {
        let inode = NonNull::new(inode).ok_or(EINVAL)?;
        // SAFETY: We hold a reference on the inode, and `s_umount`, which its unmount needs.
        let watch = unsafe { InodeWatch::of(inode, adoption.handler.clone()) };
        if watch.is_err() {
            // SAFETY: Valid; `dbd_adopt_inode` protected it.
            unsafe { ffi::dbd_inode_unprotect(inode.as_ptr()) };
        }
        // SAFETY: The reference that `dbd_adopt_inode` gave.
        unsafe { bindings::iput(inode.as_ptr()) };
        watch
    });
    adoption.found = Some(Adopted { watch, sectors, dev });
}

/// If a filesystem is mounted from the place of `at`: protects the file `id` in it and watches it. No
/// reference on the filesystem is held at any moment, so that an unmount is never ours to finish.
///
/// Waits for filesystems that are being mounted, unmounted or frozen at the moment: call it with
/// nothing frozen and no lock that the handler takes.
pub(crate) fn adopt(
    at: Bdev,
    id: FileId,
    handler: &Arc<dyn UnmountHandler>,
) -> Option<Adopted> {
    let mut types: [*mut bindings::file_system_type; MAX_TYPES] =
        [core::ptr::null_mut(); MAX_TYPES];
    let mut adoption = Adoption { at, id, handler, found: None };
    // SAFETY: Room for `MAX_TYPES` pointers.
    let n = unsafe { ffi::dbd_block_filesystems(types.as_mut_ptr(), MAX_TYPES as u32) };
    for &fs in types.iter().take(n as usize) {
        if adoption.found.is_none() {
            // SAFETY: `fs` is a registered type whose module is held; `try_adopt` gets what it wants.
            unsafe {
                bindings::iterate_supers_type(fs, Some(try_adopt), (&raw mut adoption).cast());
            }
        }
        // SAFETY: `dbd_block_filesystems` took this reference.
        unsafe { bindings::module_put((*fs).owner) };
    }
    adoption.found
}

/// A filesystem frozen by us; thawed on drop.
pub(crate) struct FrozenSuper(ActiveSuper);

impl FrozenSuper {
    /// EBUSY: another part of the kernel has frozen it. A freeze by user space nests with this one: each
    /// side thaws its own.
    pub(crate) fn freeze(sb: ActiveSuper) -> Result<Self> {
        // SAFETY: Alive by the invariant of `ActiveSuper`.
        to_result(unsafe { ffi::dbd_sb_freeze(sb.as_ptr()) })?;
        let frozen = Self(sb);
        // SAFETY: As above.
        if !unsafe { ffi::dbd_sb_is_frozen(frozen.0.as_ptr()) } {
            return Err(EBUSY);
        }
        Ok(frozen)
    }
}

impl Drop for FrozenSuper {
    fn drop(&mut self) {
        // SAFETY: Alive, and frozen by us.
        let err = unsafe { ffi::dbd_sb_thaw(self.0.as_ptr()) };
        if err != 0 {
            pr_err!("a filesystem could not be thawed: error {}\n", err);
        }
    }
}

/// Free space of a filesystem in bytes.
#[derive(Clone, Copy)]
pub(crate) struct FreeSpace {
    /// All of it.
    pub(crate) all: u64,
    /// What unprivileged users can have.
    pub(crate) available: u64,
}

/// A mount that nobody else sees.
///
/// # Invariants
///
/// The mount is valid and `self` owns a reference on it. It is `MNT_INTERNAL`: dropping the last
/// reference takes it down at once.
pub(crate) struct PrivateMount(NonNull<bindings::vfsmount>);

// SAFETY: References may be dropped by any task.
unsafe impl Send for PrivateMount {}

impl PrivateMount {
    /// A further mount of a live filesystem.
    pub(crate) fn of(sb: &ActiveSuper) -> Result<Self> {
        // SAFETY: Alive by the invariant of `ActiveSuper`.
        let mnt = from_err_ptr(unsafe { ffi::dbd_sb_private_mount(sb.as_ptr()) })?;
        // INVARIANT: A new mount.
        NonNull::new(mnt).map(Self).ok_or(ENOMEM)
    }

    /// Mounts the device node `source` read-only, with options as `mount -o` takes them.
    pub(crate) fn read_only(fs_type: &CStr, source: &CStr, options: &[&CStr]) -> Result<Self> {
        // SAFETY: Both are NUL-terminated.
        let fc = from_err_ptr(unsafe { ffi::dbd_mount_begin(fs_type.as_ptr(), source.as_ptr()) })?;
        for option in options {
            // SAFETY: `fc` is valid until `finish` or `abort`.
            let result: c_int = unsafe { ffi::dbd_mount_option(fc, option.as_ptr()) };
            if let Err(e) = to_result(result) {
                // SAFETY: Not used any more.
                unsafe { ffi::dbd_mount_abort(fc) };
                return Err(e);
            }
        }
        // SAFETY: Not used any more afterwards.
        let mnt = from_err_ptr(unsafe { ffi::dbd_mount_finish(fc) })?;
        // INVARIANT: A new mount.
        NonNull::new(mnt).map(Self).ok_or(ENOMEM)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::vfsmount {
        self.0.as_ptr()
    }

    /// The root of the mount.
    pub(super) fn root(&self) -> bindings::path {
        bindings::path {
            mnt: self.as_ptr(),
            // SAFETY: Valid by the type invariant, constant.
            dentry: unsafe { (*self.as_ptr()).mnt_root },
        }
    }

    pub(crate) fn free_space(&self) -> Result<FreeSpace> {
        // SAFETY: The root path of a mount that is held.
        unsafe { free_space(&self.root()) }
    }
}

impl Drop for PrivateMount {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::mntput(self.as_ptr()) }
    }
}

/// # Safety
///
/// `path` holds references on mount and dentry.
pub(super) unsafe fn free_space(path: &bindings::path) -> Result<FreeSpace> {
    let mut space = FreeSpace {
        all: 0,
        available: 0,
    };
    // SAFETY: By the contract; both numbers are written to.
    to_result(unsafe { ffi::dbd_free_space(path, &mut space.all, &mut space.available) })?;
    Ok(space)
}
