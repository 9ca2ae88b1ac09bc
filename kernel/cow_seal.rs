// SPDX-License-Identifier: GPL-2.0-only
//! Handing a COW file over: from then on it is an ordinary file that says which blocks changed.

use crate::sys::errno::ESTALE;
use kernel::prelude::*;

use crate::abi::cow::{self, BLOCK_SIZE, ENTRY_BYTES, HEADER_BYTES};
use crate::cow_create::put;
use crate::cow_file::CowFile;
use crate::sys::vfs::OpenFile;

/// Index entries that are written in one go: 64 KiB.
const BATCH: usize = 8192;
/// Index entries in a block of the file.
const PER_BLOCK: usize = (BLOCK_SIZE / ENTRY_BYTES) as usize;

impl CowFile {
    /// Completes the file and lets go of it. `index(first, out)` fills in the index entries of the
    /// blocks from `first` on, zeros behind the last block.
    ///
    /// The file says that it is complete (`FLAG_CLEAN`) only if it is, on stable storage. Whatever
    /// happens, it is an ordinary file afterwards.
    pub(crate) fn seal(
        mut self,
        header: &cow::Header,
        index: &mut dyn FnMut(u64, &mut [u64]),
    ) -> Result {
        let watch = self.watch.take().ok_or(ESTALE)?;
        let live = watch.enter()?;
        let frozen = live.filesystem().writes_stopped();
        let result = if frozen {
            live.unprotect();
            Err(EBUSY)
        } else {
            live.open().and_then(|file| {
                // While it is still protected: nobody sees a file that is half cut.
                let cut = file.set_size_protected(self.data_offset);
                file.unprotect();
                cut?;
                self.complete(&file, header, index)
            })
        };
        if result.is_err() {
            live.unprotect();
        }
        watch.close();
        result
    }

    fn complete(
        &self,
        file: &OpenFile,
        header: &cow::Header,
        index: &mut dyn FnMut(u64, &mut [u64]),
    ) -> Result {
        file.drop_cache()?;
        write_index(file, self.data_offset, index)?;
        file.sync()?;
        let mut block = [0; HEADER_BYTES as usize];
        if !file.read_at(&mut block, 0)? {
            return Err(EIO);
        }
        let header = cow::Header {
            flags: header.flags | cow::FLAG_CLEAN | cow::FLAG_INDEX_ONLY,
            ..*header
        };
        // Our extension stays as it is.
        put(&mut block, 0, &header.encode());
        file.write_at(&block, 0)?;
        file.sync()
    }
}

/// Writes the index, which lies between the header and byte `end`. A batch of zeros is left out: that
/// part of the file was never written, and reads as zeros. Within a batch, zeros between other
/// entries are written: short holes would only fragment the file's list of extents.
fn write_index(file: &OpenFile, end: u64, index: &mut dyn FnMut(u64, &mut [u64])) -> Result {
    let mut entries: KVec<u64> = KVec::new();
    entries.resize(BATCH, 0, GFP_KERNEL)?;
    let mut bytes: KVec<u8> =
        KVec::with_capacity(BATCH.saturating_mul(ENTRY_BYTES as usize), GFP_KERNEL)?;
    let mut at = HEADER_BYTES;
    let mut first = 0u64;
    while at < end {
        let left = usize::try_from(end.saturating_sub(at) / ENTRY_BYTES).unwrap_or(BATCH);
        let batch = entries.get_mut(..left.min(BATCH)).ok_or(EINVAL)?;
        index(first, batch);
        let in_use = |block: &[u64]| block.iter().any(|&e| e != 0);
        let skipped = batch.chunks(PER_BLOCK).take_while(|b| !in_use(b)).count();
        let behind = batch
            .chunks(PER_BLOCK)
            .rposition(in_use)
            .map_or(0, |last| last.saturating_add(1));
        bytes.clear();
        for block in batch.chunks(PER_BLOCK).take(behind).skip(skipped) {
            for e in block {
                bytes.extend_from_slice(&e.to_le_bytes(), GFP_KERNEL)?;
            }
        }
        if !bytes.is_empty() {
            let skipped = BLOCK_SIZE.saturating_mul(skipped as u64);
            file.write_at(&bytes, at.saturating_add(skipped))?;
        }
        at = at.saturating_add((batch.len() as u64).saturating_mul(ENTRY_BYTES));
        first = first.saturating_add(batch.len() as u64);
    }
    Ok(())
}
