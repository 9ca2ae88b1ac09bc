// SPDX-License-Identifier: GPL-2.0-only
//! Random operations on one file, with a copy of what it must contain in memory: each read is compared with
//! the copy, through the page cache, past it and through a mapping.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;

use crate::extents::BLOCK;
use crate::finding::finding;
use crate::rng::Rng;
use crate::stamp::parse_size;
use crate::sys::{self, AlignedBuf, SharedMap};

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The file; made anew
    pub file: PathBuf,
    /// Its largest size
    #[arg(long, default_value = "512k")]
    pub bytes: String,
    /// Stop after so many operations
    #[arg(long, default_value_t = u64::MAX)]
    pub operations: u64,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 3600)]
    pub seconds: u64,
    /// Stop when this file exists
    #[arg(long)]
    pub until: Option<PathBuf>,
    /// Mean pause between two operations, in microseconds
    #[arg(long, default_value_t = 0)]
    pub pause: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

struct Both {
    cached: File,
    direct: File,
    /// What the file must contain.
    model: Vec<u8>,
    most: usize,
    rng: Rng,
}

/// Works on the file until told to stop; fails at the first difference.
pub fn run(o: &Options) -> Result<()> {
    let most = parse_size(&o.bytes)? / BLOCK * BLOCK;
    let cached = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&o.file)
        .with_context(|| format!("create {}", o.file.display()))?;
    let direct = sys::open_write(&o.file, libc::O_DIRECT)?;
    let mut f = Both {
        cached,
        direct,
        model: Vec::new(),
        most: most as usize,
        rng: Rng::new(o.seed),
    };
    let end = Instant::now() + Duration::from_secs(o.seconds);
    let mut done = 0;
    let mut last = Vec::new();
    while done < o.operations
        && Instant::now() < end
        && !o.until.as_ref().is_some_and(|p| p.exists())
    {
        let what = match f.step() {
            Ok(what) => what,
            Err(e) => {
                let last: Vec<_> = last.iter().rev().take(12).collect();
                return Err(e.context(format!(
                    "seed {}, operation {done}; before it, last first: {last:?}",
                    o.seed
                )));
            }
        };
        last.push(what);
        done += 1;
        if o.pause > 0 {
            std::thread::sleep(Duration::from_micros(f.rng.below(2 * o.pause)));
        }
    }
    // Once more from the disk.
    f.cached.sync_all()?;
    sys::drop_cache(&f.cached)?;
    let size = f.model.len();
    f.compare(0, size, false)?;
    println!("fsx: seed={} operations={done}", o.seed);
    Ok(())
}

impl Both {
    /// A range that begins in the file (or at its end, to append) and ends below the largest size.
    fn range(&mut self) -> (usize, usize) {
        let at = self.rng.below(self.model.len() as u64 + 1) as usize;
        let at = at.min(self.most - 1);
        let len = 1 + self.rng.below((self.most - at).min(48 << 10) as u64) as usize;
        (at, len)
    }

