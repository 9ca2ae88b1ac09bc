#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kernel-in-chroot.sh STATE: the part of kernel.sh that runs inside the chroot. Needs T_FLAVOUR and T_FROM.
# Writes the kernel release to STATE/kernel.
set -euxo pipefail
state=$1
export DEBIAN_FRONTEND=noninteractive
apt-get update

# Newest first. A kernel counts only if its own linux-source is there in exactly that version: with
# MODVERSIONS off, a module built against another one would load and corrupt memory.
apt-cache search --names-only "^linux-headers-7\..*-$T_FLAVOUR\$" | awk '{print $1}' |
    grep -vE -- '-(rt|unsigned)-' | sort -V -r >/tmp/headers
chosen=
while read -r headers; do
    release=${headers#linux-headers-}
    for version in $(apt-cache madison "$headers" | awk '{print $3}'); do
        series=$(echo "$release" | cut -d. -f1,2)
        apt-cache madison "linux-source-$series" | awk '{print $3}' | grep -qxF "$version" || continue
        apt-cache show "linux-image-$release=$version" >/dev/null 2>&1 || continue
        # Not the list of names as standard input: a package's script might read it.
        apt-get install -y -t "$T_FROM" "$headers=$version" "linux-image-$release=$version" </dev/null || continue
        if grep -q '^CONFIG_RUST=y' "/usr/src/$headers/.config"; then
            chosen=$release
            break 2
        fi
        echo "$release has no CONFIG_RUST=y: not usable"
    done
done </tmp/headers
[ -n "$chosen" ] || {
    echo "no packaged 7.x kernel with CONFIG_RUST=y and a matching linux-source was found"
    exit 1
}

"$(dirname "$0")/kernel-meta.sh" "$chosen" "$version" "$state"
apt-get clean
echo "$chosen" >"$state/kernel"
