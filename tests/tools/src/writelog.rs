// SPDX-License-Identifier: GPL-2.0-only
//! What QEMU's `blklogwrites` has recorded of a disk. `tests/powercut/log.py` reads the same and says what
//! the order in it means; this is for going through every flush of a recording.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::Path;

use anyhow::{ensure, Context, Result};

use crate::rng::Rng;

/// Bytes of a sector, which a disk writes as a whole or not at all.
pub const SECTOR: usize = 512;
const MAGIC: u64 = 0x006A_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// One request.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// First byte of the disk.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
    flags: u64,
    /// Where its data is in the log; `None`: it leaves zeros.
    data: Option<usize>,
}

impl Entry {
    /// What has completed before it is durable when it has.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    fn is_fua(&self) -> bool {
        self.flags & FUA != 0
    }

    fn changes_disk(&self) -> bool {
        self.len != 0 && self.flags & MARK == 0
    }
}

/// A log, in memory.
pub struct Log {
    bytes: Vec<u8>,
    /// In the order of completion.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads a log. The entries `ignored` are flushes that the recorder has made itself.
    ///
    /// # Errors
    ///
    /// It is no log, or it is damaged.
    pub fn read(path: &Path, ignored: &[usize]) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let u64_at = |at: usize| -> Result<u64> {
            let b = bytes
                .get(at..at + 8)
                .context("the log ends within an entry")?;
            Ok(u64::from_le_bytes(b.try_into().expect("8 bytes")))
        };
        ensure!(
            u64_at(0)? == MAGIC && u64_at(8)? == 1,
            "{} is not a write log",
            path.display()
        );
        let count = u64_at(16)? as usize;
        let size = u64_at(24)? as u32 as usize;
        ensure!(
            size.is_power_of_two() && size >= SECTOR,
            "sectors of {size} bytes"
        );
        let mut entries = Vec::with_capacity(count);
        let mut at = size;
        for i in 0..count {
            let (sector, sectors) = (u64_at(at)? as usize, u64_at(at + 8)? as usize);
            let mut flags = u64_at(at + 16)?;
            ensure!(
                flags & !(FLUSH | FUA | DISCARD | MARK) == 0,
                "entry {i} has flags {flags:#x}: the log is damaged"
            );
            at += size;
            let len = sectors * size;
            let data = (flags & DISCARD == 0).then_some(at);
            if data.is_some() {
                at += len;
            }
            ensure!(at <= bytes.len(), "entry {i} ends behind the log");
            if ignored.contains(&i) {
                ensure!(len == 0, "entry {i} is more than a flush");
                flags = 0;
            }
            entries.push(Entry {
                offset: sector * size,
                len,
                flags,
                data,
            });
        }
        Ok(Self { bytes, entries })
    }

    /// A sector that an entry leaves, by its number within the entry.
    fn sector(&self, entry: &Entry, i: usize) -> &[u8] {
        static ZEROS: [u8; SECTOR] = [0; SECTOR];
        match entry.data {
            Some(at) => &self.bytes[at + i * SECTOR..][..SECTOR],
            None => &ZEROS,
        }
    }

    /// Carries out a whole entry.
    pub fn apply(&self, disk: &mut [u8], entry: &Entry) {
        if !entry.changes_disk() {
            return;
        }
        let target = &mut disk[entry.offset..entry.offset + entry.len];
        match entry.data {
            Some(at) => target.copy_from_slice(&self.bytes[at..at + entry.len]),
            None => target.fill(0),
        }
    }

    /// The entries of a range that change the disk.
    pub fn changes(&self, range: Range<usize>) -> Vec<usize> {
        range.filter(|i| self.entries[*i].changes_disk()).collect()
    }
}

/// How the disk treats what no flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All of it is there: the state at the flush itself.
    All,
    /// So many of a hundred are, each by chance.
    Some(u64),
    /// Only the newest ones.
    Newest,
    /// One is lost.
    AllButOne,
    /// One is there.
    OnlyOne,
    /// Single sectors of each.
    Torn,
}

impl Way {
    /// The ways by chance, in turn.
    pub const LOSSY: [Way; 7] = [
        Way::Some(50),
        Way::Torn,
        Way::AllButOne,
        Way::OnlyOne,
        Way::Some(10),
        Way::Newest,
        Way::Some(90),
    ];
}

/// Sectors whose content differs from the durable state: number and content.
pub type Overlay<'a> = BTreeMap<usize, &'a [u8]>;

