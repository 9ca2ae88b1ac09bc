// SPDX-License-Identifier: GPL-2.0-only
//! Tests of the pure logic: against naive models with fixed seeds, against tables, under threads.
//!
//! Everything in here also runs under Miri (`tests/host/miri.sh`), with fewer cases.
#![cfg(not(loom))]

mod change_map;
mod decide;
mod errno;
mod extents;
mod index;
mod load;
mod preserved;
mod private;
mod read_plan;
mod regions;
mod sizes;
mod slot_pool;
mod space;
mod state;
mod status_json;

use proptest::test_runner::{Config, RngSeed};

/// The same cases at every run: a failure is found again. `PROPTEST_CASES` asks for more.
fn config(seed: u64) -> Config {
    Config {
        cases: if cfg!(miri) {
            2
        } else {
            Config::default().cases
        },
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}

/// A small generator for the tests that need no shrinking (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}
