#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# build-test-modules.sh TARGET: builds the kernel modules that only the tests use (tests/kmod), in the target's
# chroot, for its packaged kernel or, with DBD_DEBUG=1, for the debug kernel.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: build-test-modules.sh TARGET}"
for_kernel
out=$MODULES/test

# Built in a copy: the kernel's build system leaves its objects beside the sources.
build() {
    in_chroot bash -euc '
        out=/dattobd/$1
        mkdir -p "$out"
        cp -u /dattobd/tests/kmod/* "$out/"
        make -s -C "$2" M="$out" "$3" modules
    ' build "$out" "$BUILD" "$COMPILER"
}
mkdir -p "$TOP/target"
locked "$TOP/target/module-$(basename "$MODULES")-test.lock" build