    /// The same in whole blocks.
    fn blocks(&mut self) -> (usize, usize) {
        let (at, len) = self.range();
        let block = BLOCK as usize;
        let at = at / block * block;
        (at, len.div_ceil(block) * block)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if self.model.len() < at + bytes.len() {
            self.model.resize(at + bytes.len(), 0);
        }
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// One operation, and what it was.
    fn step(&mut self) -> Result<String> {
        let kind = self.rng.below(12);
        Ok(match kind {
            0 | 1 => {
                let (at, len) = self.range();
                let mut data = vec![0; len];
                self.rng.fill(&mut data);
                self.cached.write_all_at(&data, at as u64)?;
                self.put(at, &data);
                format!("write {len} at {at}")
            }
            2 | 3 => {
                let (at, len) = self.blocks();
                let mut data = AlignedBuf::new(len);
                self.rng.fill(&mut data);
                self.direct.write_all_at(&data, at as u64)?;
                self.put(at, &data);
                format!("direct write {len} at {at}")
            }
            4 if !self.model.is_empty() => {
                let at = self.rng.below(self.model.len() as u64) as usize;
                let len = 1 + self.rng.below((self.model.len() - at).min(32 << 10) as u64) as usize;
                let mut data = vec![0; len];
                self.rng.fill(&mut data);
                let mut map = SharedMap::new(&self.cached, self.model.len())?;
                map.store(at, &data);
                self.put(at, &data);
                format!("mapped write {len} at {at}")
            }
            5 => {
                let size = self.rng.below(self.most as u64) as usize;
                self.cached.set_len(size as u64)?;
                self.model.resize(size, 0);
                format!("truncate to {size}")
            }
            6 => {
                let (at, len) = self.range();
                let zero = self.rng.one_in(2);
                let keep = libc::FALLOC_FL_KEEP_SIZE;
                let mode = keep
                    | if zero {
                        libc::FALLOC_FL_ZERO_RANGE
                    } else {
                        libc::FALLOC_FL_PUNCH_HOLE
                    };
                unless_unsupported(sys::fallocate(&self.cached, mode, at as u64, len as u64))?;
                let end = (at + len).min(self.model.len());
                if at < end {
                    self.model[at..end].fill(0);
                }
                format!("{} {len} at {at}", if zero { "zero" } else { "punch" })
            }
            7 => {
                if self.rng.one_in(2) {
                    self.cached.sync_all()?;
                } else {
                    self.cached.sync_data()?;
                }
                sys::drop_cache(&self.cached)?;
                "sync and forget".into()
            }
            _ => {
                let (at, len) = if kind < 10 {
                    self.range()
                } else {
                    self.blocks()
                };
                self.compare(at, len, kind >= 10)?;
                format!("read {len} at {at}")
            }
        })
    }

    fn compare(&mut self, at: usize, len: usize, direct: bool) -> Result<()> {
        let mut got = AlignedBuf::new(len);
        let file = if direct { &self.direct } else { &self.cached };
        let mut n = 0;
        while n < len {
            match file.read_at(&mut got[n..], (at + n) as u64)? {
                0 => break,
                more => n += more,
            }
            // A direct read ends in the middle of a block only at the end of the file.
            if direct && n % BLOCK as usize != 0 {
                break;
            }
        }
        let want = &self.model[at.min(self.model.len())..(at + len).min(self.model.len())];
        if &got[..n] != want {
            let bad = (0..n.min(want.len())).find(|&i| got[i] != want[i]);
            return Err(finding(format!(
                "a read of {len} bytes at {at} gave {n} bytes instead of {}, the first that is wrong is {bad:?}",
                want.len()
            )));
        }
        Ok(())
    }
}

fn unless_unsupported(r: io::Result<()>) -> Result<()> {
    match r {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            anyhow::bail!("the filesystem cannot punch holes: {e}")
        }
        r => Ok(r?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &std::path::Path, seed: u64) -> Options {
        Options {
            file: dir.join("f"),
            bytes: "64k".into(),
            operations: 60,
            seconds: 60,
            until: None,
            pause: 0,
            seed,
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs a filesystem")]
    fn the_difference_is_seen() {
        let dir = std::env::temp_dir().join(format!("fsx-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        // tmpfs may refuse O_DIRECT; then there is nothing to be tested here.
        if File::create(dir.join("f")).is_ok()
            && sys::open_write(&dir.join("f"), libc::O_DIRECT).is_ok()
        {
            let o = options(&dir, 5);
            run(&o).unwrap();
            let mut f = Both {
                cached: sys::open_write(&o.file, 0).unwrap(),
                direct: sys::open_write(&o.file, libc::O_DIRECT).unwrap(),
                model: std::fs::read(&o.file).unwrap(),
                most: 64 << 10,
                rng: Rng::new(1),
            };
            f.put(0, &[1; 100]);
            f.cached.write_all_at(&[1; 99], 0).unwrap();
            f.cached.write_all_at(&[2], 99).unwrap();
            assert!(f.compare(0, 64, false).is_ok());
            assert!(f.compare(64, 64, false).is_err());
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
