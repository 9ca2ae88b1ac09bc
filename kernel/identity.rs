// SPDX-License-Identifier: GPL-2.0-only
//! Telling whether a filesystem was mounted, repaired or made anew while nobody tracked it.
//!
//! Every mount for writing changes the superblock: ext4 counts it and notes the time, xfs logs a new
//! sequence number at the latest when it is unmounted. Offsets: `struct ext4_super_block`
//! (`fs/ext4/ext4.h`), `struct xfs_dsb` (`fs/xfs/libxfs/xfs_format.h`).

use crate::faults::{self, Fault};
use crate::logic::private_format::{digest, Identity, Root, RootState};
use crate::region_log::OnDisk;
use crate::sys::raw_io::{Block, RawIo};
use kernel::prelude::*;

const EXT4: u32 = u32::from_le_bytes(*b"ext4");
const XFS: u32 = u32::from_le_bytes(*b"xfs\0");

/// Where ext4's superblock starts in the first block.
const EXT4_SUPER: usize = 1024;
/// `s_feature_incompat`, and its bit RECOVER: the journal has to be replayed.
const EXT4_INCOMPAT: usize = EXT4_SUPER + 0x60;
const EXT4_RECOVER: u8 = 4;

fn part(block: &Block, at: usize, len: usize) -> &[u8] {
    block.get(at..).and_then(|b| b.get(..len)).unwrap_or(&[])
}

/// What filesystem the first block of a device shows.
fn kind(block: &Block) -> u32 {
    if part(block, EXT4_SUPER + 0x38, 2) == [0x53, 0xef] {
        EXT4
    } else if part(block, 0, 4) == b"XFSB" {
        XFS
    } else {
        0
    }
}

/// The filesystem type that can mount a device, by its first block.
pub(crate) fn fs_type(io: &mut RawIo) -> Result<&'static CStr> {
    match kind(io.read(0)?) {
        EXT4 => Ok(c"ext4"),
        XFS => Ok(c"xfs"),
        _ => Err(EINVAL),
    }
}

fn of(block: &Block) -> Identity {
    let fs = kind(block);
    let life = match fs {
        // Volume, number of mounts, time of the last one, with its upper byte.
        EXT4 => digest(&[
            part(block, EXT4_SUPER + 0x68, 16),
            part(block, EXT4_SUPER + 0x34, 2),
            part(block, EXT4_SUPER + 0x2c, 4),
            part(block, EXT4_SUPER + 0x275, 1),
        ]),
        // Volume only.
        XFS => digest(&[part(block, 32, 16)]),
        _ => 0,
    };
    Identity { fs, life, exact: digest(&[block]) }
}

/// The filesystem as it is on disk now.
pub(crate) fn read(disk: &mut OnDisk) -> Result<Identity> {
    Ok(of(disk.io.read(0)?))
}

/// Whether the filesystem is the one that `root` was written for, and nobody else has written to it
/// since. What cannot be proved is refused.
///
/// # Errors
///
/// What speaks against it, for the log.
pub(crate) fn compare(io: &mut RawIo, root: &Root) -> Result<(), &'static str> {
    let block = io.read(0).map_err(|_| "its superblock cannot be read")?;
    let now = of(block);
    if faults::active(Fault::NoReloadCheck) {
        return Ok(());
    }
    if now.fs != root.identity.fs {
        return Err("another filesystem is on the device");
    }
    if root.state == RootState::Sealed {
        if now.exact != root.identity.exact {
            return Err("its filesystem was mounted or changed while nobody tracked it");
        }
        return Ok(());
    }
    if now.life != root.identity.life {
        return Err("its filesystem was mounted while nobody tracked it");
    }
    let replayed = part(block, EXT4_INCOMPAT, 1).first().is_some_and(|b| b & EXT4_RECOVER == 0);
    if root.mounted && now.fs == EXT4 && replayed {
        return Err("its journal was replayed while nobody tracked it");
    }
    Ok(())
}
