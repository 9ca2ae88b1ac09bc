// SPDX-License-Identifier: GPL-2.0-only
use crate::{config, Random};
use cow_logic::decide::*;
use cow_logic::errno::{EOPNOTSUPP, ESTALE};
use proptest::prelude::*;

const OPS: [Op; 8] = [
    Op::Read,
    Op::Write,
    Op::Discard,
    Op::SecureErase,
    Op::WriteZeroes,
    Op::ZoneOp,
    Op::Flush,
    Op::Other,
];
const PROTECTIONS: [Protection; 3] = [Protection::None, Protection::Active, Protection::Failed];

fn all() -> impl Iterator<Item = Facts> {
    OPS.into_iter().flat_map(|op| {
        PROTECTIONS.into_iter().flat_map(move |protection| {
            [(false, false), (false, true), (true, false), (true, true)].map(
                |(preserved, hits_guard)| Facts {
                    op,
                    protection,
                    preserved,
                    hits_guard,
                },
            )
        })
    })
}

/// What must never happen, whatever the table of rules says.
#[test]
fn no_fact_breaks_a_promise() {
    for f in all() {
        let d = decide(&f);
        let changes = !matches!(f.op, Op::Read | Op::Flush);
        let goes_on = d != Decision::DropDiscard;
        // Every change that reaches the disk is marked, and nothing else.
        assert_eq!(d.marks(), changes && goes_on, "{f:?} {d:?}");
        // Only a hint may be swallowed.
        assert!(goes_on || f.op == Op::Discard, "{f:?}");
        // What a snapshot shows is never overwritten while the snapshot lives.
        let fails = matches!(d, Decision::FailThenPass(_) | Decision::FailThenHold(_));
        if changes && goes_on && f.protection == Protection::Active && !f.preserved {
            assert!(fails || d == Decision::Hold, "{f:?} {d:?}");
        }
        // Nobody's write meets ours on the disk.
        if changes && goes_on && f.hits_guard {
            assert!(d.holds(), "{f:?} {d:?}");
        }
        // Without a snapshot nothing waits, except for a hit on the COW file.
        if f.protection != Protection::Active && !f.hits_guard {
            assert!(!d.holds() && goes_on, "{f:?} {d:?}");
        }
        // Reads are never touched.
        if !changes {
            assert_eq!(d, Decision::Pass);
        }
    }
}

#[test]
fn the_rules() {
    use Decision::*;
    use Protection::{Active, Failed, None};
    let ask = |op, protection, preserved, hits_guard| {
        decide(&Facts {
            op,
            protection,
            preserved,
            hits_guard,
        })
    };
    for op in [Op::Write, Op::WriteZeroes] {
        assert_eq!(ask(op, None, false, false), MarkAndPass);
        assert_eq!(ask(op, Failed, false, false), MarkAndPass);
        assert_eq!(ask(op, Active, true, false), MarkAndPass);
        assert_eq!(ask(op, Active, false, false), Hold);
        assert_eq!(ask(op, Active, true, true), FailThenHold(ESTALE));
        assert_eq!(ask(op, None, false, true), BreakChainThenHold(ESTALE));
        assert_eq!(ask(op, Failed, false, true), FailThenHold(ESTALE));
    }
    assert_eq!(ask(Op::Discard, None, false, false), MarkAndPass);
    assert_eq!(ask(Op::Discard, Failed, false, false), MarkAndPass);
    assert_eq!(ask(Op::Discard, Active, true, false), MarkAndPass);
    assert_eq!(ask(Op::Discard, Active, false, false), DropDiscard);
    assert_eq!(ask(Op::Discard, Active, true, true), DropDiscard);
    assert_eq!(ask(Op::Discard, None, false, true), DropDiscard);
    for op in [Op::SecureErase, Op::ZoneOp, Op::Other] {
        assert_eq!(ask(op, None, false, false), MarkAndPass);
        assert_eq!(ask(op, Failed, false, false), MarkAndPass);
        // Preserved or not: no copy may stay.
        assert_eq!(ask(op, Active, true, false), FailThenPass(EOPNOTSUPP));
        assert_eq!(ask(op, Active, false, false), FailThenPass(EOPNOTSUPP));
    }
    assert_eq!(
        ask(Op::SecureErase, Active, true, true),
        FailThenHold(ESTALE)
    );
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn block_range_agrees_with_a_list(bio in 0..120u64, n in 0..60u64, start in 0..60u64, sectors in 0..70u64) {
        let touched: Vec<u64> = (bio..bio + n)
            .filter(|s| (start..start + sectors).contains(s))
            .map(|s| (s - start) / 8)
            .collect();
        let want = touched.first().map(|f| (*f, touched.last().unwrap() - f + 1));
        prop_assert_eq!(block_range(bio, n, start, sectors), want);
    }
}

#[test]
fn block_range_never_overflows() {
    let mut random = Random(6);
    let edges = [0, 1, 7, 8, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for _ in 0..2000 {
        let mut pick = || match random.below(2) {
            0 => edges[random.below(7) as usize],
            _ => random.next() >> random.below(64),
        };
        let (a, b, c, d) = (pick(), pick(), pick(), pick());
        if let Some((start, len)) = block_range(a, b, c, d) {
            assert!(len > 0 && start + len <= d.div_ceil(8));
        }
    }
    assert_eq!(block_range(0, u64::MAX, 100, 81), Some((0, 11)));
    assert_eq!(block_range(u64::MAX, u64::MAX, 0, u64::MAX), None);
}
