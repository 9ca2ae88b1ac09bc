// SPDX-License-Identifier: GPL-2.0-only
//! Handing a COW file over: from then on it is an ordinary file that says which blocks changed.

use crate::sys::errno::ESTALE;
use kernel::prelude::*;

use crate::abi::cow::{self, BLOCK_SIZE, ENTRY_BYTES, HEADER_BYTES};
use crate::cow_create::put;
use crate::cow_file::{enter_thawed, CowFile};
use crate::log_load::Loaded;
use crate::logic::change_map::ChangeMap;
use crate::logic::private_format::Sibling;
use crate::origin::Origin;
use crate::sys::vfs::{FileId, OpenFile};

/// Index entries that are written in one go: 64 KiB, more than can be had in one piece from fragmented memory.
const BATCH: usize = 8192;
/// Index entries in a block of the file.
const PER_BLOCK: usize = (BLOCK_SIZE / ENTRY_BYTES) as usize;

impl CowFile {
    /// Completes the file and lets go of it.
    ///
    /// The file says that it is complete (`FLAG_CLEAN`) only if it is, on stable storage. Whatever
    /// happens, it is an ordinary file afterwards. No raw write to it is under way, or will come.
    pub(crate) fn seal(mut self, header: &cow::Header, changes: &ChangeMap) -> Result {
        let watch = self.watch.take().ok_or(ESTALE)?;
        let live = enter_thawed(&watch);
        let result = match &live {
            Ok(live) if live.filesystem().writes_stopped() => Err(EBUSY),
            Ok(live) => live.open().and_then(|file| {
                file.unprotect();
                hand_over(&file, self.data_offset, header, changes)
            }),
            Err(e) => Err(*e),
        };
        watch.unprotect();
        watch.close();
        result
    }

    /// Completes another file of the same filesystem, whose hand-over a crash has interrupted: the one
    /// that `sibling` names. Its change map is read from its private blocks.
    ///
    /// # Errors
    ///
    /// ESTALE, ENOENT: there is no such file any more; ENODEV: the filesystem is going away; else what stands in
    /// the way.
    pub(crate) fn hand_over_other(
        &self,
        id: FileId,
        sibling: &Sibling,
        origin: &Origin,
    ) -> Result {
        let live = self.enter().map_err(|e| if e == ESTALE { ENODEV } else { e })?;
        let file = live.open_other(id)?;
        let block = read_header(&file)?;
        let header = decode_header(&block)?;
        let ext = decode_extension(&block).ok_or(ESTALE)?;
        if ext.nonce != sibling.nonce {
            return Err(ESTALE);
        }
        let data_offset = self.data_offset;
        if header.is_sealed() {
            // Only the rest is to be given back.
            if file.size() > data_offset {
                let cut = file.set_size_protected(data_offset);
                file.unprotect();
                cut.and_then(|()| file.sync())?;
            }
            return Ok(());
        }
        let loaded = Loaded::read(origin.device(), origin.bytes(), sibling.nonce, sibling.roots)
            .map_err(|(e, why)| {
                pr_err!("the change map of the COW file before this one: {}\n", why);
                e
            })?;
        let header = cow::Header {
            fpos: data_offset / BLOCK_SIZE,
            fsize: data_offset,
            nr_changed_blocks: loaded.changes.count(),
            ..header
        };
        hand_over(&file, data_offset, &header, &loaded.changes)
    }
}

/// The first block of a file. Not on the stack: filesystem calls go deep.
fn read_header(file: &OpenFile) -> Result<KVec<u8>> {
    let mut block = KVec::new();
    block.resize(HEADER_BYTES as usize, 0, GFP_KERNEL)?;
    if !file.read_at(&mut block, 0)? {
        return Err(ESTALE);
    }
    Ok(block)
}

fn decode_header(block: &[u8]) -> Result<cow::Header> {
    let bytes = block.first_chunk().ok_or(EINVAL)?;
    cow::Header::decode(bytes).map_err(|_| ESTALE)
}

/// The private extension of a header block; `None`: the file is not this project's.
pub(crate) fn decode_extension(block: &[u8]) -> Option<cow::Extension> {
    let bytes = block.get(cow::EXT_OFFSET..)?.first_chunk()?;
    cow::Extension::decode(bytes)
}

/// Makes an unprotected file what its next reader expects. Order: the whole index, then the header
/// that vouches for it, then the rest is given back. A crash in between leaves what can be completed.
fn hand_over(
    file: &OpenFile,
    data_offset: u64,
    header: &cow::Header,
    changes: &ChangeMap,
) -> Result {
    file.drop_cache()?;
    write_index(file, data_offset, changes)?;
    file.sync()?;
    let mut block = read_header(file)?;
    let header = cow::Header {
        flags: header.flags | cow::FLAG_CLEAN | cow::FLAG_INDEX_ONLY,
        ..*header
    };
    // Our extension stays as it is.
    put(&mut block, 0, &header.encode());
    file.write_at(&block, 0)?;
    file.sync()?;
    let cut = file.set_size_protected(data_offset);
    file.unprotect();
    cut.and_then(|()| file.sync())
}

/// Writes the index, which lies between the header and byte `end`. Only blocks of it that are not all
/// zeros: the others were never written, and read as zeros. Takes time for what has changed, not for
/// the size of the device.
fn write_index(file: &OpenFile, end: u64, changes: &ChangeMap) -> Result {
    let mut entries: KVVec<u64> = KVVec::new();
    entries.resize(BATCH, 0, GFP_KERNEL)?;
    let mut bytes: KVVec<u8> =
        KVVec::with_capacity(BATCH.saturating_mul(ENTRY_BYTES as usize), GFP_KERNEL)?;
    let mut first = 0u64;
    while let Some(run) = changes.next_run(first) {
        first = run.start.saturating_sub(run.start % PER_BLOCK as u64);
        let at = HEADER_BYTES.saturating_add(first.saturating_mul(ENTRY_BYTES));
        let left = usize::try_from(end.saturating_sub(at) / ENTRY_BYTES).unwrap_or(BATCH);
        let batch = entries.get_mut(..left.min(BATCH)).ok_or(EINVAL)?;
        if batch.is_empty() {
            break;
        }
        changes.fill_index(first, batch);
        let in_use = |block: &[u64]| block.iter().any(|&e| e != 0);
        let blocks = batch
            .chunks(PER_BLOCK)
            .rposition(in_use)
            .map_or(0, |last| last.saturating_add(1));
        bytes.clear();
        for block in batch.chunks(PER_BLOCK).take(blocks) {
            for e in block {
                bytes.extend_from_slice(&e.to_le_bytes(), GFP_KERNEL)?;
            }
        }
        file.write_at(&bytes, at)?;
        first = first.saturating_add(batch.len() as u64);
    }
    Ok(())
}
