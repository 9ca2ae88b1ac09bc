#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# demo.sh: runs tests/demo/demo.sh in a VM whose production disk holds a copy of the chroot's /usr.
. "$(dirname "$0")/lib.sh"
target trixie
image=$STATE/demo.img
fill() {
    [ ! -s "$image" ] || return 0
    say "copying a Debian file tree onto the demo's disk (ext4, 2.5 GiB)"
    in_chroot bash -euc '
        mkdir -p /tmp/tree/usr
        # At least 500 MiB of real files: binaries, scripts, headers, documents.
        cp -a /usr/bin /usr/sbin /usr/include /usr/share /tmp/tree/usr/
        mkdir /tmp/tree/usr/lib
        cp -a /usr/lib/gcc /usr/lib/python3* /usr/lib/x86_64-linux-gnu /tmp/tree/usr/lib/
        mke2fs -q -t ext4 -L production -d /tmp/tree /cache/'"$T_NAME"'/demo.img.new 2560M
        rm -rf /tmp/tree
        mv /cache/'"$T_NAME"'/demo.img.new /cache/'"$T_NAME"'/demo.img
    '
}
locked "$CACHE/demo.lock" fill
exec "$TOP/scripts/vm.sh" run --mem 1G --timeout 1500 --keep /dattobd/target/demo-logs \
    --disk "2560M:image=/cache/$T_NAME/demo.img" --disk 4G --disk 4G \
    /t/demo/demo.sh
