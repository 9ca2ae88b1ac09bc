// SPDX-License-Identifier: GPL-2.0-only
//! Directories and files of a mounted filesystem.

use super::ffi_fs as ffi;
use super::superblock::{self, ActiveSuper, FreeSpace, PrivateMount};
use crate::sys::errno::ESTALE;
use core::ptr::NonNull;
use kernel::{
    bindings, error::from_err_ptr, error::to_result, ffi::c_int, prelude::*, str::CString,
};

/// A place in the tree of mounts, with references on mount and dentry.
///
/// # Invariants
///
/// Both pointers are valid and `self` owns a reference on each; the dentry is positive.
pub(crate) struct Place(bindings::path);

// SAFETY: References may be dropped by any task.
unsafe impl Send for Place {}

impl Place {
    fn from_lookup(look_up: impl FnOnce(*mut bindings::path) -> c_int) -> Result<Self> {
        let mut path = bindings::path::default();
        to_result(look_up(&mut path))?;
        // INVARIANT: A successful lookup hands both references over.
        Ok(Self(path))
    }

    /// A directory, found as the calling process would. ENOENT, ENOTDIR.
    pub(crate) fn directory(path: &CStr) -> Result<Self> {
        // SAFETY: NUL-terminated; `out` is written to on success.
        Self::from_lookup(|out| unsafe { ffi::dbd_lookup_dir(path.as_ptr(), out) })
    }

    /// A file below the root of a mount; symbolic links are followed within it.
    pub(crate) fn in_mount(mount: &PrivateMount, path: &CStr) -> Result<Self> {
        let root = mount.root();
        // SAFETY: The mount is held, and with it its root; NUL-terminated.
        Self::from_lookup(|out| unsafe { ffi::dbd_lookup_below(&root, path.as_ptr(), out) })
    }

    /// What one name in this directory stands for; a symbolic link is not followed.
    pub(crate) fn entry(&self, name: &CStr) -> Result<Self> {
        // SAFETY: Valid by the type invariant; NUL-terminated; `out` is written to on success.
        Self::from_lookup(|out| unsafe { ffi::dbd_lookup_in(&self.0, name.as_ptr(), out) })
    }

    fn inode(&self) -> *mut bindings::inode {
        // SAFETY: A positive dentry that is referenced keeps its inode.
        unsafe { (*self.0.dentry).d_inode }
    }

    /// What is there.
    pub(crate) fn traits(&self) -> InodeTraits {
        // SAFETY: Valid, see `inode`.
        unsafe { InodeTraits::of(self.inode()) }
    }

    /// Disk space of what is there, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        // SAFETY: Valid, see `inode`.
        unsafe { ffi::dbd_inode_blocks(self.inode()) }
    }

    /// The filesystem it is in.
    pub(crate) fn filesystem(&self) -> Result<ActiveSuper> {
        // SAFETY: The mount reference keeps its superblock alive.
        unsafe { ActiveSuper::get((*self.0.mnt).mnt_sb) }.ok_or(ESTALE)
    }

    /// In the same mount as `other`.
    pub(crate) fn same_mount(&self, other: &Place) -> bool {
        self.0.mnt == other.0.mnt
    }

    pub(crate) fn free_space(&self) -> Result<FreeSpace> {
        // SAFETY: Valid by the type invariant.
        unsafe { superblock::free_space(&self.0) }
    }

    /// Opens it for reading.
    pub(crate) fn open_read(&self) -> Result<OpenFile> {
        // SAFETY: Valid by the type invariant.
        OpenFile::new(unsafe { ffi::dbd_open_path(&self.0, bindings::O_RDONLY as c_int) })
    }

    /// Creates a file in this directory, mode 0000, open for reading and writing. EEXIST, also when it
    /// is a symbolic link.
    pub(crate) fn create(&self, name: &CStr) -> Result<OpenFile> {
        const FLAGS: u32 = bindings::O_CREAT
            | bindings::O_EXCL
            | bindings::O_RDWR
            | bindings::O_LARGEFILE
            | bindings::O_NOFOLLOW;
        // SAFETY: Valid by the type invariant; NUL-terminated.
        OpenFile::new(unsafe {
            bindings::file_open_root(&self.0, name.as_char_ptr(), FLAGS as c_int, 0)
        })
    }

    /// Removes this name of a file.
    pub(crate) fn unlink(&self) -> Result {
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { ffi::dbd_unlink(self.0.mnt, self.0.dentry) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::path_put(&self.0) }
    }
}

