// SPDX-License-Identifier: GPL-2.0-only
//! Regions and groups against a naive model; words of the change map.

use std::collections::{BTreeMap, BTreeSet};

use cow_logic::abi::cow::{GROUP_BLOCKS, REGION_BLOCKS};
use cow_logic::change_map::ChangeMap;
use cow_logic::mem::without_memory;
use cow_logic::regions::{Groups, Regions, GROUP_MASK};
use cow_logic::space::{Segment, Space};
use proptest::prelude::*;

/// Words of a bitmap block; fewer where every step is slow.
const WORDS: usize = if cfg!(miri) { 6 } else { 480 };

/// Blocks that one leaf of a change map covers.
const LEAF: u64 = 32768;

/// Blocks near the borders of regions and groups.
fn border() -> impl Strategy<Value = u64> {
    (
        prop_oneof![Just(REGION_BLOCKS), Just(GROUP_BLOCKS)],
        0..40u64,
        0..5u64,
    )
        .prop_map(|(unit, k, off)| (k * unit + off).saturating_sub(2))
}

/// Words as they come: empty, full, with holes.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(0xaaaa_aaaa_aaaa_aaaa),
        any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(crate::config(42))]

    #[test]
    fn groups_are_right_at_the_borders(a in border(), b in border()) {
        let (start, len) = (a.min(b), a.abs_diff(b));
        let mut naive: BTreeMap<usize, u32> = BTreeMap::new();
        for region in start / REGION_BLOCKS..(start + len).div_ceil(REGION_BLOCKS) {
            if len > 0 {
                *naive.entry((region / 30) as usize).or_default() |= 1 << (region % 30);
            }
        }
        let found: Vec<(usize, u32)> = Groups::of(start, len).collect();
        prop_assert_eq!(found, naive.into_iter().collect::<Vec<_>>(), "in order, each once");
    }

    #[test]
    fn words_mark_what_they_say(
        blocks in prop_oneof![1..200u64, LEAF - 70..LEAF + 70],
        first in prop_oneof![0..4u64, 500..516u64],
        words in proptest::collection::vec(word(), 0..6),
        before in 0..200u64,
    ) {
        let map = ChangeMap::new(blocks).unwrap();
        map.mark(before, 3);
        let mut set: BTreeSet<u64> = (before..before + 3).collect();
        map.mark_words(first * 64, words.iter().copied());
        for (i, word) in (0u64..).zip(&words) {
            set.extend((0..64).filter(|b| (word >> b) & 1 != 0).map(|b| (first + i) * 64 + b));
        }
        set.retain(|b| *b < blocks);
        prop_assert_eq!(map.count(), set.len() as u64);
        prop_assert!(set.iter().all(|b| map.is_marked(*b)));
    }

    #[test]
    fn a_space_takes_what_lies_below_the_mark(
        segments in proptest::collection::vec((0u64..9, 1u64..20), 0..12), mark in 0u64..250, more in 1u64..5,
    ) {
        let space = Space::new().unwrap();
        let mut usable = Vec::new();
        let mut at = 20;
        for (gap, len) in segments {
            at += gap;
            space.add(Segment { start: at, len }).unwrap();
            usable.extend(at..at + len);
            at += len;
        }
        let listed: Vec<u64> = space.segments().flat_map(|s| s.start..s.end()).collect();
        prop_assert_eq!(&listed, &usable);
        space.restore(mark);
        prop_assert_eq!(space.high_water(), mark);
        let taken: BTreeSet<u64> = usable.iter().copied().filter(|b| *b < mark).collect();
        prop_assert_eq!(space.used_blocks(), taken.len() as u64);
        prop_assert_eq!(space.free_blocks(), (usable.len() - taken.len()) as u64);
        for b in 0..300 {
            prop_assert_eq!(space.is_taken(b), taken.contains(&b), "block {}", b);
        }
        let runs: Vec<u64> = space.taken_runs().flat_map(|s| s.start..s.end()).collect();
        prop_assert_eq!(runs, taken.iter().copied().collect::<Vec<_>>());
        // It goes on from there: nothing that was taken is taken again.
        let next = usable.iter().copied().find(|b| *b >= mark);
        prop_assert_eq!(space.take(more).map(|(start, _)| start), next);
    }

    #[test]
    fn groups_are_those_of_each_block(start in 0u64..4 * GROUP_BLOCKS, len in 0u64..2 * GROUP_BLOCKS) {
        let mut naive: BTreeMap<usize, u32> = BTreeMap::new();
        for block in (start..start + len).step_by(REGION_BLOCKS as usize).chain((len > 0).then(|| start + len - 1)) {
            let bit = block % GROUP_BLOCKS / REGION_BLOCKS;
            *naive.entry((block / GROUP_BLOCKS) as usize).or_default() |= 1 << bit;
        }
        let found: BTreeMap<usize, u32> = Groups::of(start, len).collect();
        prop_assert_eq!(found, naive);
    }

    #[test]
    fn regions_follow_the_model(steps in proptest::collection::vec((0u8..4, 0usize..3, any::<u32>(), 0u64..3 * GROUP_BLOCKS, 1u64..5000), 1..60)) {
        let regions = Regions::new(3).unwrap();
        let mut open = [0u32; 3];
        let mut touched = [0u32; 3];
        for (what, group, mask, start, len) in steps {
            let mask = mask & GROUP_MASK;
            match what {
                0 => { regions.open(group, mask); open[group] |= mask; touched[group] |= mask; }
                1 => { regions.close(group, mask); open[group] &= !mask; }
                2 => {
                    let len = len.min(3 * GROUP_BLOCKS - start);
                    let mut all = true;
                    for (g, m) in Groups::of(start, len) {
                        if open[g] & m != m { all = false; break; }
                        touched[g] |= m;
                    }
                    prop_assert_eq!(regions.is_open(start, len), all);
                }
                _ => { prop_assert_eq!(regions.take_touched(group), touched[group]); touched[group] = 0; }
            }
        }
        prop_assert!(!regions.is_open(3 * GROUP_BLOCKS, 1), "behind the end nothing is open");
    }

    #[test]
    fn words_carry_a_change_map(blocks in 1u64..70_000, marks in proptest::collection::vec((0u64..70_000, 1u64..900), 0..40), first in 0u64..1100) {
        let map = ChangeMap::new(blocks).unwrap();
        let mut set = BTreeSet::new();
        for (start, len) in marks {
            map.mark(start, len);
            set.extend((start..start + len).filter(|b| *b < blocks));
        }
        let first = first * 64;
        let mut words = vec![!0u64; WORDS];
        let any = map.copy_words(first, &mut words);
        let inside: BTreeSet<u64> = set.range(first..first + WORDS as u64 * 64).copied().collect();
        let found: BTreeSet<u64> = (0..WORDS as u64 * 64).filter(|i| (words[(i / 64) as usize] >> (i % 64)) & 1 != 0).map(|i| first + i).collect();
        prop_assert_eq!(&found, &inside);
        prop_assert_eq!(any, !inside.is_empty());
        let other = ChangeMap::new(blocks).unwrap();
        other.mark_words(first, words.iter().copied());
        prop_assert_eq!(other.count(), inside.len() as u64);
        for b in &inside { prop_assert!(other.is_marked(*b)); }
    }

    #[test]
    fn a_space_is_restored(segments in proptest::collection::vec((1u64..50, 1u64..60), 1..20), takes in proptest::collection::vec(1u64..40, 0..20)) {
        let space = Space::new().unwrap();
        let mut at = 100;
        for (gap, len) in segments {
            at += gap;
            space.add(Segment { start: at, len }).unwrap();
            at += len;
        }
        for n in takes { space.take(n); }
        let again = Space::new().unwrap();
        for s in space.segments() { again.add(s).unwrap(); }
        again.restore(space.high_water());
        prop_assert_eq!(again.used_blocks(), space.used_blocks());
        prop_assert_eq!(again.free_blocks(), space.free_blocks());
        prop_assert_eq!(again.taken_runs().collect::<Vec<_>>(), space.taken_runs().collect::<Vec<_>>());
        prop_assert_eq!(again.take(7), space.take(7));
    }
}

