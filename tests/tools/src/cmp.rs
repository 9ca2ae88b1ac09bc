// SPDX-License-Identifier: GPL-2.0-only
//! Comparisons of two devices or images, the independent judge of snapshots and change maps.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::extents::{Blocks, BLOCK};
use crate::rng;
use crate::sys;

const PIECE: usize = 1 << 20;

/// Reads a file or device from its start to its end in pieces of 1 MiB (the last one shorter).
struct Pieces {
    file: File,
    at: u64,
    end: u64,
}

impl Pieces {
    fn open(path: &Path) -> Result<Self> {
        let file = sys::open_read(path, 0)?;
        let end = sys::size_of(&file)?;
        std::io::Seek::rewind(&mut &file)?;
        Ok(Self { file, at: 0, end })
    }

    fn next<'a>(&mut self, buf: &'a mut [u8], path: &Path) -> Result<Option<&'a [u8]>> {
        let n = (self.end - self.at).min(buf.len() as u64) as usize;
        if n == 0 {
            return Ok(None);
        }
        self.file
            .read_exact(&mut buf[..n])
            .with_context(|| format!("read {} at byte {}", path.display(), self.at))?;
        self.at += n as u64;
        Ok(Some(&buf[..n]))
    }
}

/// The blocks in which two files or devices of one size differ, `skip` left out.
pub fn differing(a: &Path, b: &Path, skip: &Blocks) -> Result<Blocks> {
    let (mut pa, mut pb) = (Pieces::open(a)?, Pieces::open(b)?);
    ensure!(
        pa.end == pb.end,
        "{} has {} bytes, {} has {}",
        a.display(),
        pa.end,
        b.display(),
        pb.end
    );
    let (mut ba, mut bb) = (vec![0; PIECE], vec![0; PIECE]);
    let mut out = Blocks::default();
    let mut first = 0;
    while let (Some(x), Some(y)) = (pa.next(&mut ba, a)?, pb.next(&mut bb, b)?) {
        if x != y {
            let size = BLOCK as usize;
            for (i, (x, y)) in x.chunks(size).zip(y.chunks(size)).enumerate() {
                let block = first + i as u64;
                if x != y && !skip.contains(block) {
                    out.add(block, 1);
                }
            }
        }
        first += x.len() as u64 / BLOCK;
    }
    Ok(out)
}

/// A hash of a file or device, `skip` left out.
pub fn hash(path: &Path, skip: &Blocks) -> Result<u64> {
    let mut p = Pieces::open(path)?;
    let mut buf = vec![0; PIECE];
    let (mut sum, mut first) = (0u64, 0);
    while let Some(x) = p.next(&mut buf, path)? {
        for (i, b) in x.chunks(BLOCK as usize).enumerate() {
            let block = first + i as u64;
            if !skip.contains(block) {
                sum ^= rng::hash(block, b);
            }
        }
        first += x.len() as u64 / BLOCK;
    }
    Ok(sum)
}

/// Copies a file or device over another one of the same size, `skip` left out.
pub fn copy(from: &Path, to: &Path, skip: &Blocks) -> Result<()> {
    let mut p = Pieces::open(from)?;
    let out = sys::open_write(to, 0)?;
    let mut buf = vec![0; PIECE];
    let mut first = 0;
    while let Some(x) = p.next(&mut buf, from)? {
        for (i, b) in x.chunks(BLOCK as usize).enumerate() {
            let block = first + i as u64;
            if !skip.contains(block) {
                out.write_all_at(b, block * BLOCK)?;
            }
        }
        first += x.len() as u64 / BLOCK;
    }
    out.sync_all()?;
    Ok(())
}

/// Blocks of `a` that are not in `b`.
pub fn minus(a: &Blocks, b: &Blocks) -> Blocks {
    let mut out = Blocks::default();
    for (start, len) in a.runs() {
        for block in (start..start + len).filter(|&x| !b.contains(x)) {
            out.add(block, 1);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_and_hashes_leave_out_what_they_should() {
        let dir = std::env::temp_dir().join(format!("cmp-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (a, b) = (dir.join("a"), dir.join("b"));
        let mut bytes = vec![7; 3 * PIECE + 4096 + 512];
        std::fs::write(&a, &bytes).unwrap();
        bytes[4096 * 5] = 1;
        let end = bytes.len() - 1;
        bytes[end] = 1;
        std::fs::write(&b, &bytes).unwrap();
        let d = differing(&a, &b, &Blocks::default()).unwrap();
        assert_eq!(d.runs().collect::<Vec<_>>(), [(5, 1), (769, 1)]);
        let skip = Blocks::parse("5 1\n769 1\n").unwrap();
        assert_eq!(differing(&a, &b, &skip).unwrap().count(), 0);
        assert_eq!(hash(&a, &skip).unwrap(), hash(&b, &skip).unwrap());
        assert_ne!(
            hash(&a, &Blocks::default()).unwrap(),
            hash(&b, &skip).unwrap()
        );
        std::fs::remove_dir_all(dir).unwrap();
    }
}
