#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Installs the packages of `make deb` in a throw-away copy of the build chroot and looks at what came out:
# both makers of an initramfs, upgrade, removal, and a build by DKMS.
# packages.sh [TARGET]
. "$(dirname "$0")/../../scripts/lib.sh"
target "${1:-trixie}"
shopt -s nullglob
debs=("$TOP"/target/deb/*.deb)
[ ${#debs[@]} -ge 3 ] || die "run make deb first"

say "shell scripts"
if command -v shellcheck >/dev/null; then
    shellcheck "$TOP"/dist/initramfs-tools/hooks/* "$TOP"/dist/initramfs-tools/scripts/*/* "$TOP"/dist/dracut/*/*.sh \
        "$TOP"/dist/sbin/* "$TOP"/dist/bundle/*.sh
    shellcheck -x -e SC1091,SC2016 "$TOP"/scripts/deb.sh "$TOP"/scripts/bundle*.sh "$TOP"/scripts/dkms-prepare.sh
else
    echo "** SKIPPED: shellcheck is not installed **" >&2
fi

# The chroot with a layer in memory over it: what is installed here is gone afterwards.
over=$(mktemp -d)
trap 'rmdir "$over"' EXIT
kernel=$(cat "$STATE/kernel")
export OVER=$over KERNEL=$kernel TARGET=$T_NAME
unshare --mount --propagation private bash -euc '
    mount -t tmpfs -o size=4G tmpfs "$OVER"
    mkdir "$OVER"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$OVER/upper,workdir=$OVER/work" "$OVER/root"
    ROOT=$OVER/root
    shift
    mkdir -p "$ROOT/dattobd" "$ROOT/cache"
    mount -t proc proc "$ROOT/proc"
    mount --rbind /dev "$ROOT/dev"
    mount --bind "$1" "$ROOT/dattobd"
    mount --bind "$2" "$ROOT/cache"
    chroot "$ROOT" /usr/bin/env -i HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        KERNEL="$KERNEL" TARGET="$TARGET" bash /dattobd/tests/host/packages-in-chroot.sh
' packages "$ROOT" "$TOP" "$CACHE"
say "packages: all is well"
