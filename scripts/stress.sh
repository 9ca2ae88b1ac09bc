#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# stress.sh [OPTIONS]: tests/stress/run.py in the build chroot of $DBD_TARGET (trixie unless set).
. "$(dirname "$0")/lib.sh"
export DBD_TARGET=${DBD_TARGET:-trixie}
target "$DBD_TARGET"
in_chroot python3 /dattobd/tests/stress/run.py "$@"
