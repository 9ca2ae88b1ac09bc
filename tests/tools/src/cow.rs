// SPDX-License-Identifier: GPL-2.0-only
//! A COW file, read the way a version-1 client (UrBackup) reads it.
//!
//! The offsets are spelled out here instead of taken from `ioctl-abi`, so that this is a second
//! opinion about the format.

use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Result};

use crate::extents::Blocks;
use crate::sys;

/// What the header says.
#[derive(Clone, Debug)]
pub struct Header {
    /// Bit 0 CLEAN, bit 1 INDEX_ONLY.
    pub flags: u32,
    /// Size that the header claims.
    pub fsize: u64,
    /// Sequence number.
    pub seqid: u64,
    /// Identity of the series, as hexadecimal digits.
    pub uuid: String,
    /// Format version.
    pub version: u64,
    /// Number of non-zero entries that the header claims.
    pub changed: u64,
}

/// Reads the header; fails when the magic is wrong.
pub fn header(path: &Path) -> Result<Header> {
    let file = sys::open_read(path, 0)?;
    let mut b = [0; 4096];
    file.read_exact_at(&mut b, 0)?;
    let u32_at = |i: usize| u32::from_le_bytes(b[i..i + 4].try_into().expect("4 bytes"));
    let u64_at = |i: usize| u64::from_le_bytes(b[i..i + 8].try_into().expect("8 bytes"));
    ensure!(
        u32_at(0) == 4776,
        "{}: magic {} instead of 4776",
        path.display(),
        u32_at(0)
    );
    Ok(Header {
        flags: u32_at(4),
        fsize: u64_at(16),
        seqid: u64_at(24),
        uuid: {
            let mut uuid = [0; 16];
            uuid.copy_from_slice(&b[32..48]);
            format!("{:032x}", u128::from_be_bytes(uuid))
        },
        version: u64_at(48),
        changed: u64_at(56),
    })
}

/// The changed blocks that the index names, read to the end of the file (`blocks`: of the origin).
pub fn index(path: &Path, blocks: u64) -> Result<Blocks> {
    let file = sys::open_read(path, 0)?;
    let bytes = blocks.div_ceil(4096) * 32768;
    let mut out = Blocks::default();
    let mut buf = vec![0; 32768];
    for at in (0..bytes).step_by(buf.len()) {
        file.read_exact_at(&mut buf, 4096 + at)?;
        for (i, e) in buf.chunks_exact(8).enumerate() {
            let block = at / 8 + i as u64;
            if e != [0; 8] {
                ensure!(block < blocks, "the index names block {block} of {blocks}");
                out.add(block, 1);
            }
        }
    }
    Ok(out)
}