/// What kind of thing an inode is.
#[derive(Clone, Copy)]
pub(crate) struct InodeTraits(u32);

impl InodeTraits {
    /// # Safety
    ///
    /// The inode is valid.
    unsafe fn of(inode: *mut bindings::inode) -> Self {
        // SAFETY: By the contract.
        Self(unsafe { ffi::dbd_inode_traits(inode) })
    }

    pub(crate) fn is_regular(self) -> bool {
        self.0 & ffi::INODE_REGULAR != 0
    }

    pub(crate) fn is_directory(self) -> bool {
        self.0 & ffi::INODE_DIRECTORY != 0
    }

    /// Swap space, or a COW file in use.
    pub(crate) fn is_protected(self) -> bool {
        self.0 & ffi::INODE_SWAPFILE != 0
    }

    pub(crate) fn is_encrypted(self) -> bool {
        self.0 & ffi::INODE_ENCRYPTED != 0
    }

    pub(crate) fn is_verity(self) -> bool {
        self.0 & ffi::INODE_VERITY != 0
    }

    pub(crate) fn is_dax(self) -> bool {
        self.0 & ffi::INODE_DAX != 0
    }

    /// Open for writing somewhere.
    pub(crate) fn has_writers(self) -> bool {
        self.0 & ffi::INODE_WRITERS != 0
    }

    /// Immutable or append-only.
    pub(crate) fn is_locked_down(self) -> bool {
        self.0 & ffi::INODE_LOCKED_DOWN != 0
    }
}

/// What finds a file again in its filesystem, whatever its name has become.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) ino: u64,
    /// Tells it from later files of the same number.
    pub(crate) generation: u32,
}

/// An open file; closed at once when dropped, not at the task's next return to user space.
///
/// # Invariants
///
/// The file is valid, and `self` owns a reference on it.
pub(crate) struct OpenFile(NonNull<bindings::file>);

// SAFETY: The files here are used by one task at a time, any task.
unsafe impl Send for OpenFile {}

impl OpenFile {
    fn new(file: *mut bindings::file) -> Result<Self> {
        // INVARIANT: The caller passes the result of an open on.
        NonNull::new(from_err_ptr(file)?).map(Self).ok_or(ENOENT)
    }

    /// The root directory of a mount.
    pub(crate) fn root_of(mount: &PrivateMount) -> Result<Self> {
        // SAFETY: The mount is held, and with it its root.
        Self::new(unsafe { ffi::dbd_open_path(&mount.root(), bindings::O_RDONLY as c_int) })
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::file {
        self.0.as_ptr()
    }

    pub(super) fn inode(&self) -> *mut bindings::inode {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_file_inode(self.as_ptr()) }
    }

    pub(crate) fn id(&self) -> FileId {
        // SAFETY: Valid by the type invariant; both fields are constant.
        unsafe {
            FileId {
                ino: ffi::dbd_inode_number(self.inode()),
                generation: ffi::dbd_inode_generation(self.inode()),
            }
        }
    }

    fn path(&self) -> *const bindings::path {
        // SAFETY: Valid by the type invariant.
        unsafe { ffi::dbd_file_path(self.as_ptr()) }
    }

    pub(crate) fn traits(&self) -> InodeTraits {
        // SAFETY: An open file holds its inode.
        unsafe { InodeTraits::of(self.inode()) }
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        // SAFETY: An open file holds its inode.
        unsafe { ffi::dbd_inode_size(self.inode()) }
    }

