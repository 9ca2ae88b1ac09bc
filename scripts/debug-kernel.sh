#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# debug-kernel.sh TARGET: builds the kernel of `make test-debug`, once: the target's packaged kernel's own sources
# with everything that watches switched on (tests/debug/config). About half an hour on two cores. The result is
# kept in the cache, with the tree that modules are built against: 3 GB.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: debug-kernel.sh TARGET}"
"$TOP/scripts/kernel.sh" "$T_NAME"

kernel=$(cat "$STATE/kernel")
store=$STATE/debug-kernel
config=$TOP/tests/debug/config

build() {
    local version want
    version=$(in_chroot dpkg-query -W -f '${Version}' "linux-headers-$kernel")
    want="$version $(grep -E '^CONFIG_| is not set' "$config" | sort | sha256sum)" \
        want="$want $(cat "$TOP/scripts/debug-kernel-in-chroot.sh" "$TOP/tests/vm/harness/initramfs-init" | sha256sum)"
    [ "$(cat "$store/stamp" 2>/dev/null)" != "$want" ] || return 0
    mkdir -p "$store"
    rm -f "$store/stamp"
    say "building the debug kernel from the sources of $kernel (about half an hour), log: $store.log"
    in_chroot bash /dattobd/scripts/debug-kernel-in-chroot.sh "/cache/$T_NAME/debug-kernel" "$kernel" "$version" \
        "$T_LLVM" >"$store.log" 2>&1 ||
        { tail -25 "$store.log" >&2; die "building the debug kernel failed: $store.log"; }
    echo "$want" >"$store/stamp"
    say "debug kernel $(cat "$store/kernel") is ready"
}
locked "$CACHE/$T_NAME-debug.lock" build
