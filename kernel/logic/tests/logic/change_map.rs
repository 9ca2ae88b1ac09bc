// SPDX-License-Identifier: GPL-2.0-only
use crate::{config, Random};
use cow_logic::change_map::ChangeMap;
use cow_logic::mem::without_memory;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

const LEAF: u64 = 32768;

/// The runs of a set, the slow way.
fn runs(set: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::new();
    for &b in set {
        match out.last_mut() {
            Some((start, len)) if *start + *len == b => *len += 1,
            _ => out.push((b, 1)),
        }
    }
    out
}

fn runs_of(map: &ChangeMap) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    let mut from = 0;
    while let Some(run) = map.next_run(from) {
        out.push((run.start, run.len));
        from = run.start + run.len;
    }
    out
}

/// Blocks near the places where something can go wrong: words, leaves, the end.
fn block(blocks: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        0..200u64,
        LEAF - 70..LEAF + 70,
        2 * LEAF - 70..2 * LEAF + 70,
        blocks.saturating_sub(130)..blocks + 10,
        0..blocks + 1,
    ]
}

fn range(blocks: u64) -> impl Strategy<Value = (u64, u64)> {
    (
        block(blocks),
        prop_oneof![0..3u64, 0..200u64, Just(LEAF), 0..2 * LEAF],
    )
}

#[derive(Debug, Clone)]
enum Step {
    Mark((u64, u64)),
    MarkWithoutMemory((u64, u64)),
    Merge(Vec<(u64, u64)>),
}

fn case() -> impl Strategy<Value = (u64, Vec<Step>, u64)> {
    let sizes = prop_oneof![
        Just(1),
        60..70u64,
        Just(LEAF),
        LEAF - 2..LEAF + 3,
        2 * LEAF + 1..3 * LEAF
    ];
    sizes.prop_flat_map(|blocks| {
        let step = prop_oneof![
            8 => range(blocks).prop_map(Step::Mark),
            1 => range(blocks).prop_map(Step::MarkWithoutMemory),
            1 => prop::collection::vec(range(blocks), 0..4).prop_map(Step::Merge),
        ];
        (
            Just(blocks),
            prop::collection::vec(step, 0..12),
            block(blocks),
        )
    })
}

fn insert(set: &mut BTreeSet<u64>, (start, len): (u64, u64), blocks: u64) {
    set.extend((start..start + len).take_while(|b| *b < blocks));
}

proptest! {
    #![proptest_config(config(1))]

    #[test]
    #[cfg_attr(miri, ignore = "the naive model takes minutes there")]
    fn agrees_with_a_set((blocks, steps, probe) in case()) {
        let map = ChangeMap::new(blocks).unwrap();
        let mut set = BTreeSet::new();
        // Leaves that hold memory, leaves that are full.
        for step in steps {
            match step {
                Step::Mark(r) => {
                    map.mark(r.0, r.1);
                    insert(&mut set, r, blocks);
                }
                Step::MarkWithoutMemory(r) => {
                    let before = runs_of(&map);
                    without_memory(|| map.mark(r.0, r.1));
                    insert(&mut set, r, blocks);
                    // Too much is allowed here, within the leaves touched; take it over.
                    for (start, len) in runs_of(&map) {
                        for b in start..start + len {
                            if set.insert(b) {
                                let leaf = b / LEAF;
                                let end = r.0 + r.1;
                                prop_assert!(r.0 / LEAF <= leaf && leaf <= (end.max(1) - 1) / LEAF);
                                prop_assert!(before.iter().all(|(s, l)| s + l <= leaf * LEAF || *s >= (leaf + 1) * LEAF),
                                    "a leaf with memory became full");
                            }
                        }
                    }
                }
                Step::Merge(ranges) => {
                    let other = ChangeMap::new(blocks).unwrap();
                    for r in ranges {
                        other.mark(r.0, r.1);
                        insert(&mut set, r, blocks);
                    }
                    map.merge_from(&other);
                }
            }
        }
        prop_assert_eq!(map.count(), set.len() as u64);
        let expected = runs(&set);
        prop_assert_eq!(runs_of(&map), expected.clone());

        // A run asked for from its middle starts there.
        let from_probe = expected.iter().find(|(s, l)| s + l > probe).map(|(s, l)| {
            let start = probe.max(*s);
            (start, s + l - start)
        });
        prop_assert_eq!(map.next_run(probe).map(|r| (r.start, r.len)), from_probe);

        for b in (probe.saturating_sub(100)..probe + 100).chain([0, blocks, u64::MAX]) {
            prop_assert_eq!(map.is_marked(b), set.contains(&b));
        }
        let mut index = [7u64; 300];
        let any = map.fill_index(probe, &mut index);
        for (i, entry) in index.iter().enumerate() {
            prop_assert_eq!(*entry, u64::from(set.contains(&(probe + i as u64))));
        }
        prop_assert_eq!(any, index.iter().any(|e| *e != 0));
    }
}

