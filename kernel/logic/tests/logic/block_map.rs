// SPDX-License-Identifier: GPL-2.0-only
use crate::config;
use cow_logic::block_map::{BlockMap, Entry, Run};
use cow_logic::mem::without_memory;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

const BLOCKS: u64 = 512 * 512 + 700;
/// Length of the longest question: over two borders, except where that takes minutes.
const LONG: u64 = if cfg!(miri) { 520 } else { 1100 };

const PROBES: usize = if cfg!(miri) { 3 } else { 20 };

/// Blocks around the borders of leaves and tables.
fn block() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..12u64,
        506..518u64,
        512 * 512 - 6..512 * 512 + 6u64,
        BLOCKS - 6..BLOCKS + 3,
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Reserve(u64, u64),
    Claim(u64, u64),
    Publish(u64, u64),
    Stored(u64, u64, u64),
    /// The normal life of some blocks in a row, up to a stage.
    Life {
        start: u64,
        len: u64,
        seq: u64,
        at: u64,
        stage: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (block(), 0..20u64).prop_map(|(b, n)| Step::Reserve(b, n)),
        (block(), 0..4u64).prop_map(|(b, s)| Step::Claim(b, s)),
        (block(), 0..4u64).prop_map(|(b, s)| Step::Publish(b, s)),
        (block(), 0..4u64, 0..9u64).prop_map(|(b, s, f)| Step::Stored(b, s, f)),
        (block(), 1..8u64, 0..50u64, 0..50u64, 0..4u8).prop_map(|(start, len, seq, at, stage)| {
            Step::Life {
                start,
                len,
                seq,
                at,
                stage,
            }
        }),
    ]
}

/// Said anew here: merely claimed is not preserved.
fn is_preserved(e: &Entry) -> bool {
    match e {
        Entry::Unclaimed | Entry::Claimed(_) => false,
        Entry::Memory(_) | Entry::Disk(_) => true,
    }
}

#[derive(Default)]
struct Model {
    entries: HashMap<u64, Entry>,
    leaves: HashSet<u64>,
}

impl Model {
    fn get(&self, b: u64) -> Entry {
        self.entries.get(&b).copied().unwrap_or(Entry::Unclaimed)
    }

    fn reserve(&mut self, start: u64, len: u64) {
        self.leaves.extend(
            (start..start + len)
                .filter(|b| *b < BLOCKS)
                .map(|b| b / 512),
        );
    }

    fn step(&mut self, b: u64, from: Entry, to: Entry) -> bool {
        let ok = b < BLOCKS && self.leaves.contains(&(b / 512)) && self.get(b) == from;
        if ok {
            self.entries.insert(b, to);
        }
        ok
    }

    fn run(&self, start: u64, max: u64) -> Run {
        let entry = self.get(start);
        let mut len = 0;
        while len < max && start + len < BLOCKS {
            let want = match entry {
                Entry::Unclaimed => Entry::Unclaimed,
                Entry::Claimed(s) => Entry::Claimed(s + len),
                Entry::Memory(s) => Entry::Memory(s + len),
                Entry::Disk(s) => Entry::Disk(s + len),
            };
            if self.get(start + len) != want {
                break;
            }
            len += 1;
        }
        let entry = if len == 0 { Entry::Unclaimed } else { entry };
        Run { entry, len }
    }
}

proptest! {
    #![proptest_config(config(2))]

    #[test]
    fn agrees_with_a_table(
        steps in prop::collection::vec(step(), 0..40),
        probes in prop::collection::vec((block(), prop_oneof![0..30u64, 500..LONG]), 1..PROBES),
    ) {
        let map = BlockMap::new(BLOCKS).unwrap();
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Reserve(b, n) => {
                    map.reserve(b, n).unwrap();
                    model.reserve(b, n);
                }
                Step::Claim(b, s) => prop_assert_eq!(
                    map.claim(b, s), model.step(b, Entry::Unclaimed, Entry::Claimed(s))),
                Step::Publish(b, s) => prop_assert_eq!(
                    map.publish(b, s), model.step(b, Entry::Claimed(s), Entry::Memory(s))),
                Step::Stored(b, s, f) => prop_assert_eq!(
                    map.stored(b, s, f), model.step(b, Entry::Memory(s), Entry::Disk(f))),
                Step::Life { start, len, seq, at, stage } => {
                    map.reserve(start, len).unwrap();
                    model.reserve(start, len);
                    for i in 0..len {
                        let (b, s, f) = (start + i, seq + i, at + i);
                        let steps = [
                            (Entry::Unclaimed, Entry::Claimed(s)),
                            (Entry::Claimed(s), Entry::Memory(s)),
                            (Entry::Memory(s), Entry::Disk(f)),
                        ];
                        for (from, to) in steps.into_iter().take(stage.into()) {
                            let ok = match to {
                                Entry::Claimed(_) => map.claim(b, s),
                                Entry::Memory(_) => map.publish(b, s),
                                _ => map.stored(b, s, f),
                            };
                            prop_assert_eq!(ok, model.step(b, from, to));
                        }
                    }
                }
            }
        }
        for (b, len) in probes {
            let entries: Vec<_> = (b..b + len).map(|b| model.get(b)).collect();
            prop_assert_eq!(map.get(b), model.get(b));
            prop_assert_eq!(map.run(b, len), model.run(b, len));
            prop_assert_eq!(
                map.preserved(b, len),
                b + len <= BLOCKS && entries.iter().all(is_preserved)
            );
            prop_assert_eq!(map.any_published(b, len), entries.iter().any(is_preserved));
            let free = entries.iter().take(BLOCKS.saturating_sub(b) as usize);
            prop_assert_eq!(
                map.unclaimed_run(b, len),
                free.take_while(|e| **e == Entry::Unclaimed).count() as u64
            );
        }
    }
}

