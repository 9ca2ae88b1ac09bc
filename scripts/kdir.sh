#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kdir.sh KDIR: makes sure that modules in Rust can be built against a kernel build directory of this
# machine. Debian's headers get their missing Rust metadata, which needs root and takes minutes, once.
. "$(dirname "$0")/lib.sh"
given=${1:?usage: kdir.sh KDIR}
kdir=$(readlink -f "$given" || true)
[ -n "$kdir" ] && [ -e "$kdir/Makefile" ] ||
    die "$given is no kernel build directory: install the kernel's headers (linux-headers-$(uname -r))"
[ ! -e "$kdir/rust/libkernel.rmeta" ] || exit 0
case $kdir in
/usr/src/linux-headers-*) release=${kdir#/usr/src/linux-headers-} ;;
*) die "$kdir holds no Rust metadata (rust/libkernel.rmeta): configure it with CONFIG_RUST=y and run make there" ;;
esac
version=$(dpkg-query -W -f '${Version}' "linux-headers-$release" 2>/dev/null) ||
    die "$kdir does not come from a Debian package, and holds no Rust metadata"
[ "$(id -u)" = 0 ] || die "$kdir lacks the Rust metadata: run this once as root, to put it there"
locked "$CACHE/host.lock" "$TOP/scripts/kernel-meta.sh" "$release" "$version" "$CACHE/host"
