#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# image.sh TARGET: makes the root filesystem of an ordinary small Debian, once for each kernel: systemd,
# initramfs-tools, apt and the distribution's own kernel package. Nothing of ours is in it but a unit that runs
# what lies on a control disk. The result is debian.img in the target's cache, an ext4 filesystem.
. "$(dirname "$0")/../../scripts/lib.sh"
target "${1:?usage: image.sh TARGET}"
"$TOP/scripts/kernel.sh" "$T_NAME"

packages=(systemd-sysv udev kmod initramfs-tools zstd dbus e2fsprogs xfsprogs util-linux mount jq psmisc procps)
kernel=$(cat "$STATE/kernel")
want="$kernel ${packages[*]} $(cat "$TOP/tests/debian/image-in-chroot.sh" | sha256sum)"

build() {
    [ "$(cat "$STATE/debian.stamp" 2>/dev/null)" != "$want" ] || return 0
    say "making a Debian image with $kernel"
    local m version
    m=$(mirror)
    version=$(in_chroot dpkg-query -W -f '${Version}' "linux-image-$kernel")
    in_chroot env PACKAGES="$(IFS=,; echo "${packages[*]}")" SUITE="$T_SUITE" EXTRA="$T_EXTRA" MIRROR="$m" \
        KERNEL="$kernel" VERSION="$version" bash /dattobd/tests/debian/image-in-chroot.sh "/cache/$T_NAME" \
        >"$STATE/debian.log" 2>&1 ||
        { tail -20 "$STATE/debian.log" >&2; die "making the Debian image failed: $STATE/debian.log"; }
    echo "$want" >"$STATE/debian.stamp"
}
locked "$CACHE/$T_NAME.lock" build