    /// The path below the root of the filesystem, starting with a slash.
    pub(crate) fn path_in_fs(&self) -> Result<CString> {
        let mut buf = KVVec::new();
        buf.resize(bindings::PATH_MAX as usize, 0u8, GFP_KERNEL)?;
        let len = c_int::try_from(buf.len()).map_err(|_| EINVAL)?;
        // SAFETY: The dentry of an open file is valid; the buffer has `len` bytes, and the result
        // points to a NUL-terminated string in it.
        let path = unsafe {
            let p = bindings::dentry_path_raw((*self.path()).dentry, buf.as_mut_ptr().cast(), len);
            CStr::from_char_ptr(from_err_ptr(p)?)
        };
        Ok(CString::try_from(path)?)
    }

    /// Writes all of `data` at byte `at`, through the page cache.
    pub(crate) fn write_at(&self, data: &[u8], at: u64) -> Result {
        let mut pos = bindings::loff_t::try_from(at).map_err(|_| EFBIG)?;
        let mut rest = data;
        while !rest.is_empty() {
            // SAFETY: Valid by the type invariant; the buffer has that many bytes.
            let n = unsafe {
                bindings::kernel_write(self.as_ptr(), rest.as_ptr().cast(), rest.len(), &mut pos)
            };
            if n < 0 {
                return Err(Error::from_errno(c_int::try_from(n).unwrap_or(-5)));
            }
            rest = match rest.get(n as usize..) {
                Some(rest) if n > 0 => rest,
                _ => return Err(EIO),
            };
        }
        Ok(())
    }

    /// Reads at byte `at` until `buf` is full; false at the end of the file.
    pub(crate) fn read_at(&self, buf: &mut [u8], at: u64) -> Result<bool> {
        let mut pos = bindings::loff_t::try_from(at).map_err(|_| EFBIG)?;
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|r| !r.is_empty()) {
            // SAFETY: Valid by the type invariant; the buffer has that many bytes.
            let n = unsafe {
                bindings::kernel_read(
                    self.as_ptr(),
                    rest.as_mut_ptr().cast(),
                    rest.len(),
                    &mut pos,
                )
            };
            if n < 0 {
                return Err(Error::from_errno(c_int::try_from(n).unwrap_or(-5)));
            }
            if n == 0 {
                return Ok(false);
            }
            done = done.saturating_add(n as usize);
        }
        Ok(true)
    }

    /// Data and metadata to stable storage.
    pub(crate) fn sync(&self) -> Result {
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { bindings::vfs_fsync(self.as_ptr(), 0) })
    }

    /// Makes later reads through the page cache look at the disk.
    pub(crate) fn drop_cache(&self) -> Result {
        // SAFETY: Valid by the type invariant; an open file has a mapping.
        to_result(unsafe {
            bindings::invalidate_inode_pages2_range((*self.as_ptr()).f_mapping, 0, c_ulong::MAX)
        })
    }

    /// Preallocates `len` bytes from the start of the file on, as the calling process would: its limit
    /// on the size of files applies.
    pub(crate) fn allocate(&self, len: u64) -> Result {
        let len = bindings::loff_t::try_from(len).map_err(|_| EFBIG)?;
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { bindings::vfs_fallocate(self.as_ptr(), 0, 0, len) })
    }

    /// Nobody but this module can change the file any more. ETXTBSY: it is protected already.
    pub(crate) fn protect(&self) -> Result {
        // SAFETY: An open file holds its inode.
        to_result(unsafe { ffi::dbd_inode_protect(self.inode()) })
    }

    /// Ends the protection.
    pub(crate) fn unprotect(&self) {
        // SAFETY: An open file holds its inode.
        unsafe { ffi::dbd_inode_unprotect(self.inode()) }
    }

    /// Changes the size of a protected file.
    pub(crate) fn set_size_protected(&self, bytes: u64) -> Result {
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { ffi::dbd_set_size_protected(self.as_ptr(), bytes) })
    }

    /// Preallocates a range of a protected file.
    pub(crate) fn allocate_protected(&self, start: u64, len: u64) -> Result {
        // SAFETY: Valid by the type invariant.
        to_result(unsafe { ffi::dbd_fallocate_protected(self.as_ptr(), start, len) })
    }

    /// Removes the name that the file was opened by.
    pub(crate) fn unlink(&self) -> Result {
        let path = self.path();
        // SAFETY: Mount and dentry of an open file are valid.
        to_result(unsafe { ffi::dbd_unlink((*path).mnt, (*path).dentry) })
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::__fput_sync(self.as_ptr()) }
    }
}

