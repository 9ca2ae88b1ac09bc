// SPDX-License-Identifier: GPL-2.0-only
use crate::config;
use cow_logic::mem::without_memory;
use cow_logic::space::{Segment, Space};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    /// Gap before, length.
    Add(u64, u64),
    Take(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (prop_oneof![Just(0), 0..5u64], 0..12u64).prop_map(|(g, l)| Step::Add(g, l)),
        (0..9u64).prop_map(Step::Take),
    ]
}

const STEPS: usize = if cfg!(miri) { 12 } else { 60 };

proptest! {
    #![proptest_config(config(4))]

    #[test]
    fn agrees_with_a_list(steps in prop::collection::vec(step(), 0..STEPS)) {
        let space = Space::new().unwrap();
        let (mut usable, mut taken) = (Vec::new(), BTreeSet::new());
        let mut end = 3;
        for step in steps {
            match step {
                Step::Add(gap, len) => {
                    space.add(Segment { start: end + gap, len }).unwrap();
                    usable.extend(end + gap..end + gap + len);
                    if len != 0 {
                        end += gap + len;
                    }
                }
                Step::Take(max) => {
                    // All of one contiguous stretch, as far as wanted.
                    let from = taken.len();
                    let mut want: Vec<u64> = Vec::new();
                    for b in usable.iter().skip(from).take(max as usize) {
                        if want.last().is_some_and(|l| l + 1 != *b) {
                            break;
                        }
                        want.push(*b);
                    }
                    let got = space.take(max);
                    prop_assert_eq!(got, want.first().map(|f| (*f, want.len() as u64)));
                    taken.extend(want);
                }
            }
        }
        prop_assert_eq!(space.total_blocks(), usable.len() as u64);
        prop_assert_eq!(space.used_blocks(), taken.len() as u64);
        prop_assert_eq!(space.free_blocks(), (usable.len() - taken.len()) as u64);
        for b in (0..end + 3).chain([u64::MAX]) {
            prop_assert_eq!(space.is_taken(b), taken.contains(&b), "block {}", b);
        }
        for b in 0..end + 3 {
            for max in [1, 2, 5, 100] {
                let (is, n) = space.taken_run(b, max);
                prop_assert!(0 < n && n <= max);
                prop_assert_eq!(is, taken.contains(&b));
                prop_assert!((b..b + n).all(|x| taken.contains(&x) == is));
            }
        }
        let listed: Vec<u64> = space.taken_runs().flat_map(|s| s.start..s.end()).collect();
        prop_assert_eq!(listed, taken.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn what_lies_before_the_end_is_left_out() {
    let space = Space::new().unwrap();
    space.add(Segment { start: 10, len: 5 }).unwrap();
    space.add(Segment { start: 0, len: 12 }).unwrap();
    assert_eq!(space.total_blocks(), 5);
    space.add(Segment { start: 12, len: 5 }).unwrap();
    assert_eq!(space.total_blocks(), 7);
    assert_eq!(space.take(100), Some((10, 7)));
    assert_eq!(space.take(1), None);
}

#[test]
fn a_segment_that_continues_the_last_is_one_with_it() {
    let space = Space::new().unwrap();
    space.add(Segment { start: 10, len: 5 }).unwrap();
    assert_eq!(space.take(5), Some((10, 5)));
    assert_eq!(space.take(1), None);
    // No memory is needed for that either.
    without_memory(|| space.add(Segment { start: 15, len: 5 })).unwrap();
    assert!(!space.is_taken(15));
    assert_eq!(space.take(9), Some((15, 5)));
    assert_eq!(space.taken_runs().count(), 1);
}

#[test]
fn extremes() {
    let space = Space::new().unwrap();
    assert_eq!(space.take(u64::MAX), None);
    assert!(!space.is_taken(0));
    assert!(without_memory(|| space.add(Segment { start: 1, len: 1 })).is_err());
    assert_eq!(space.total_blocks(), 0);
    space
        .add(Segment {
            start: u64::MAX - 3,
            len: u64::MAX,
        })
        .unwrap();
    assert_eq!(space.take(u64::MAX), Some((u64::MAX - 3, 3)));
    assert_eq!(space.take(u64::MAX), None);
}

#[test]
fn the_list_of_segments_is_bounded() {
    if cfg!(miri) {
        return;
    }
    let space = Space::new().unwrap();
    let mut added = 0u64;
    while space
        .add(Segment {
            start: added * 2,
            len: 1,
        })
        .is_ok()
    {
        added += 1;
    }
    assert_eq!(added, 131_072);
    assert_eq!(space.total_blocks(), added);
    // Many small segments stay quick to search.
    assert_eq!(space.take(10), Some((0, 1)));
    assert!(!space.is_taken(added));
}

#[test]
fn takers_and_an_adder_at_once() {
    let segments: u64 = if cfg!(miri) { 20 } else { 3000 };
    let space = Arc::new(Space::new().unwrap());
    let takers: Vec<_> = (0..3u64)
        .map(|t| {
            let space = Arc::clone(&space);
            std::thread::spawn(move || {
                let mut mine = Vec::new();
                let mut idle = 0u32;
                while idle < 10_000 {
                    match space.take(t + 1) {
                        Some((start, len)) => {
                            assert!((start..start + len).all(|b| space.is_taken(b)));
                            mine.extend(start..start + len);
                            idle = 0;
                        }
                        None => {
                            idle += if cfg!(miri) { 1000 } else { 1 };
                            std::thread::yield_now();
                        }
                    }
                }
                mine
            })
        })
        .collect();
    let mut usable = Vec::new();
    let mut at = 0;
    for i in 0..segments {
        let segment = Segment {
            start: at + i % 3,
            len: 1 + i % 7,
        };
        usable.extend(segment.start..segment.end());
        at = segment.end();
        space.add(segment).unwrap();
    }
    let mut taken: Vec<u64> = takers.into_iter().flat_map(|t| t.join().unwrap()).collect();
    while let Some((start, len)) = space.take(5) {
        taken.extend(start..start + len);
    }
    taken.sort_unstable();
    assert_eq!(taken, usable, "each block once, none that is not usable");
}
