// SPDX-License-Identifier: GPL-2.0-only
//! Telling whether a filesystem was mounted, repaired or made anew while nobody tracked it.
//!
//! Each of these changes the superblock, which lies in the first block of the device. While the device is
//! tracked every write to that block waits until the root on disk knows what it makes of it
//! (`region_log.rs`); so after a crash each of its sectors is one of two that the root names, or somebody
//! else has been there. Offsets: `struct ext4_super_block` (`fs/ext4/ext4.h`), `struct xfs_dsb`
//! (`fs/xfs/libxfs/xfs_format.h`).

use crate::faults::{self, Fault};
use crate::logic::private_format::{digests, Digests, Root};
use crate::sys::bio::BioRef;
use crate::sys::raw_io::{Block, RawIo};
use kernel::prelude::*;

/// Where ext4's superblock starts in the first block.
const EXT4_SUPER: usize = 1024;

fn part(block: &Block, at: usize, len: usize) -> &[u8] {
    block.get(at..).and_then(|b| b.get(..len)).unwrap_or(&[])
}

/// The filesystem type that can mount a device, by its first block.
pub(crate) fn fs_type(io: &mut RawIo) -> Result<&'static CStr> {
    let block = io.read(0)?;
    if part(block, EXT4_SUPER + 0x38, 2) == [0x53, 0xef] {
        Ok(c"ext4")
    } else if part(block, 0, 4) == b"XFSB" {
        Ok(c"xfs")
    } else {
        Err(EINVAL)
    }
}

/// Where ext4 keeps the first copy of its superblock, in KiB: at the start of the second group. `None`: the
/// device has no ext4, or none of a size that can be.
pub(crate) fn spare_super(io: &mut RawIo) -> Result<Option<u64>> {
    let block = io.read(0)?;
    let field = |at: usize| -> u64 {
        let bytes = part(block, EXT4_SUPER.saturating_add(at), 4);
        bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
    };
    if part(block, EXT4_SUPER + 0x38, 2) != [0x53, 0xef] {
        return Ok(None);
    }
    let (first, kib_shift, group) = (field(0x14), field(0x18), field(0x20));
    let spare = first.saturating_add(group);
    Ok((kib_shift <= 6).then(|| spare << kib_shift))
}

/// The digests of the first block as it is on disk now.
pub(crate) fn read(io: &mut RawIo) -> Result<Digests> {
    Ok(digests(io.read(0)?))
}

/// The digests of what `bio` makes of the first block: now, and when it has been written.
pub(crate) fn after(io: &mut RawIo, bio: BioRef<'_>, start_sector: u64) -> Result<(Digests, Digests)> {
    let block = io.read_mut(0)?;
    let now = digests(block);
    bio.overlay(block, start_sector);
    Ok((now, digests(block)))
}

/// Whether nobody else has written to the filesystem that `root` was written for. What cannot be proved
/// is refused.
///
/// # Errors
///
/// What speaks against it, for the log.
pub(crate) fn compare(io: &mut RawIo, root: &Root) -> Result<(), &'static str> {
    let now = read(io).map_err(|_| "its superblock cannot be read")?;
    if root.identity.allows(&now) || faults::active(Fault::NoReloadCheck) {
        Ok(())
    } else {
        Err("its filesystem was mounted, repaired or replaced while nobody tracked it")
    }
}
