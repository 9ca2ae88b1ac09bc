#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# build-tools.sh TARGET: builds the tools and the test programs with the target's own toolchain, and
# collects in target/vm-bin what a VM gets as /t/bin.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: build-tools.sh TARGET}"
in_chroot bash -euc '
    cd /dattobd
    cargo build --release --locked --workspace --bins --target-dir "/dattobd/target/$1"
' build "$T_NAME" >&2
bin=$TOP/target/vm-bin
mkdir -p "$bin"
find "$TOP/target/$T_NAME/release" -maxdepth 1 -type f -perm -u+x ! -name '*.so' -exec cp -u {} "$bin/" \;