#[test]
fn extremes_of_groups_and_regions() {
    assert_eq!(Groups::of(7, 0).count(), 0);
    assert_eq!(Groups::of(u64::MAX, u64::MAX).count(), 0);
    assert_eq!(Groups::of(u64::MAX - 1, u64::MAX).count(), 1);
    assert_eq!(
        Groups::of(0, GROUP_BLOCKS).collect::<Vec<_>>(),
        [(0, GROUP_MASK)]
    );
    assert_eq!(GROUP_MASK.count_ones(), 30);

    let regions = Regions::new(2).unwrap();
    assert_eq!(regions.memory_bytes(), 16);
    assert!(without_memory(|| Regions::new(2)).is_err());
    // Who asks for a group that is not there changes nothing.
    regions.open(2, GROUP_MASK);
    regions.close(usize::MAX, GROUP_MASK);
    assert_eq!(regions.take_touched(2), 0);
    assert!(!regions.is_open(0, 1) && !regions.is_open(2 * GROUP_BLOCKS, 1));
    // A range is open when all of it is, over groups too.
    regions.open(0, 1 << 29);
    assert!(!regions.is_open(GROUP_BLOCKS - 1, 2));
    regions.open(1, 1);
    assert!(regions.is_open(GROUP_BLOCKS - 1, 2));
    assert!(!regions.is_open(GROUP_BLOCKS - REGION_BLOCKS - 1, 2));
    // Closing forgets no touch, and a touch opens nothing.
    regions.close(0, 1 << 29);
    assert_eq!(regions.take_touched(0), 1 << 29);
    assert_eq!(regions.take_touched(0), 0);
    assert!(!regions.is_open(GROUP_BLOCKS - 1, 1));
    assert_eq!(regions.take_touched(0), 0, "a closed region is not touched");
    assert!(regions.is_open(GROUP_BLOCKS, 1));
}