/// What of `pending`, which no flush covers, is on the disk after the cut. A sector's content is the newest
/// that survived; as each may be lost, any content may come out that any order of writing gives.
pub fn survivors<'a>(log: &'a Log, pending: &[usize], way: Way, rng: &mut Rng) -> Overlay<'a> {
    let mut out = Overlay::new();
    let n = pending.len() as u64;
    if n == 0 {
        return out;
    }
    let one = pending[rng.below(n) as usize];
    let newest: HashSet<usize> = {
        let k = 1 + rng.below(n.min(8)) as usize;
        pending[pending.len() - k..].iter().copied().collect()
    };
    for &i in pending {
        let entry = &log.entries[i];
        let whole = entry.is_fua()
            || match way {
                Way::All => true,
                Way::Some(percent) => rng.below(100) < percent,
                Way::Newest => newest.contains(&i),
                Way::AllButOne => i != one,
                Way::OnlyOne => i == one,
                Way::Torn => rng.below(4) == 0,
            };
        for s in 0..entry.len / SECTOR {
            if whole || (way == Way::Torn && rng.below(2) == 0) {
                out.insert(entry.offset / SECTOR + s, log.sector(entry, s));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 64 * SECTOR;

    /// A log of entries: first sector, flags, one byte for each sector.
    fn log(entries: &[(usize, u64, &[u8])], ignored: &[usize]) -> Result<Log> {
        let mut b = Vec::new();
        for word in [MAGIC, 1, entries.len() as u64, SECTOR as u64] {
            b.extend(word.to_le_bytes());
        }
        b.resize(SECTOR, 0);
        for (at, flags, data) in entries {
            let from = b.len();
            for word in [*at as u64, data.len() as u64, *flags, 0] {
                b.extend(word.to_le_bytes());
            }
            b.resize(from + SECTOR, 0);
            if flags & DISCARD == 0 {
                data.iter().for_each(|byte| b.extend([*byte; SECTOR]));
            }
        }
        let path = std::env::temp_dir().join(format!(
            "writelog-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        std::fs::write(&path, b)?;
        let log = Log::read(&path, ignored);
        std::fs::remove_file(path)?;
        log
    }

    #[test]
    fn replay_gives_the_disk() {
        let log = log(
            &[
                (1, 0, &[10, 11, 12]),
                (0, FLUSH, &[]),
                (2, DISCARD, &[0]),
                (3, 0, &[50]),
            ],
            &[],
        )
        .unwrap();
        let mut disk = vec![0; SIZE];
        for e in &log.entries {
            log.apply(&mut disk, e);
        }
        let firsts: Vec<u8> = disk.chunks(SECTOR).map(|s| s[0]).take(5).collect();
        assert_eq!(firsts, [0, 10, 0, 50, 0]);
        assert!(log.entries[1].is_flush());
        assert_eq!(log.changes(0..4), [0, 2, 3]);
    }

    #[test]
    fn flushes_of_the_recorder_do_not_count() {
        let one = log(&[(1, 0, &[1]), (0, FLUSH, &[])], &[1]).unwrap();
        assert!(!one.entries[1].is_flush());
        assert!(log(&[(1, 0, &[1]), (0, FLUSH, &[])], &[0]).is_err());
    }

    #[test]
    fn any_part_of_the_rest_survives_and_sectors_stay_whole() {
        let log = log(&[(1, 0, &[1, 2]), (1, 0, &[3]), (4, FUA, &[9])], &[]).unwrap();
        let mut seen = HashSet::new();
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            for way in Way::LOSSY {
                let overlay = survivors(&log, &[0, 1, 2], way, &mut rng);
                assert_eq!(overlay[&4][0], 9, "a completed FUA write is durable");
                seen.insert([1, 2].map(|s| overlay.get(&s).map_or(0, |d| d[0])));
            }
        }
        let all: HashSet<[u8; 2]> = [0, 1, 3].iter().flat_map(|a| [[*a, 0], [*a, 2]]).collect();
        assert_eq!(seen, all);
        let all = survivors(&log, &[0, 1, 2], Way::All, &mut Rng::new(1));
        assert_eq!([1, 2, 4].map(|s| all[&s][0]), [3, 2, 9]);
    }

    #[test]
    fn refuses_what_is_no_log() {
        assert!(log(&[(0, 64, &[])], &[]).is_err());
        assert!(Log::read(Path::new("/proc/self/cmdline"), &[]).is_err());
    }
}