#[test]
fn out_of_range_is_left_out() {
    let map = ChangeMap::new(100).unwrap();
    map.mark(100, 1);
    map.mark(u64::MAX, u64::MAX);
    map.mark(5, 0);
    assert_eq!(map.count(), 0);
    assert_eq!(map.next_run(0), None);
    assert_eq!(map.next_run(u64::MAX), None);
    map.mark(99, u64::MAX);
    assert_eq!(runs_of(&map), [(99, 1)]);
    let mut out = [9; 3];
    assert!(!map.fill_index(u64::MAX - 1, &mut out));
    assert_eq!(out, [0; 3]);

    let none = ChangeMap::new(0).unwrap();
    none.mark(0, 1);
    assert_eq!((none.count(), none.next_run(0)), (0, None));
}

#[test]
fn without_memory_a_whole_leaf_counts_as_changed() {
    let map = ChangeMap::new(3 * LEAF).unwrap();
    without_memory(|| map.mark(LEAF + 17, 1));
    assert_eq!(runs_of(&map), [(LEAF, LEAF)]);
    assert_eq!(map.count(), LEAF);
    // It stays so, and marking within it changes nothing.
    map.mark(LEAF + 3, 5);
    assert_eq!(map.count(), LEAF);

    // The last leaf has fewer blocks.
    let map = ChangeMap::new(LEAF + 10).unwrap();
    without_memory(|| map.mark(LEAF, 1));
    assert_eq!(runs_of(&map), [(LEAF, 10)]);
    assert_eq!(map.count(), 10);

    // A map that has no memory for its leaf, merged: too much rather than too little.
    let from = ChangeMap::new(LEAF).unwrap();
    from.mark(1, 1);
    let into = ChangeMap::new(LEAF).unwrap();
    without_memory(|| into.merge_from(&from));
    assert_eq!(into.count(), LEAF);
}

#[test]
fn memory_is_taken_only_where_something_changed() {
    const TIB: u64 = 1 << 28;
    let map = ChangeMap::new(TIB).unwrap();
    let idle = map.memory_bytes();
    assert_eq!(idle, 8192 * 8);
    map.mark(12345, 2);
    assert_eq!(map.memory_bytes(), idle + 4096);
    // Whole leaves need no memory and stay exact.
    map.mark(10 * LEAF, 4 * LEAF);
    assert_eq!(map.memory_bytes(), idle + 4096);
    assert_eq!(map.count(), 4 * LEAF + 2);
}

#[test]
fn threads_lose_nothing_and_count_exactly() {
    let (rounds, marks) = if cfg!(miri) { (1, 25) } else { (20, 2000) };
    for round in 0..rounds {
        const BLOCKS: u64 = 2 * LEAF + 1000;
        let map = Arc::new(ChangeMap::new(BLOCKS).unwrap());
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let map = Arc::clone(&map);
                std::thread::spawn(move || {
                    let mut random = Random(round * 10 + t);
                    let mut mine = BTreeSet::new();
                    for _ in 0..marks {
                        let start = random.below(3000) * 23;
                        let len = random.below(9);
                        map.mark(start, len);
                        mine.extend((start..start + len).take_while(|b| *b < BLOCKS));
                        if let Some(&b) = mine.last() {
                            assert!(map.is_marked(b), "own mark is seen at once");
                        }
                    }
                    mine
                })
            })
            .collect();
        let mut all = BTreeSet::new();
        for t in threads {
            all.extend(t.join().unwrap());
        }
        assert_eq!(map.count(), all.len() as u64);
        assert_eq!(runs_of(&map), runs(&all));
    }
}

/// All threads at the same words at the same time: an update that is not atomic loses bits here.
#[test]
fn threads_that_share_words_lose_nothing() {
    let (rounds, blocks) = if cfg!(miri) { (1, 128) } else { (200, 4096) };
    for _ in 0..rounds {
        let map = Arc::new(ChangeMap::new(blocks).unwrap());
        let start = Arc::new(std::sync::Barrier::new(4));
        let threads: Vec<_> = (0..4)
            .map(|t| {
                let (map, start) = (Arc::clone(&map), Arc::clone(&start));
                std::thread::spawn(move || {
                    start.wait();
                    for b in (t..blocks).step_by(4) {
                        map.mark(b, 1);
                    }
                })
            })
            .collect();
        for t in threads {
            t.join().unwrap();
        }
        assert_eq!(runs_of(&map), [(0, blocks)]);
        assert_eq!(map.count(), blocks);
    }
}
