#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# run.sh [TARGET]: the packages of `make deb` in an ordinary Debian VM with its own systemd, over clean reboots,
# crashes and a wrong list. See run.py for the stages.
. "$(dirname "$0")/../../scripts/lib.sh"
target "${1:-trixie}"
"$TOP/tests/debian/image.sh" "$T_NAME"
[ -e "$TOP/target/deb/dattobd-modules-$(cat "$STATE/kernel")_"*.deb ] || die "run make deb first"
in_chroot env DBD_TARGET="$T_NAME" KILLS="${KILLS:-}" BOOTS="${BOOTS:-}" SEED="${SEED:-1}" python3 /dattobd/tests/debian/run.py
