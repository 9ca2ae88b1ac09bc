// SPDX-License-Identifier: GPL-2.0-only
//! How big a COW file is to be. All arithmetic is checked; sizes are bytes unless a name says MiB.

use super::abi::cow::{Geometry, BLOCK_SIZE};
use super::errno::{Errno, EFBIG, EINVAL};

/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;
/// The largest size of a file (`loff_t`).
pub const MAX_FILE_BYTES: u64 = i64::MAX as u64;

/// The sizes of a new COW file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileSizes {
    /// What INFO (`falloc_size`) and the status (`fallocate`) report: whole MiB.
    pub reported_bytes: u64,
    /// What is allocated. With the default size that is the exact share of the device.
    pub file_bytes: u64,
}

/// MiB in bytes.
///
/// # Errors
///
/// EFBIG: more than a file can have.
pub const fn mib_to_bytes(mib: u64) -> Result<u64, Errno> {
    match mib.checked_mul(MIB) {
        Some(bytes) if bytes <= MAX_FILE_BYTES => Ok(bytes),
        _ => Err(EFBIG),
    }
}

/// `percent` (at most 100) of `bytes`, rounded down.
pub const fn share(bytes: u64, percent: u32) -> u64 {
    let percent = if percent > 100 { 100 } else { percent as u64 };
    // Split, so that nothing overflows; exact, for the hundreds contribute whole numbers.
    (bytes / 100)
        .saturating_mul(percent)
        .saturating_add((bytes % 100).saturating_mul(percent) / 100)
}

/// The sizes of the COW file of an origin of `origin_bytes`: `fallocated_mib` as given to SETUP_SNAP or
/// TRANSITION_SNAP, 0 for the default of `default_percent` of the origin.
///
/// # Errors
///
/// EINVAL: too small for header, index and one copy. EFBIG: more than a file can have.
pub const fn new_file(
    origin_bytes: u64,
    fallocated_mib: u64,
    default_percent: u32,
) -> Result<FileSizes, Errno> {
    let file_bytes = if fallocated_mib == 0 {
        share(origin_bytes, default_percent)
    } else {
        match mib_to_bytes(fallocated_mib) {
            Ok(bytes) => bytes,
            Err(e) => return Err(e),
        }
    };
    let geometry = Geometry { origin_bytes };
    // Whole blocks only: a partial last block of the file holds no copy.
    if whole_blocks(file_bytes) < whole_blocks(geometry.min_file_bytes()) {
        return Err(EINVAL);
    }
    Ok(FileSizes {
        reported_bytes: file_bytes & !(MIB - 1),
        file_bytes,
    })
}

/// The size after growing by `add_mib`, for EXPAND_COW_FILE.
///
/// # Errors
///
/// EFBIG: more than a file can have.
pub const fn expanded(now_bytes: u64, add_mib: u64) -> Result<u64, Errno> {
    let add = match mib_to_bytes(add_mib) {
        Ok(add) => add,
        Err(e) => return Err(e),
    };
    match now_bytes.checked_add(add) {
        Some(bytes) if bytes <= MAX_FILE_BYTES => Ok(bytes),
        _ => Err(EFBIG),
    }
}

/// Whole blocks of a file of so many bytes.
pub const fn whole_blocks(file_bytes: u64) -> u64 {
    file_bytes / BLOCK_SIZE
}

/// Blocks of the data part of a file of so many bytes: those that can hold copies.
pub const fn data_blocks(origin_bytes: u64, file_bytes: u64) -> u64 {
    let geometry = Geometry { origin_bytes };
    whole_blocks(file_bytes).saturating_sub(geometry.first_data_position())
}
