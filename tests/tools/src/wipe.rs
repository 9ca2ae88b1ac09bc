// SPDX-License-Identifier: GPL-2.0-only
//! Overwrites every block of a device, in random order, with every kind of write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use nix::libc;

use crate::extents::{Blocks, BLOCK};
use crate::rng::Rng;
use crate::sys::{self, AlignedBuf};

/// A kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    /// Through the page cache of the block device
    Buffered,
    /// O_DIRECT, whole blocks
    Direct,
    /// O_DIRECT, one logical block of the device after the other
    Sector,
    /// O_DIRECT with O_DSYNC: carries FUA or is followed by a flush
    Fua,
    /// BLKZEROOUT
    Zero,
    /// BLKDISCARD
    Discard,
    /// O_DIRECT through the whole disk below the partition
    Whole,
}

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Device to overwrite
    pub device: PathBuf,
    /// Kinds of writes; all that the device takes, when not given
    #[arg(long, value_delimiter = ',')]
    pub kinds: Vec<Kind>,
    /// Whole disk below the partition, and where the partition starts on it, in bytes
    #[arg(long, value_name = "DISK:BYTES")]
    pub whole: Option<String>,
    /// Seed of order, kinds and contents
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Overwrite only these blocks (lines of `start length`)
    #[arg(long, value_name = "FILE")]
    pub only: Option<PathBuf>,
    /// Longest run of blocks of one write
    #[arg(long, default_value_t = 16)]
    pub run: u64,
    /// Stop after this share of the blocks, in percent
    #[arg(long, default_value_t = 100)]
    pub percent: u64,
    /// Blocks left out
    #[command(flatten)]
    pub skip: crate::extents::Skip,
}

struct Files {
    buffered: File,
    direct: File,
    fua: File,
    whole: Option<(File, u64)>,
    /// Logical block size of the device.
    lbs: u64,
}

impl Files {
    fn open(o: &Options) -> Result<Self> {
        let direct = sys::open_write(&o.device, libc::O_DIRECT)?;
        let lbs = sys::logical_block_size(&direct);
        let whole = match &o.whole {
            None => None,
            Some(w) => {
                let (disk, at) = w.rsplit_once(':').context("--whole wants DISK:BYTES")?;
                Some((
                    sys::open_write(Path::new(disk), libc::O_DIRECT)?,
                    at.parse()?,
                ))
            }
        };
        Ok(Self {
            buffered: sys::open_write(&o.device, 0)?,
            fua: sys::open_write(&o.device, libc::O_DIRECT | libc::O_DSYNC)?,
            direct,
            whole,
            lbs,
        })
    }

    fn write(&self, kind: Kind, at: u64, buf: &[u8]) -> io::Result<()> {
        match kind {
            Kind::Buffered => self.buffered.write_all_at(buf, at),
            Kind::Direct => self.direct.write_all_at(buf, at),
            Kind::Fua => self.fua.write_all_at(buf, at),
            Kind::Sector => buf
                .chunks(self.lbs as usize)
                .zip((at..).step_by(self.lbs as usize))
                .try_for_each(|(b, at)| self.direct.write_all_at(b, at)),
            Kind::Zero => sys::zero_out(&self.direct, at, buf.len() as u64),
            Kind::Discard => sys::discard(&self.direct, at, buf.len() as u64),
            Kind::Whole => match &self.whole {
                Some((f, start)) => f.write_all_at(buf, start + at),
                None => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            },
        }
    }
}

/// Runs of blocks to overwrite, shuffled and cut.
fn plan(o: &Options, blocks: u64, rng: &mut Rng) -> Result<Vec<(u64, u64)>> {
    let skip = o.skip.load()?;
    let mut all = Blocks::default();
    match &o.only {
        Some(p) => {
            let text = std::fs::read_to_string(p)?;
            Blocks::parse(&text)?
                .runs()
                .for_each(|(s, n)| all.add(s, n));
        }
        None => all.add(0, blocks),
    }
    let mut out = Vec::new();
    for (start, len) in all.runs() {
        let mut at = start;
        while at < start + len {
            let most = (1 + rng.below(o.run)).min(start + len - at);
            let n = (at..at + most).take_while(|&b| !skip.contains(b)).count() as u64;
            if n > 0 {
                out.push((at, n));
            }
            at += n.max(1);
        }
    }
    rng.shuffle(&mut out);
    let keep = (out.len() as u64 * o.percent).div_ceil(100);
    out.truncate(keep as usize);
    Ok(out)
}

/// Overwrites; prints how many blocks each kind of write took.
pub fn run(o: &Options) -> Result<()> {
    let files = Files::open(o)?;
    let bytes = sys::size_of(&files.direct)?;
    let mut rng = Rng::new(o.seed);
    let runs = plan(o, bytes.div_ceil(BLOCK), &mut rng)?;
    let mut kinds = o.kinds.clone();
    let asked = !kinds.is_empty();
    if !asked {
        kinds = vec![
            Kind::Buffered,
            Kind::Direct,
            Kind::Sector,
            Kind::Fua,
            Kind::Zero,
            Kind::Discard,
        ];
        if o.whole.is_some() {
            kinds.push(Kind::Whole);
        }
    }
    println!(
        "wipe {}: seed {}, {} runs",
        o.device.display(),
        o.seed,
        runs.len()
    );
    let mut buf = AlignedBuf::new((o.run * BLOCK) as usize);
    let mut done: BTreeMap<Kind, u64> = BTreeMap::new();
    for (start, n) in runs {
        let at = start * BLOCK;
        let len = (n * BLOCK).min(bytes - at) as usize;
        rng.fill(&mut buf[..len]);
        loop {
            ensure!(
                !kinds.is_empty(),
                "the device takes none of the kinds of writes"
            );
            let i = rng.below(kinds.len() as u64) as usize;
            match files.write(kinds[i], at, &buf[..len]) {
                Ok(()) => {
                    *done.entry(kinds[i]).or_default() += n;
                    break;
                }
                // The filesystem uses a cached block in there: only plain writes are let through.
                Err(e)
                    if !asked
                        && e.raw_os_error() == Some(libc::EBUSY)
                        && matches!(kinds[i], Kind::Zero | Kind::Discard) => {}
                Err(e) if !asked && e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    println!("wipe: the device does not take {:?}", kinds[i]);
                    kinds.remove(i);
                }
                Err(e) => bail!("{:?} of {n} blocks at {start}: {e}", kinds[i]),
            }
        }
    }
    files.buffered.sync_all()?;
    println!("wipe: blocks by kind {done:?}");
    Ok(())
}
