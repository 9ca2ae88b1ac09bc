// SPDX-License-Identifier: GPL-2.0-only
//! Regions and groups against a naive model; words of the change map; restored copies.

use std::collections::{BTreeMap, BTreeSet};

use cow_logic::abi::cow::{GROUP_BLOCKS, REGION_BLOCKS};
use cow_logic::block_map::{BlockMap, Entry};
use cow_logic::change_map::ChangeMap;
use cow_logic::regions::{Groups, Regions, GROUP_MASK};
use cow_logic::space::{Segment, Space};
use proptest::prelude::*;

/// Words of a bitmap block; fewer where every step is slow.
const WORDS: usize = if cfg!(miri) { 6 } else { 480 };

proptest! {
    #![proptest_config(crate::config(42))]

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
fn copies_are_restored_once() {
    let map = BlockMap::new(10_000).unwrap();
    map.restore(500, 9000, 1200).unwrap();
    assert_eq!(map.get(499), Entry::Unclaimed);
    assert_eq!(map.get(500), Entry::Disk(9000));
    assert_eq!(map.get(1699), Entry::Disk(10_199));
    assert!(map.preserved(500, 1200) && !map.preserved(500, 1201));
    assert!(map.restore(1699, 1, 1).is_err(), "a block has one copy");
}
