// SPDX-License-Identifier: GPL-2.0-only
//! The COW file, from its creation until it is handed over or removed.
//!
//! It is an ordinary file of the tracked filesystem. While it is in use nobody else can write,
//! truncate, move or remove it (S_SWAPFILE), and the engine does raw I/O to the blocks that it lies
//! on; Raw I/O goes to the data part only: header and index are written through the
//! filesystem, at the start and at the end. So no block is ever written both ways at one time.
//!
//! No file stays open and no mount is held: what is kept is a mark on the inode ([`InodeWatch`]). Each
//! operation takes a reference on the filesystem for its own duration ([`InodeWatch::enter`]) and
//! opens the file by its inode, so that neither the caller's namespace nor a renamed directory
//! matters. Once the filesystem is gone every operation says ESTALE.
//!
//! Locking: `&mut self` and `self` are the caller's to serialise (the device's operation lock). Dropping
//! the reference at the end of an operation may unmount the filesystem, and so call the
//! [`UnmountHandler`] in this task: it must not take that lock.
//!
//! [`UnmountHandler`]: crate::events::UnmountHandler
//!
//! Here: the file while it is in use. Creation: `cow_create`; growth: `cow_grow`; the end: `cow_seal`.

use crate::sys::errno::ESTALE;
use kernel::prelude::*;
use kernel::str::{BStr, CString};
use kernel::time::{delay::fsleep, Delta};

use crate::abi::cow::{self, BLOCK_SIZE};
use crate::freeze::Frozen;
use crate::logic::extents::FileExtent;
use crate::sys::fsnotify::InodeWatch;
use crate::sys::vfs::{FileId, LiveInode};

/// How the blocks of the file are those of the origin.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    /// Each is one.
    Whole,
    /// The filesystem's blocks are smaller. Only whole blocks of the origin are used, and they are
    /// counted ([`crate::logic::extents`]), from `first_data` on. All others, those with header and
    /// index among them, are the filesystem's like any block: preserved, shown, entered as changed.
    Counted { first_data: u64 },
}

/// A COW file in use: created, preallocated, mapped, protected.
///
/// Dropping it ends the protection and leaves the file where it is.
pub(crate) struct CowFile {
    /// By place in the file, all blocks of it that the engine may use; merged.
    pub(crate) extents: KVVec<FileExtent>,
    pub(crate) bytes: u64,
    /// Size of header and index: what remains when the file is handed over.
    pub(crate) data_offset: u64,
    pub(crate) path_in_fs: CString,
    /// The origin: its device number and size, which all extents must agree with.
    pub(crate) place: OriginPlace,
    pub(crate) id: FileId,
    /// As the header has it.
    pub(crate) ext: cow::Extension,
    pub(crate) layout: Layout,
    /// `None` while the filesystem is not mounted, and when the file has been let go of.
    pub(crate) watch: Option<InodeWatch>,
}

/// The device that a file must be on.
#[derive(Clone, Copy)]
pub(crate) struct OriginPlace {
    pub(crate) dev: u32,
    pub(crate) blocks: u64,
}

impl CowFile {
    /// Where the file lies, in order of its blocks. A last part of less than a block is not used.
    /// [`Layout`] says what the numbers mean.
    pub(crate) fn extents(&self) -> &[FileExtent] {
        &self.extents
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.bytes
    }

    /// Its path from the root of its filesystem, with a leading slash.
    pub(crate) fn path_in_fs(&self) -> &CStr {
        &self.path_in_fs
    }

    /// The filesystem has been unmounted.
    pub(crate) fn is_gone(&self) -> bool {
        self.watch.as_ref().is_none_or(InodeWatch::is_gone)
    }

    /// The file, for one operation. ESTALE: its filesystem is gone. EBUSY: somebody holds the
    /// filesystem frozen, so that the operation would wait for as long as that takes.
    pub(crate) fn enter(&self) -> Result<LiveInode> {
        let live = self.watch.as_ref().ok_or(ESTALE)?.enter()?;
        if live.filesystem().writes_stopped() {
            return Err(EBUSY);
        }
        Ok(live)
    }

    /// Freezes the filesystem that the file is in, which is that of the origin. It need not be looked
    /// for, so that no other filesystem that hangs can matter.
    ///
    /// # Errors
    ///
    /// ESTALE: unmounted; EROFS; EBUSY: another part of the kernel holds it frozen; else what the
    /// filesystem says.
    pub(crate) fn freeze(&self) -> Result<Frozen> {
        let sb = self.watch.as_ref().ok_or(ESTALE)?.filesystem()?;
        if sb.is_read_only() {
            return Err(EROFS);
        }
        Frozen::new(sb)
    }

    /// How long the file is when all from block `keep` on has been given back.
    pub(crate) fn bytes_to_keep(&self, keep: u64) -> u64 {
        match self.layout {
            Layout::Whole => keep.saturating_mul(BLOCK_SIZE),
            Layout::Counted { first_data } if keep <= first_data => self.data_offset,
            // A number lies behind its own place in the file by what was left out before it, and that
            // is less than all that was left out.
            Layout::Counted { .. } => {
                let counted = self.extents.last().map_or(0, FileExtent::file_end);
                let left_out = (self.bytes / BLOCK_SIZE).saturating_sub(counted);
                let blocks = keep.saturating_add(left_out).saturating_add(2);
                blocks.saturating_mul(BLOCK_SIZE).min(self.bytes)
            }
        }
    }