/// An inode of a filesystem that is kept alive, and the means to open it. Made for one operation and
/// dropped with it; see [`superblock`] for what dropping may do.
///
/// # Invariants
///
/// `inode` is an inode of the filesystem `sb`, `self` owns a reference on it. (The fields are dropped
/// in the order that they stand here, but the inode first of all.)
pub(crate) struct LiveInode {
    inode: NonNull<bindings::inode>,
    mount: PrivateMount,
    sb: ActiveSuper,
}

// SAFETY: References may be dropped by any task.
unsafe impl Send for LiveInode {}

impl LiveInode {
    /// # Safety
    ///
    /// `inode` is valid during the call and belongs to the filesystem `sb`.
    pub(super) unsafe fn new(sb: ActiveSuper, inode: NonNull<bindings::inode>) -> Result<Self> {
        let mount = PrivateMount::of(&sb)?;
        // SAFETY: By the contract.
        let inode = NonNull::new(unsafe { bindings::igrab(inode.as_ptr()) }).ok_or(ESTALE)?;
        // INVARIANT: The reference was just taken.
        Ok(Self { inode, mount, sb })
    }

    /// The filesystem.
    pub(crate) fn filesystem(&self) -> &ActiveSuper {
        &self.sb
    }

    pub(crate) fn free_space(&self) -> Result<FreeSpace> {
        self.mount.free_space()
    }

    /// Opens the file for reading and writing, whatever its name is now.
    pub(crate) fn open(&self) -> Result<OpenFile> {
        // SAFETY: Both valid by the type invariants.
        OpenFile::new(unsafe {
            ffi::dbd_open_inode(
                self.mount.as_ptr(),
                self.inode.as_ptr(),
                bindings::O_RDWR as c_int,
            )
        })
    }

    /// Opens another file of the same filesystem for reading and writing. ESTALE: there is none.
    pub(crate) fn open_other(&self, id: FileId) -> Result<OpenFile> {
        let mut inode = core::ptr::null_mut();
        // SAFETY: The filesystem is held; `inode` is written to on success, and its reference is given
        // back when the file is open.
        unsafe {
            let sb = self.sb.as_ptr();
            to_result(ffi::dbd_adopt_inode(sb, id.ino, id.generation, &mut inode))?;
            ffi::dbd_inode_unprotect(inode);
            let file = ffi::dbd_open_inode(self.mount.as_ptr(), inode, bindings::O_RDWR as c_int);
            bindings::iput(inode);
            OpenFile::new(file)
        }
    }

    /// Removes a name of the file: `path` if that still is one, else any that is in memory. ENOENT.
    pub(crate) fn unlink(&self, path: &CStr) -> Result {
        // SAFETY: All valid by the type invariants; NUL-terminated.
        unsafe {
            let dentry = from_err_ptr(ffi::dbd_named_dentry(
                self.mount.as_ptr(),
                self.inode.as_ptr(),
                path.as_ptr(),
            ))?;
            let result = to_result(ffi::dbd_unlink(self.mount.as_ptr(), dentry));
            // The reference that `dbd_named_dentry` gave.
            bindings::dput(dentry);
            result
        }
    }
}

impl Drop for LiveInode {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; mount and superblock are still held.
        unsafe { bindings::iput(self.inode.as_ptr()) }
    }
}
