// SPDX-License-Identifier: GPL-2.0-only
//! Creating a COW file. On failure nothing is left behind.

use crate::sys::errno::{ENOKEY, EOPNOTSUPP};
use kernel::prelude::*;
use kernel::str::{BStr, CString};
use kernel::sync::Arc;

use crate::abi::cow::{self, Geometry, PrivateLayout, BLOCK_SIZE, HEADER_BYTES};
use crate::cow_file::{cut, split_off, CowFile, Layout, OriginPlace};
use crate::events::UnmountHandler;
use crate::logic::extents::{locate, validate, validate_counted, FileExtent};
use crate::logic::private_format::EXTENTS_PER_BLOCK;
use crate::region_log::own_extents;
use crate::origin::Origin;
use crate::sys::fsnotify::InodeWatch;
use crate::sys::superblock::ActiveSuper;
use crate::sys::swap_extents;
use crate::sys::vfs::{OpenFile, Place};

/// Puts `bytes` in a block, at byte `at`.
pub(crate) fn put(block: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in block.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The first block of a COW file.
fn header_block(header: &cow::Header, ext: &cow::Extension) -> Result<KVec<u8>> {
    let mut block = KVec::new();
    block.resize(HEADER_BYTES as usize, 0, GFP_KERNEL)?;
    put(&mut block, 0, &header.encode());
    put(&mut block, cow::EXT_OFFSET, &ext.encode());
    Ok(block)
}

/// A new file that is removed unless it is finished.
struct Unfinished(Option<OpenFile>);

impl Unfinished {
    fn file(&self) -> Result<&OpenFile> {
        self.0.as_ref().ok_or(EINVAL)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(file) = self.0.take() else {
            return;
        };
        file.unprotect();
        if let Err(e) = file.unlink() {
            pr_warn!(
                "an unfinished COW file could not be removed: error {}\n",
                e.to_errno()
            );
        }
    }
}

/// A COW path, taken apart.
struct Target {
    dir: Place,
    name: CString,
    /// What is there now.
    old: Option<Place>,
}

impl Target {
    /// EISDIR, ENOENT, ENOTDIR; EINVAL: relative, or not a regular file.
    fn find(path: &CStr) -> Result<Self> {
        let bytes = path.to_bytes();
        if bytes.first() != Some(&b'/') {
            return Err(EINVAL);
        }
        let slash = bytes.iter().rposition(|&b| b == b'/').ok_or(EINVAL)?;
        let (parent, name) = bytes.split_at_checked(slash).ok_or(EINVAL)?;
        let name = name.get(1..).ok_or(EINVAL)?;
        if matches!(name, b"" | b"." | b"..") {
            // A directory, if it is there at all.
            Place::directory(path)?;
            return Err(EISDIR);
        }
        let parent = if parent.is_empty() { b"/" } else { parent };
        let parent = owned(parent)?;
        let name = owned(name)?;
        let dir = Place::directory(&parent)?;
        let old = match dir.entry(&name) {
            Ok(old) => Some(old),
            Err(e) if e == ENOENT => None,
            Err(e) => return Err(e),
        };
        if let Some(old) = &old {
            if old.traits().is_directory() {
                return Err(EISDIR);
            }
            if !old.traits().is_regular() || !old.same_mount(&dir) {
                return Err(EINVAL);
            }
        }
        Ok(Self { dir, name, old })
    }

    /// What is there is a COW file that nobody uses: it may be replaced.
    fn may_replace(old: &Place) -> Result<bool> {
        let traits = old.traits();
        if traits.is_protected() || traits.has_writers() || traits.is_locked_down() {
            return Ok(false);
        }
        let mut magic = [0; 4];
        Ok(old.open_read()?.read_at(&mut magic, 0)? && magic == cow::MAGIC.to_le_bytes())
    }
}

/// A part of a path, as a string of its own. Paths need not be UTF-8.
fn owned(part: &[u8]) -> Result<CString> {
    let mut buf = KVec::with_capacity(part.len().saturating_add(1), GFP_KERNEL)?;
    buf.extend_from_slice(part, GFP_KERNEL)?;
    buf.push(0, GFP_KERNEL)?;
    let s = CStr::from_bytes_with_nul(&buf).map_err(|_| EINVAL)?;
    Ok(CString::try_from(s)?)
}

/// Says why a filesystem or a file cannot be used.
fn unsupported(path: &CStr, why: &str) -> Error {
    pr_err!(
        "no COW file at {}: {}\n",
        BStr::from_bytes(path.to_bytes()),
        why
    );
    EOPNOTSUPP
}

/// The filesystem that the file is to be in can be used and has room.
fn check_filesystem(
    origin: &Origin,
    path: &CStr,
    target: &Target,
    sb: &ActiveSuper,
    bytes: u64,
) -> Result {
    if !origin.holds(sb) {
        return Err(EINVAL);
    }
    let least = Geometry {
        origin_bytes: origin.bytes(),
    }
    .min_file_bytes();
    if bytes < least {
        return Err(EINVAL);
    }
    if !sb.is_simple() {
        return Err(unsupported(path, "its filesystem is on several devices"));
    }
    if sb.is_read_only() {
        return Err(EROFS);
    }
    if sb.writes_stopped() {
        return Err(EBUSY);
    }
    if bytes > sb.max_file_bytes() {
        return Err(EFBIG);
    }
    // Said at once, before the last of the space is taken from everybody else for a moment.
    let free = target.dir.free_space()?.all;
    let given_back = target.old.as_ref().map_or(0, Place::disk_bytes);
    if bytes > free.saturating_add(given_back) {
        return Err(ENOSPC);
    }
    Ok(())
}

/// The extension with the places of the roots, if there is room for all that a reload needs.
#[inline(never)] // Large on the stack.
fn with_roots(ext: &cow::Extension, file: &[FileExtent], layout: &PrivateLayout) -> cow::Extension {
    let root = |n: u64| locate(file, layout.roots.saturating_add(n)).map(|(block, _)| block);
    let room = (layout.list_blocks as usize).saturating_mul(EXTENTS_PER_BLOCK);
    match (root(0), root(1), own_extents(file, layout)) {
        (Some(a), Some(b), Ok(_)) if file.len() <= room => cow::Extension {
            state: cow::EXT_STATE_ROOTED,
            roots: [a, b],
            ..*ext
        },
        _ => cow::Extension {
            state: cow::EXT_STATE_VOLATILE,
            roots: [0, 0],
            ..*ext
        },
    }
}

/// The new file is one that raw I/O can be done to.
fn check_file(path: &CStr, file: &OpenFile) -> Result {
    let traits = file.traits();
    if !traits.is_regular() {
        return Err(EINVAL);
    }
    let obstacle = if traits.is_encrypted() {
        "files in this directory are encrypted"
    } else if traits.is_verity() {
        "files in this directory have verity"
    } else if traits.is_dax() {
        "files in this directory use DAX"
    } else {
        return Ok(());
    };
    Err(unsupported(path, obstacle))
}

/// Where the protected file lies: those blocks that `layout` lets be used. It must be on the origin.
pub(crate) fn load_extents(
    place: OriginPlace,
    layout: Layout,
    path: &CStr,
    file: &OpenFile,
) -> Result<KVVec<FileExtent>> {
    let (mut extents, dev) = match swap_extents::load(file) {
        Ok(loaded) => loaded,
        Err(e) if e == EOPNOTSUPP => {
            return Err(unsupported(
                path,
                "its filesystem has no files that stay in place",
            ))
        }
        Err(e) if e == EINVAL => {
            return Err(unsupported(
                path,
                "its filesystem does not keep this file in place",
            ))
        }
        Err(e) => return Err(e),
    };
    if dev != place.dev {
        return Err(unsupported(path, "the file came to lie on another device"));
    }
    let blocks = file.size() / BLOCK_SIZE;
    if let Layout::Whole = layout {
        // A filesystem block of more than 4096 bytes can reach behind the end.
        cut(&mut extents, blocks);
    }
    let valid = match layout {
        Layout::Whole => validate(&extents, blocks, place.blocks),
        Layout::Counted { .. } => validate_counted(&extents, blocks, place.blocks),
    };
    if let Err(why) = valid {
        return Err(unsupported(path, why));
    }
    let Layout::Counted { first_data } = layout else {
        return Ok(extents);
    };
    let data = split_off(&mut extents, first_data)?;
    if data.is_empty() {
        return Err(unsupported(
            path,
            "its filesystem cuts the file into pieces of less than 4096 bytes",
        ));
    }
    Ok(data)
}

/// Says so when much of a file on a filesystem of smaller blocks cannot be used.
fn warn_if_cut_up(path: &CStr, usable: &[FileExtent], data_blocks: u64) {
    let usable = usable
        .iter()
        .fold(0, |sum: u64, e| sum.saturating_add(e.len));
    if usable < data_blocks.saturating_sub(data_blocks / 8) {
        pr_warn!(
            "{} lies in such small pieces that only {} of its {} data blocks can be used\n",
            BStr::from_bytes(path.to_bytes()),
            usable,
            data_blocks
        );
    }
}

impl CowFile {
    /// Creates the COW file of `origin` at the absolute path `path`, as the calling process would.
    ///
    /// A last part of `bytes` that is less than a block is allocated, but not used. `handler` may be
    /// called before this returns.
    ///
    /// # Errors
    ///
    /// In the order that they are checked: EISDIR; ENOENT, ENOTDIR; EINVAL: not a regular file, a
    /// relative path, not on `origin`, too small; EOPNOTSUPP: a filesystem that cannot be used (the
    /// kernel log says why); EROFS; EBUSY: frozen by somebody else; EFBIG, ENOSPC; EEXIST: something
    /// else is there, or a COW file in use. The caller's RLIMIT_FSIZE gives EFBIG too.
    pub(crate) fn create(
        origin: &Origin,
        path: &CStr,
        bytes: u64,
        header: &cow::Header,
        ext: &cow::Extension,
        handler: Arc<dyn UnmountHandler>,
    ) -> Result<Self> {
        let place = OriginPlace {
            dev: origin.dev(),
            blocks: origin.blocks(),
        };
        let geometry = Geometry {
            origin_bytes: ext.origin_bytes,
        };
        let target = Target::find(path)?;
        let sb = target.dir.filesystem()?;
        let layout = if sb.block_size() < BLOCK_SIZE {
            Layout::Counted {
                first_data: geometry.first_data_position(),
            }
        } else {
            Layout::Whole
        };
        check_filesystem(origin, path, &target, &sb, bytes)?;
        if let Some(old) = &target.old {
            if !Target::may_replace(old)? {
                return Err(EEXIST);
            }
            old.unlink()?;
        }
        drop(target.old);

        let file = match target.dir.create(&target.name) {
            // No key: the directory is encrypted.
            Err(e) if e == ENOKEY => return Err(unsupported(path, "the directory is encrypted")),
            other => other?,
        };
        let mut new = Unfinished(Some(file));
        let file = new.file()?;
        check_file(path, file)?;
        match file.allocate(bytes) {
            Err(e) if e == EOPNOTSUPP => {
                return Err(unsupported(path, "its filesystem cannot preallocate files"))
            }
            other => other?,
        }
        file.sync()?;
        // The header says where the private roots lie; it is written before the file is protected,
        // and never again before the file is handed over.
        let geometry = Geometry {
            origin_bytes: ext.origin_bytes,
        };
        let extents = load_extents(place, layout, path, file)?;
        let ext = with_roots(ext, &extents, &geometry.private());
        file.write_at(&header_block(header, &ext)?, 0)?;
        file.sync()?;
        // From here on the extents can no longer change; then they are read.
        file.protect()?;
        let extents = load_extents(place, layout, path, file)?;
        if with_roots(&ext, &extents, &geometry.private()) != ext {
            return Err(unsupported(path, "its filesystem moves files that are in use"));
        }
        if let Layout::Counted { first_data } = layout {
            warn_if_cut_up(
                path,
                &extents,
                (bytes / BLOCK_SIZE).saturating_sub(first_data),
            );
        }
        // Raw I/O begins: the page cache must not know the blocks.
        file.drop_cache()?;
        let path_in_fs = file.path_in_fs()?;
        let id = file.id();
        let watch = InodeWatch::new(file, handler)?;
        // Closes the file.
        new.0 = None;
        drop(sb);
        Ok(Self {
            extents,
            bytes,
            data_offset: geometry.data_offset(),
            path_in_fs,
            place,
            id,
            ext,
            layout,
            watch: Some(watch),
        })
    }
}
