// SPDX-License-Identifier: GPL-2.0-only
//! Growing a COW file in use. From an ioctl or from a worker.
//!
//! This is work of the tracked filesystem, whose journal may be waiting for room in the very file that
//! is to grow. So nothing that the engine holds back may wait for this.

use crate::sys::errno::EUCLEAN;
use kernel::prelude::*;
use kernel::str::BStr;

use crate::abi::cow::BLOCK_SIZE;
use crate::cow_create::load_extents;
use crate::cow_file::{split_off, CowFile};
use crate::logic::extents::{merge_push, FileExtent};
use crate::sys::vfs::OpenFile;

impl CowFile {
    /// Makes the file `add` bytes larger, unless less than `reserve` bytes of the filesystem would stay
    /// available. Returns what was gained; [`CowFile::extents`] has it too. On failure the file is as
    /// before.
    ///
    /// # Errors
    ///
    /// ENOSPC, EFBIG (the caller's RLIMIT_FSIZE, or the filesystem's limit), EBUSY: frozen by somebody
    /// else; ESTALE: unmounted; EOPNOTSUPP: the gain cannot be used; EUCLEAN: the filesystem has moved
    /// the file, which must not be.
    pub(crate) fn expand(&mut self, add: u64, reserve: u64) -> Result<KVVec<FileExtent>> {
        let size = self.bytes.checked_add(add).ok_or(EFBIG)?;
        if add < BLOCK_SIZE {
            return Err(EINVAL);
        }
        let live = self.enter()?;
        let free = live.free_space()?.available;
        if free < add.checked_add(reserve).ok_or(ENOSPC)? {
            return Err(ENOSPC);
        }
        let file = live.open()?;
        let result = self.grow(&file, add, size);
        if result.is_err() {
            // Part of it may be allocated.
            if let Err(e) = file.set_size_protected(self.bytes) {
                pr_warn!(
                    "the COW file {} keeps space that it cannot use: error {}\n",
                    BStr::from_bytes(self.path_in_fs.to_bytes()),
                    e.to_errno()
                );
            }
        }
        result
    }

    fn grow(&mut self, file: &OpenFile, add: u64, size: u64) -> Result<KVVec<FileExtent>> {
        if file.size() != self.bytes {
            // Making a protected file longer is all that others can do to it: undo it.
            file.set_size_protected(self.bytes)?;
        }
        file.allocate_protected(self.bytes, add)?;
        let mut all = load_extents(self.place, self.layout, &self.path_in_fs, file)?;
        let known = self.extents.last().ok_or(EINVAL)?.file_end();
        let gained = split_off(&mut all, known)?;
        if *all != *self.extents {
            return Err(EUCLEAN);
        }
        for &e in gained.iter() {
            // Never allocates: it was that long before.
            if let Some(e) = merge_push(all.last_mut(), e) {
                all.push(e, GFP_KERNEL)?;
            }
        }
        self.extents = all;
        self.bytes = size;
        Ok(gained)
    }
}
