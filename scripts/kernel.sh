#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kernel.sh TARGET: puts the newest packaged 7.x kernel of the target, its headers and its rebuilt Rust
# metadata into the chroot. Debian's header packages hold no Rust metadata, so it is made from the
# linux-source package of exactly the same version. The result is cached by package version.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: kernel.sh TARGET}"
"$TOP/scripts/chroot.sh" "$T_NAME"

build() {
    [ ! -s "$STATE/kernel" ] || [ ! -e "$STATE/verified.stamp" ] || return 0
    say "looking for the newest 7.x kernel in $T_NAME"
    from=$T_SUITE
    [ "$T_EXTRA" = - ] || from=$T_EXTRA
    in_chroot env T_FROM="$from" T_FLAVOUR="$T_FLAVOUR" \
        bash /dattobd/scripts/kernel-in-chroot.sh "/cache/$T_NAME" >"$STATE/kernel.log" 2>&1 ||
        { tail -25 "$STATE/kernel.log" >&2; die "preparing the kernel failed: $STATE/kernel.log"; }
    touch "$STATE/verified.stamp"
    say "kernel $(cat "$STATE/kernel") is ready"
}
locked "$CACHE/$T_NAME.lock" build
