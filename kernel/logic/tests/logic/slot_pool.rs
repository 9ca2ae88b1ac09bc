// SPDX-License-Identifier: GPL-2.0-only
//! Slots for bitmap blocks: never given out twice, never lost.

use cow_logic::slot_pool::SlotPool;
use proptest::prelude::*;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
enum Step {
    Take,
    Occupy(u32),
    Give(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Take),
        1 => (0u32..300).prop_map(Step::Occupy),
        2 => (0u32..300).prop_map(Step::Give),
    ];
    proptest::collection::vec(step, 0..if cfg!(miri) { 60 } else { 600 })
}

proptest! {
    #![proptest_config(crate::config(42))]

    #[test]
    fn slots_follow_a_set(count in 0u32..260, steps in steps()) {
        let mut pool = SlotPool::new(u64::from(count)).unwrap();
        let mut taken = BTreeSet::new();
        for step in steps {
            match step {
                Step::Take => match pool.take() {
                    Some(slot) => {
                        prop_assert!(slot < count);
                        prop_assert!(taken.insert(slot), "{} was taken", slot);
                    }
                    None => prop_assert_eq!(taken.len(), count as usize),
                },
                Step::Occupy(slot) => {
                    let free = slot < count && !taken.contains(&slot);
                    prop_assert_eq!(pool.occupy(slot), free);
                    if free {
                        taken.insert(slot);
                    }
                }
                Step::Give(slot) => {
                    pool.give(slot);
                    taken.remove(&slot);
                }
            }
        }
        // What is left is all there is.
        let mut rest = 0;
        while let Some(slot) = pool.take() {
            prop_assert!(taken.insert(slot));
            rest += 1;
        }
        prop_assert_eq!(taken.len(), count as usize);
        prop_assert!(rest <= count);
    }

    /// A checkpoint's life: each group has one slot that counts, a new one is taken before it is given.
    #[test]
    fn one_more_slot_than_groups_is_enough(
        groups in 1usize..100, spare in 1u64..5, order in proptest::collection::vec(any::<usize>(), 0..300),
    ) {
        let mut pool = SlotPool::new(groups as u64 + spare).unwrap();
        let mut slot_of = vec![None; groups];
        for group in order {
            let new = pool.take();
            prop_assert!(new.is_some());
            prop_assert!(!slot_of.contains(&new));
            if let Some(old) = std::mem::replace(&mut slot_of[group % groups], new) {
                pool.give(old);
            }
        }
    }
}

#[test]
fn numbers_that_do_not_exist() {
    let mut pool = SlotPool::new(65).unwrap();
    for slot in [65, 66, 127, 128, u32::MAX - 1, u32::MAX] {
        assert!(!pool.occupy(slot));
        pool.give(slot);
    }
    assert!(pool.occupy(64) && !pool.occupy(64));
    assert_eq!(SlotPool::new(0).unwrap().take(), None);
    assert!(SlotPool::new(u64::from(u32::MAX) + 1).is_err());
}
