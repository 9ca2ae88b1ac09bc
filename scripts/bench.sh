#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# bench.sh [OPTIONS]: tests/bench/run.py in the build chroot of $DBD_TARGET (trixie unless set).
# bench.sh profile LOAD SUBJECT: where the instructions go (tests/bench/profile.py).
. "$(dirname "$0")/lib.sh"
export DBD_TARGET=${DBD_TARGET:-trixie}
target "$DBD_TARGET"
if [ "${1:-}" = profile ]; then
    shift
    in_chroot python3 /dattobd/tests/bench/profile.py "$@"
    exit
fi
in_chroot python3 /dattobd/tests/bench/test_results.py --quiet
in_chroot python3 /dattobd/tests/bench/run.py \
    --source "$(git -C "$TOP" describe --always --dirty 2>/dev/null || echo unknown)" "$@"
