#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# chroot.sh TARGET: makes the build chroot of a target, once. Everything (module, tools, QEMU) is
# built and run in there with the distribution's own toolchain, so that the host's does not matter.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: chroot.sh TARGET}"

packages=(
    # the kernel's build, and its Rust metadata
    make "gcc-$T_GCC" "g++-$T_GCC" rustc rust-src cargo rustfmt rust-clippy bindgen
    "clang-$T_LLVM" "libclang-$T_LLVM-dev" "lld-$T_LLVM" "llvm-$T_LLVM"
    pahole pkgconf openssl libssl-dev libelf-dev bc bison flex xz-utils kmod cpio rsync
    ca-certificates python3 libc6-dev
    # the VM
    qemu-system-x86 qemu-utils seabios busybox-static e2fsprogs mmdebstrap
)
stamp=$STATE/chroot.stamp
want="$T_SUITE ${packages[*]}"

build() {
    [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] || return 0
    [ "$(id -u)" = 0 ] || die "making a chroot needs root"
    if ! command -v mmdebstrap >/dev/null || ! [ -e /usr/share/keyrings/debian-archive-keyring.gpg ]; then
        say "installing mmdebstrap"
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
            mmdebstrap debian-archive-keyring
    fi
    local m sources
    m=$(mirror)
    sources=("deb $m $T_SUITE main")
    [ "$T_EXTRA" = - ] || sources+=("deb $m $T_EXTRA main")
    say "making the $T_NAME chroot (about two minutes)"
    rm -rf "$ROOT.new"
    mkdir -p "$STATE"
    # sid's index may be past its validity date when the mirror is a frozen one.
    mmdebstrap --quiet --variant=apt --skip=cleanup/apt/lists \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='APT::Install-Recommends "false"' \
        --include="$(IFS=,; echo "${packages[*]}")" \
        "$T_SUITE" "$ROOT.new" "${sources[@]}" >"$STATE/chroot.log" 2>&1 ||
        { tail -20 "$STATE/chroot.log" >&2; die "mmdebstrap failed: $STATE/chroot.log"; }
    [ ! -e /etc/resolv.conf ] || cp -L /etc/resolv.conf "$ROOT.new/etc/resolv.conf"
    rm -rf "$ROOT"
    mv "$ROOT.new" "$ROOT"
    rm -f "$STATE/kernel" "$STATE/verified.stamp"
    echo "$want" >"$stamp"
}
locked "$CACHE/$T_NAME.lock" build
