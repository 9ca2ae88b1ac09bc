#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# build-module.sh TARGET [faults]: builds the module in the target's chroot, for its packaged kernel; DBD_DEBUG=1: for
# the debug kernel, in target/module/TARGET-debug.
# The result is target/module/TARGET/dattobd.ko; with `faults`, the build for counter-tests is
# target/module/TARGET/faults/dattobd.ko.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: build-module.sh TARGET [faults]}"
variant=${2:-}
for_kernel
out=$MODULES${variant:+/$variant}

# Built in a copy: the kernel's build system leaves its objects beside the sources. A changed file is as new
# as its copy (not -t): with its own, older time make would keep an object that was made of the one before.
build() {
    in_chroot bash -euc '
        out=/dattobd/$1
        mkdir -p "$out/src"
        cd /dattobd
        rsync -rlp --checksum --delete --exclude "*.o" --exclude "*.ko" --exclude ".*.cmd" --exclude "*.mod*" \
            --exclude Module.symvers --exclude modules.order --exclude "*.rmeta" \
            Kbuild Cargo.toml kernel ioctl-abi "$out/src/"
        make -s -C "$2" M="$out/src" "$3" TEST_FAULTS="$4" modules
        cp "$out/src/dattobd.ko" "$out/dattobd.ko"
    ' build "$out" "$BUILD" "$COMPILER" "$([ "$variant" = faults ] && echo 1 || echo 0)"
}
mkdir -p "$TOP/target"
locked "$TOP/target/module-$(basename "$MODULES")$variant.lock" build
say "$out/dattobd.ko for $KERNEL"