#[test]
fn every_step_is_allowed_from_one_state_only() {
    let states = [
        Entry::Unclaimed,
        Entry::Claimed(7),
        Entry::Memory(7),
        Entry::Disk(9),
    ];
    for (i, state) in states.iter().enumerate() {
        let make = || {
            let map = BlockMap::new(1).unwrap();
            map.reserve(0, 1).unwrap();
            assert!(i < 1 || map.claim(0, 7));
            assert!(i < 2 || map.publish(0, 7));
            assert!(i < 3 || map.stored(0, 7, 9));
            assert_eq!(map.get(0), *state);
            assert_eq!(state.is_preserved(), i >= 2);
            assert_eq!(map.preserved(0, 1), i >= 2);
            assert_eq!(map.any_published(0, 1), i >= 2);
            map
        };
        assert_eq!(make().claim(0, 7), i == 0);
        assert_eq!(make().publish(0, 7), i == 1);
        assert!(!make().publish(0, 8), "another's number");
        assert_eq!(make().stored(0, 7, 9), i == 2);
        assert!(!make().stored(0, 8, 9), "another's number");
    }
}

#[test]
fn numbers_that_do_not_fit_are_refused() {
    let map = BlockMap::new(1).unwrap();
    map.reserve(0, 1).unwrap();
    assert!(!map.claim(0, 1 << 62));
    assert!(!map.claim(0, u64::MAX));
    assert_eq!(map.get(0), Entry::Unclaimed);
    let last = (1 << 62) - 1;
    assert!(map.claim(0, last));
    assert!(map.publish(0, last));
    assert!(!map.stored(0, last, 1 << 62));
    assert!(map.stored(0, last, last));
    assert_eq!(map.get(0), Entry::Disk(last));
}

#[test]
fn extremes() {
    let map = BlockMap::new(10).unwrap();
    assert!(!map.preserved(u64::MAX, u64::MAX));
    assert!(!map.preserved(9, 2), "behind the end");
    assert!(map.preserved(3, 0), "nothing to preserve");
    assert!(!map.any_published(0, u64::MAX));
    assert_eq!(map.unclaimed_run(4, u64::MAX), 6);
    assert_eq!(map.run(10, 5).len, 0);
    assert_eq!(map.run(u64::MAX, 5).len, 0);
    assert!(!map.claim(10, 0) && !map.claim(u64::MAX, 0));
    map.reserve(u64::MAX, u64::MAX).unwrap();
    map.reserve(0, u64::MAX).unwrap();
    assert!(map.claim(9, 0));
    let none = BlockMap::new(0).unwrap();
    assert_eq!(none.run(0, 1).len, 0);
    none.reserve(0, 1).unwrap();
}

#[test]
fn a_claim_needs_its_leaf() {
    let map = BlockMap::new(BLOCKS).unwrap();
    assert!(!map.claim(0, 1));
    assert!(without_memory(|| map.reserve(0, 1)).is_err());
    assert!(!map.claim(0, 1));
    map.reserve(0, 1).unwrap();
    assert!(map.claim(0, 1));
    // Leaves that are there need no memory.
    without_memory(|| map.reserve(3, 20)).unwrap();
}

#[test]
fn idle_on_a_tebibyte_it_is_nearly_free() {
    let map = BlockMap::new(1 << 28).unwrap();
    assert_eq!(map.memory_bytes(), 1024 * 8);
    map.reserve(77, 1).unwrap();
    assert_eq!(map.memory_bytes(), 1024 * 8 + 2 * 4096);
    // Long questions about untouched parts are cheap: they skip whole tables.
    assert_eq!(map.unclaimed_run(0, u64::MAX), 1 << 28);
}

#[test]
fn of_many_claimers_one_wins() {
    let blocks: u64 = if cfg!(miri) { 40 } else { 20_000 };
    let map = Arc::new(BlockMap::new(blocks).unwrap());
    let wins = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..4u64)
        .map(|t| {
            let (map, wins) = (Arc::clone(&map), Arc::clone(&wins));
            std::thread::spawn(move || {
                for i in 0..blocks {
                    let b = if t % 2 == 0 { i } else { blocks - 1 - i };
                    map.reserve(b, 1).unwrap();
                    if map.claim(b, t) {
                        wins.fetch_add(1, Ordering::Relaxed);
                        assert!(map.publish(b, t), "nobody takes it from us");
                        assert!(map.stored(b, t, b), "nobody takes it from us");
                    }
                }
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
    assert_eq!(wins.load(Ordering::Relaxed), blocks);
    assert_eq!(
        map.run(0, blocks),
        Run {
            entry: Entry::Disk(0),
            len: blocks
        }
    );
}
