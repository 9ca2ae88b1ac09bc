#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# build-test-modules.sh TARGET: builds the kernel modules that only the tests use (tests/kmod), in the target's
# chroot, for its packaged kernel.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: build-test-modules.sh TARGET}"
kernel=$(cat "$STATE/kernel")
out=target/module/$T_NAME/test

# Built in a copy: the kernel's build system leaves its objects beside the sources.
build() {
    in_chroot bash -euc '
        out=/dattobd/$1
        mkdir -p "$out"
        cp -u /dattobd/tests/kmod/* "$out/"
        make -s -C "/lib/modules/$2/build" M="$out" CC="x86_64-linux-gnu-gcc-$3" modules
    ' build "$out" "$kernel" "$T_GCC"
}
mkdir -p "$TOP/target"
locked "$TOP/target/module-$T_NAME-test.lock" build
