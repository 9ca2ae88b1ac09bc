// SPDX-License-Identifier: GPL-2.0-only
//! Sets of 4096-byte blocks, as text files of `start length` lines or asked for from the module.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ioctl_abi::ioctl as abi;

use crate::control;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;

/// A set of blocks, as disjoint runs.
#[derive(Clone, Debug, Default)]
pub struct Blocks {
    runs: BTreeMap<u64, u64>,
}

impl Blocks {
    /// Adds a run; it may overlap what is there.
    pub fn add(&mut self, start: u64, len: u64) {
        if len == 0 {
            return;
        }
        let (mut from, mut to) = (start, start + len);
        if let Some((&s, &e)) = self.runs.range(..=from).next_back() {
            if e >= from {
                from = s;
                to = to.max(e);
            }
        }
        while let Some((&s, &e)) = self.runs.range(from..=to).next() {
            to = to.max(e);
            self.runs.remove(&s);
        }
        self.runs.insert(from, to);
    }

    /// Whether the set holds the block.
    pub fn contains(&self, block: u64) -> bool {
        self.runs
            .range(..=block)
            .next_back()
            .is_some_and(|(_, &e)| e > block)
    }

    /// The runs, as (start, length).
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.runs.iter().map(|(&s, &e)| (s, e - s))
    }

    /// How many blocks it holds.
    pub fn count(&self) -> u64 {
        self.runs().map(|(_, n)| n).sum()
    }

    /// Reads `start length` lines.
    pub fn parse(text: &str) -> Result<Self> {
        let mut out = Self::default();
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            let (s, n) = line
                .split_once(' ')
                .with_context(|| format!("bad line {line:?}"))?;
            out.add(s.trim().parse()?, n.trim().parse()?);
        }
        Ok(out)
    }
}

/// Which blocks a command leaves out.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Skip {
    /// Leave out the blocks of this device's running COW file
    #[arg(long, value_name = "MINOR")]
    pub skip_cow: Vec<u32>,
    /// Leave out the blocks listed in this file (lines of `start length`)
    #[arg(long, value_name = "FILE")]
    pub skip: Vec<PathBuf>,
}

impl Skip {
    /// The blocks to leave out.
    pub fn load(&self) -> Result<Blocks> {
        let mut out = Blocks::default();
        for &minor in &self.skip_cow {
            for e in control::extents(minor, abi::EXTENTS_COW_FILE)? {
                out.add(e.start, e.len);
            }
        }
        for path in &self.skip {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("read {}", path.display()))?;
            for (s, n) in Blocks::parse(&text)?.runs() {
                out.add(s, n);
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_merge() {
        let mut b = Blocks::default();
        b.add(10, 5);
        b.add(20, 5);
        b.add(14, 6);
        b.add(0, 2);
        assert_eq!(b.runs().collect::<Vec<_>>(), [(0, 2), (10, 15)]);
        assert!(b.contains(24) && !b.contains(25) && !b.contains(2));
        assert_eq!(b.count(), 17);
    }
}
