#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# vm-image.sh TARGET: makes what a VM boots from, once for each kernel: the root file system (a small
# Debian with udev and the tools that the tests use, as a read-only ext4 image) and an initramfs.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: vm-image.sh TARGET}"
"$TOP/scripts/kernel.sh" "$T_NAME"

packages=(
    udev kmod util-linux e2fsprogs xfsprogs btrfs-progs lvm2 dmsetup thin-provisioning-tools
    jq python3-minimal fio stress-ng procps psmisc fdisk parted sg3-utils hdparm strace xxd
    iproute2 mount bsdextrautils diffutils file less time
)
kernel=$(cat "$STATE/kernel")
want="$kernel ${packages[*]} $(cat "$TOP/scripts/vm-image-in-chroot.sh" "$TOP/tests/vm/harness/initramfs-init" | sha256sum)"

build() {
    [ "$(cat "$STATE/image.stamp" 2>/dev/null)" != "$want" ] || return 0
    say "making the VM's root image for $kernel"
    local m
    m=$(mirror)
    in_chroot env PACKAGES="$(IFS=,; echo "${packages[*]}")" SUITE="$T_SUITE" MIRROR="$m" \
        KERNEL="$kernel" bash /dattobd/scripts/vm-image-in-chroot.sh "/cache/$T_NAME" \
        >"$STATE/image.log" 2>&1 ||
        { tail -20 "$STATE/image.log" >&2; die "making the VM image failed: $STATE/image.log"; }
    echo "$want" >"$STATE/image.stamp"
}
locked "$CACHE/$T_NAME.lock" build