    /// Gives all from block `keep` on back to the filesystem, or nearly all where blocks are counted.
    /// The engine must have stopped writing there.
    ///
    /// When it fails, the extents are those before.
    pub(crate) fn drop_data(&mut self, keep: u64) -> Result {
        let bytes = self.bytes_to_keep(keep);
        if bytes > self.bytes {
            return Err(EINVAL);
        }
        let live = enter_thawed(self.watch.as_ref().ok_or(ESTALE)?)?;
        if live.filesystem().writes_stopped() {
            return Err(EBUSY);
        }
        let file = live.open()?;
        let scattered = self.extents.len() > PIECES_IN_INODE
            && live.filesystem().type_name().to_bytes() == b"xfs";
        if scattered {
            // Now, so that the freeze is a short one.
            live.filesystem().sync();
        }
        file.set_size_protected(bytes)?;
        self.bytes = bytes;
        cut(&mut self.extents, keep);
        if scattered && self.settle_inode().is_ok() {
            return Ok(());
        }
        // The blocks are free again when the filesystem says so; until then they are not used.
        if let Err(e) = file.sync() {
            pr_warn!("the COW file was not synced: error {}\n", e.to_errno());
        }
        Ok(())
    }

    /// Has the filesystem write the file's inode to its place on disk, which only a freeze makes xfs do.
    ///
    /// The list of a file's pieces lies in blocks of its own when it is long. When it is cut short those
    /// blocks are free, discarded as soon as the log says so, and used for something else, while the inode
    /// on disk still leads to them: for as long as the log keeps what is newer, half a minute and more.
    /// After a power cut [`crate::peek`], which does not replay the log, would not find the file.
    fn settle_inode(&self) -> Result {
        let sb = self.watch.as_ref().ok_or(ESTALE)?.filesystem()?;
        Frozen::at_once(sb)?.thaw();
        Ok(())
    }

    /// Ends the protection and removes the file. EBUSY when its filesystem stays frozen by somebody else,
    /// ENOENT when a directory above it was renamed and its name is not known any more: it stays then.
    pub(crate) fn remove(mut self) -> Result {
        let watch = self.watch.take().ok_or(ESTALE)?;
        let live = enter_thawed(&watch);
        // Whatever fails: nobody can remove a file that stays protected.
        watch.unprotect();
        // Taking the mark off first: the last link may take the inode out of memory.
        watch.close();
        let result = match &live {
            Ok(live) if live.filesystem().writes_stopped() => Err(EBUSY),
            Ok(live) => live.unlink(&self.path_in_fs),
            // Unmounted just now.
            Err(e) if *e == ESTALE => return Err(ESTALE),
            Err(e) => Err(*e),
        };
        if let Err(e) = result {
            pr_err!(
                "the COW file {} is no longer used but could not be removed: error {}\n",
                BStr::from_bytes(self.path_in_fs.to_bytes()),
                e.to_errno()
            );
        }
        result
    }

    /// Lets go of the file, which stays where it is. For a filesystem that is gone.
    pub(crate) fn forget(self) {}

    /// The filesystem is gone: only where the file lies is still known.
    pub(crate) fn unmounted(&mut self) {
        self.watch = None;
    }
}

impl Drop for CowFile {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.unprotect();
        }
    }
}

/// So many pieces surely have their list in the inode itself. An xfs inode has room for 18 or more, and two
/// may be one to us: written ones and unwritten ones are not told apart here.
const PIECES_IN_INODE: usize = 8;

/// How long what cannot be undone any more waits for a freeze by somebody else to end, in milliseconds: more than
/// what another snapshot of the same filesystem (LVM, a backup agent) takes.
const FREEZE_WAIT_MS: i64 = 10_000;
/// How often it looks, in milliseconds.
const FREEZE_LOOK_MS: i64 = 20;

/// The file, for one operation; still frozen only if the wait was in vain. Each look lets go of the filesystem
/// again, so that it can be thawed and unmounted meanwhile.
pub(crate) fn enter_thawed(watch: &InodeWatch) -> Result<LiveInode> {
    for _ in 0..FREEZE_WAIT_MS / FREEZE_LOOK_MS {
        let live = watch.enter()?;
        if !live.filesystem().writes_stopped() {
            return Ok(live);
        }
        drop(live);
        fsleep(Delta::from_millis(FREEZE_LOOK_MS));
    }
    watch.enter()
}

/// What lies behind the first `blocks` blocks of the file; `extents` keeps the rest.
pub(crate) fn split_off(extents: &mut KVVec<FileExtent>, blocks: u64) -> Result<KVVec<FileExtent>> {
    let mut behind = KVVec::new();
    let first = extents.partition_point(|e| e.file_end() <= blocks);
    for e in extents.iter().skip(first) {
        let part = e.skip(blocks.saturating_sub(e.file_block));
        if part.len != 0 {
            behind.push(part, GFP_KERNEL)?;
        }
    }
    cut(extents, blocks);
    Ok(behind)
}

/// Drops all extents behind the first `blocks` blocks of the file.
pub(crate) fn cut(extents: &mut KVVec<FileExtent>, blocks: u64) {
    while let Some(last) = extents.last_mut() {
        if last.file_end() <= blocks {
            break;
        }
        last.len = blocks.saturating_sub(last.file_block);
        if last.len != 0 {
            break;
        }
        extents.pop();
    }
}
