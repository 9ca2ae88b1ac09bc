// SPDX-License-Identifier: GPL-2.0-only
use crate::config;
use cow_logic::mem::without_memory;
use cow_logic::preserved::Preserved;
use proptest::prelude::*;
use std::collections::HashSet;

const LEAF: u64 = 512 * 64;
const BLOCKS: u64 = 2 * LEAF + 70;

/// Blocks around the borders of words and leaves.
fn block() -> impl Strategy<Value = u64> {
    prop_oneof![0..70u64, LEAF - 70..LEAF + 70, 2 * LEAF - 5..BLOCKS + 3,]
}

proptest! {
    #![proptest_config(config(2))]

    #[test]
    fn agrees_with_a_set(
        steps in prop::collection::vec((block(), 0..140u64, any::<bool>()), 0..20),
        probes in prop::collection::vec((block(), prop_oneof![1..200u64, Just(LEAF + 9)]), 1..20),
    ) {
        let map = Preserved::new(BLOCKS).unwrap();
        let mut leaves = HashSet::new();
        let mut set = HashSet::new();
        for (start, len, reserve) in steps {
            if reserve {
                map.reserve(start, len).unwrap();
                leaves.extend((start..start + len).filter(|b| *b < BLOCKS).map(|b| b / LEAF));
            }
            map.set(start, len);
            set.extend(
                (start..start + len).filter(|b| *b < BLOCKS && leaves.contains(&(b / LEAF))));
        }
        for (b, len) in probes {
            let first = set.contains(&b);
            let alike = (b..(b + len).min(BLOCKS)).take_while(|b| set.contains(b) == first).count() as u64;
            prop_assert_eq!(map.run(b, len), (first, alike.max(1)), "{} {}", b, len);
            let all = b + len <= BLOCKS && (b..b + len).all(|b| set.contains(&b));
            prop_assert_eq!(map.all(b, len), all);
        }
        prop_assert_eq!(map.memory_bytes(), 3 * 8 + leaves.len() as u64 * 4096);
    }
}

#[test]
fn extremes() {
    let map = Preserved::new(10).unwrap();
    assert!(!map.all(u64::MAX, u64::MAX));
    assert!(!map.all(9, 2), "behind the end");
    assert!(map.all(3, 0), "nothing to preserve");
    assert_eq!(map.run(10, 5), (false, 1));
    assert_eq!(map.run(u64::MAX, 5), (false, 1));
    assert_eq!(map.run(4, u64::MAX), (false, 6));
    map.set(0, u64::MAX);
    assert!(!map.all(0, 1), "not reserved");
    assert!(without_memory(|| map.reserve(0, 1)).is_err());
    map.reserve(u64::MAX, u64::MAX).unwrap();
    map.reserve(0, u64::MAX).unwrap();
    map.set(0, u64::MAX);
    map.set(u64::MAX, u64::MAX);
    assert!(map.all(0, 10));
    assert_eq!(map.run(0, u64::MAX), (true, 10));
    // Leaves that are there need no memory.
    without_memory(|| map.reserve(3, 20)).unwrap();
    let none = Preserved::new(0).unwrap();
    none.reserve(0, 1).unwrap();
    assert!(!none.all(0, 1) && none.all(0, 0));
}

#[test]
fn on_a_tebibyte_it_costs_a_bit_a_block() {
    let map = Preserved::new(1 << 28).unwrap();
    assert_eq!(map.memory_bytes(), 8192 * 8);
    // Long questions about untouched parts skip whole leaves.
    assert_eq!(map.run(0, u64::MAX), (false, 1 << 28));
    if !cfg!(miri) {
        map.reserve(0, u64::MAX).unwrap();
        assert_eq!(map.memory_bytes(), 8192 * 8 + (32 << 20));
    }
}