#[test]
fn words_of_leaves_without_memory_end_with_the_map() {
    // Full leaves, of which the last one has 70 blocks.
    let map = ChangeMap::new(LEAF + 70).unwrap();
    map.mark(0, u64::MAX);
    let mut words = [7; 4];
    assert!(map.copy_words(LEAF, &mut words));
    assert_eq!(words, [u64::MAX, 0x3f, 0, 0]);
    assert!(map.copy_words(LEAF - 64, &mut words));
    assert_eq!(words, [u64::MAX, u64::MAX, 0x3f, 0]);
    // Empty ones, and what is behind the end.
    let none = ChangeMap::new(LEAF + 70).unwrap();
    assert!(!none.copy_words(0, &mut words));
    assert_eq!(words, [0; 4]);
    words = [7; 4];
    assert!(!map.copy_words(LEAF + 128, &mut words));
    assert_eq!(words, [0; 4]);
    words = [7; 4];
    assert!(!map.copy_words(u64::MAX - 63, &mut words));
    assert_eq!(words, [0; 4]);
    assert!(!map.copy_words(0, &mut []));

    none.mark_words(u64::MAX - 63, [u64::MAX; 2].into_iter());
    none.mark_words(LEAF + 128, [u64::MAX; 2].into_iter());
    assert_eq!(none.count(), 0);
    none.mark_words(LEAF + 64, [u64::MAX; 2].into_iter());
    assert_eq!(none.count(), 6);
    // Without memory too much is marked, never too little.
    let map = ChangeMap::new(2 * LEAF).unwrap();
    without_memory(|| map.mark_words(LEAF, [2, 0].into_iter()));
    assert_eq!(
        map.next_run(0).map(|r| (r.start, r.len)),
        Some((LEAF, LEAF))
    );
}
