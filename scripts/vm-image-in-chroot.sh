#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# vm-image-in-chroot.sh STATE: the part of vm-image.sh that runs inside the chroot. Needs PACKAGES,
# SUITE, MIRROR and KERNEL. Writes STATE/root.img, STATE/initrd.img and STATE/vmlinuz.
set -euxo pipefail
state=$1
root=$state/vm-root
rm -rf "$root"
mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='APT::Install-Recommends "false"' --include="$PACKAGES" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$SUITE" "$root" "deb $MIRROR $SUITE main"
mkdir -p "$root/t" "$root/mnt" "$root/lib/modules"
cp -a "/lib/modules/$KERNEL" "$root/usr/lib/modules/"
rm -rf "$root/usr/lib/modules/$KERNEL/kernel/"{sound,drivers/gpu,drivers/net/ethernet,drivers/media}
depmod -b "$root" "$KERNEL"
cp "/boot/vmlinuz-$KERNEL" "$state/vmlinuz"
rm -f "$state/root.img"
mke2fs -q -t ext4 -O ^has_journal -d "$root" -L dbdroot "$state/root.img" 2048M
resize2fs -M "$state/root.img"
rm -rf "$root"

# The initramfs only finds the root image and puts a memory overlay on it.
init=$state/initrd
rm -rf "$init"
mkdir -p "$init"/{bin,proc,sys,dev,ro,rw,new,modules}
cp /bin/busybox "$init/bin/"
cp /dattobd/tests/vm/harness/initramfs-init "$init/init"
chmod +x "$init/init"
n=10
for m in virtio_blk overlay; do
    # In the order in which they must be loaded; decompressed, as busybox knows no xz modules.
    modprobe -S "$KERNEL" --show-depends "$m" | awk '$1 == "insmod" {print $2}' | while read -r ko; do
        xz -dc "$ko" >"$init/modules/$n-$(basename "${ko%.xz}")"
        n=$((n + 1))
        echo "$n" >/tmp/n
    done
    n=$(cat /tmp/n 2>/dev/null || echo "$n")
done
(cd "$init" && find . | cpio -o -H newc --quiet | gzip -1) >"$state/initrd.img"
rm -rf "$init"
