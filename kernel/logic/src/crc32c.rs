// SPDX-License-Identifier: GPL-2.0-only
//! CRC32C (Castagnoli), as in iSCSI, ext4 and btrfs: reflected polynomial 0x82f63b78.
//!
//! A table of our own, so that the kernel and the host tests run the same code; it is used for
//! metadata only.

const POLYNOMIAL: u32 = 0x82f6_3b78;

#[allow(clippy::arithmetic_side_effects, reason = "runs in the compiler only")]
const fn entry(byte: u32) -> u32 {
    let mut crc = byte;
    let mut bit = 0;
    while bit < 8 {
        crc = if crc & 1 != 0 {
            (crc >> 1) ^ POLYNOMIAL
        } else {
            crc >> 1
        };
        bit += 1;
    }
    crc
}

#[allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "runs in the compiler only"
)]
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        table[i] = entry(i as u32);
        i += 1;
    }
    table
};

/// The checksum of all pieces, one behind the other.
pub fn crc32c(pieces: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for byte in pieces.iter().copied().flatten() {
        let index = (crc ^ u32::from(*byte)) & 0xff;
        let step = TABLE.get(index as usize).copied().unwrap_or(0);
        crc = step ^ (crc >> 8);
    }
    !crc
}
