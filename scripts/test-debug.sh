#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# test-debug.sh TARGET [OPTIONS]: builds the debug kernel, if it is not there yet, and the modules for it, and runs
# tests/debug/run.py in the build chroot. The tools are those that every VM gets (build-tools.sh).
. "$(dirname "$0")/lib.sh"
target "${1:?usage: test-debug.sh TARGET [OPTIONS]}"
shift
"$TOP/scripts/debug-kernel.sh" "$T_NAME"
export DBD_DEBUG=1 DBD_TARGET=$T_NAME
"$TOP/scripts/build-module.sh" "$T_NAME"
"$TOP/scripts/build-module.sh" "$T_NAME" faults
"$TOP/scripts/build-test-modules.sh" "$T_NAME"
"$TOP/scripts/stage-modules.sh" "$T_NAME"
"$TOP/scripts/vm-image.sh" "$T_NAME"
in_chroot env DBD_BOOT="/cache/$T_NAME/debug-kernel" python3 /dattobd/tests/debug/run.py "$@"
