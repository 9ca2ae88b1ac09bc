// SPDX-License-Identifier: GPL-2.0-only
//! Memory that is used at random, so that most of it goes to swap and comes back, and that knows what it holds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use crate::finding::finding;
use crate::rng::{mix, Rng};
use crate::stamp::parse_size;

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// How much memory
    pub bytes: String,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 3600)]
    pub seconds: u64,
    /// Stop when this file exists
    #[arg(long)]
    pub until: Option<PathBuf>,
    /// Mean pause between two visits of a page, in microseconds
    #[arg(long, default_value_t = 0)]
    pub pause: u64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

fn word(seed: u64, page: usize, generation: u32, i: usize) -> u64 {
    mix(seed ^ ((page as u64) << 24) ^ u64::from(generation)).wrapping_mul(2 * i as u64 + 1)
}

fn write(seed: u64, n: usize, generation: u32, page: &mut [u64]) {
    for (i, w) in page.iter_mut().enumerate() {
        *w = word(seed, n, generation, i);
    }
}

fn check(seed: u64, n: usize, generation: u32, page: &[u64]) -> Result<()> {
    for (i, &w) in page.iter().enumerate() {
        if w != word(seed, n, generation, i) {
            return Err(finding(format!(
                "page {n} of {} in memory: word {i} is {w:#x} instead of {:#x}",
                seed,
                word(seed, n, generation, i)
            )));
        }
    }
    Ok(())
}

/// Visits pages until told to stop; fails when one is not what was stored there.
pub fn run(o: &Options) -> Result<()> {
    let pages = parse_size(&o.bytes)? as usize / PAGE;
    ensure!(pages > 0, "less than a page");
    let mut memory = vec![0u64; pages * WORDS];
    let mut generations = vec![0u32; pages];
    let mut rng = Rng::new(o.seed);
    let end = Instant::now() + Duration::from_secs(o.seconds);
    let over = || Instant::now() >= end || o.until.as_ref().is_some_and(|p| p.exists());
    for (n, page) in memory.chunks_exact_mut(WORDS).enumerate() {
        write(o.seed, n, 0, page);
        if n % 256 == 0 && over() {
            return Ok(());
        }
    }
    let mut visits = 0u64;
    while !over() {
        let n = rng.below(pages as u64) as usize;
        let page = &mut memory[n * WORDS..][..WORDS];
        check(o.seed, n, generations[n], page)?;
        if !rng.one_in(3) {
            generations[n] += 1;
            write(o.seed, n, generations[n], page);
        }
        visits += 1;
        if o.pause > 0 {
            std::thread::sleep(Duration::from_micros(rng.below(2 * o.pause)));
        }
    }
    for (n, page) in memory.chunks_exact(WORDS).enumerate() {
        check(o.seed, n, generations[n], page)?;
    }
    println!("hog: seed={} pages={pages} visits={visits}", o.seed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_word_is_found() {
        let mut page = [0u64; WORDS];
        write(3, 7, 2, &mut page);
        assert!(check(3, 7, 2, &page).is_ok());
        assert!(check(3, 7, 1, &page).is_err());
        page[WORDS - 1] ^= 1;
        assert!(check(3, 7, 2, &page).is_err());
    }
}
