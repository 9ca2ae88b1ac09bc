// SPDX-License-Identifier: GPL-2.0-only
use cow_logic::abi::ioctl::{STATE_ACTIVE, STATE_SNAPSHOT, STATE_UNVERIFIED};
use cow_logic::errno::*;
use cow_logic::state::*;

const CALLS: [Call; 8] = [
    Call::Destroy,
    Call::TransitionInc,
    Call::TransitionSnap,
    Call::Reconfigure,
    Call::Expand,
    Call::AutoExpand,
    Call::DropSnapshot,
    Call::Info,
];

fn states() -> impl Iterator<Item = State> {
    (0..32u32).map(|i| State {
        mode: if i & 1 == 0 {
            Mode::Snapshot
        } else {
            Mode::Incremental
        },
        mounted: i & 2 != 0,
        unverified: i & 4 != 0,
        failed: (i & 8 != 0).then_some(EFBIG),
        chain_intact: i & 16 != 0,
    })
}

#[test]
fn bits_are_those_of_the_contract() {
    for s in states() {
        let want = match (s.mode, s.mounted, s.unverified) {
            (Mode::Incremental, false, false) => 0,
            (Mode::Snapshot, false, false) => 1,
            (Mode::Incremental, true, false) => 2,
            (Mode::Snapshot, true, false) => 3,
            (Mode::Incremental, _, true) => 4,
            (Mode::Snapshot, _, true) => 5,
        };
        assert_eq!(s.bits(), want);
        // A failed device keeps its bits.
        assert_eq!(State { failed: None, ..s }.bits(), want);
        assert_eq!(s.error(), if s.failed.is_some() { -27 } else { 0 });
        assert_eq!(s.has_node(), matches!(want, 1 | 3));
    }
    assert_eq!((STATE_SNAPSHOT, STATE_ACTIVE, STATE_UNVERIFIED), (1, 2, 4));
}

#[test]
fn errors_come_in_the_order_of_the_contract() {
    for s in states() {
        for call in CALLS {
            for open in [false, true] {
                // Range of the minor first, whatever else is wrong.
                assert_eq!(precheck(call, 24, 24, Some(&s), open), Err(EINVAL));
                assert_eq!(precheck(call, u32::MAX, 24, None, open), Err(EINVAL));
                assert_eq!(precheck(call, 23, 24, None, open), Err(ENOENT));
                let got = precheck(call, 23, 24, Some(&s), open);
                let busy = matches!(
                    call,
                    Call::Destroy
                        | Call::TransitionInc
                        | Call::TransitionSnap
                        | Call::Reconfigure
                        | Call::DropSnapshot
                );
                if open && busy {
                    assert_eq!(got, Err(EBUSY));
                    continue;
                }
                let healthy = s.failed.is_none();
                let legal = match call {
                    Call::Destroy | Call::Info => true,
                    Call::TransitionInc | Call::Expand | Call::AutoExpand => {
                        healthy && s.bits() == 3
                    }
                    Call::TransitionSnap => healthy && s.bits() == 2,
                    Call::Reconfigure => healthy,
                    Call::DropSnapshot => s.chain_intact && s.bits() == 3,
                };
                assert_eq!(
                    got,
                    if legal { Ok(()) } else { Err(EINVAL) },
                    "{call:?} {s:?}"
                );
            }
        }
    }
}

#[test]
fn named_checks_are_the_general_one() {
    for s in states() {
        assert_eq!(s.may_transition_inc(), s.may(Call::TransitionInc));
        assert_eq!(s.may_transition_snap(), s.may(Call::TransitionSnap));
        assert_eq!(s.may_reconfigure(), s.may(Call::Reconfigure));
        assert_eq!(s.may_expand(), s.may(Call::Expand));
        assert_eq!(s.may_expand(), s.may(Call::AutoExpand));
        assert_eq!(s.may_drop_snapshot(), s.may(Call::DropSnapshot));
    }
}

#[test]
fn reads_of_the_node() {
    let mut s = State::new_snapshot();
    assert_eq!(s.read_error(), None);
    s.mounted = false;
    assert_eq!(s.read_error(), Some(EBUSY));
    s.fail_snapshot(EFBIG);
    assert_eq!(s.read_error(), Some(EIO));
    s.mounted = true;
    assert_eq!(s.read_error(), Some(EIO));
}

/// A full COW file costs the snapshot, not the chain: defect 4 of the C driver.
#[test]
fn a_failed_snapshot_can_be_dropped_and_the_chain_goes_on() {
    let mut s = State::new_snapshot();
    s.fail_snapshot(EFBIG);
    s.fail_snapshot(EIO);
    assert_eq!((s.error(), s.bits()), (-27, 3), "the first error stays");
    assert_eq!(s.may_transition_inc(), Err(EINVAL));
    assert_eq!(s.may_expand(), Err(EINVAL));
    assert_eq!(s.may_drop_snapshot(), Ok(()));
    s.became_incremental();
    assert_eq!((s.error(), s.bits()), (0, 2));
    assert_eq!(s.may_transition_snap(), Ok(()));
    s.became_snapshot();
    assert_eq!(s, State::new_snapshot());
}

#[test]
fn a_broken_chain_only_ends() {
    for snapshot in [true, false] {
        let mut s = State::new_snapshot();
        if !snapshot {
            s.became_incremental();
        }
        s.break_chain(ESTALE);
        s.break_chain(EIO);
        assert_eq!(s.error(), -116);
        for call in CALLS {
            let ok = matches!(call, Call::Destroy | Call::Info);
            assert_eq!(s.may(call).is_ok(), ok, "{call:?}");
        }
    }
    // No snapshot, nothing to fail.
    let mut s = State::new_snapshot();
    s.became_incremental();
    s.fail_snapshot(EIO);
    assert_eq!(s.error(), 0);
}

#[test]
fn number_of_devices() {
    assert_eq!(
        [0, 1, 24, 255, 256, u32::MAX].map(max_devices),
        [24, 1, 24, 255, 255, 255]
    );
}
