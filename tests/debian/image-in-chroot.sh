#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# image-in-chroot.sh STATE: the part of image.sh that runs inside the chroot. Needs PACKAGES, SUITE, EXTRA, MIRROR,
# KERNEL and VERSION. Writes STATE/debian.img.
set -euxo pipefail
state=$1
root=$state/debian-root
rm -rf "$root"
sources=("deb $MIRROR $SUITE main")
[ "$EXTRA" = - ] || sources+=("deb $MIRROR $EXTRA main")
# What the kernel's package needs comes from where it comes from.
pin='mkdir -p "$1/etc/apt/preferences.d"; printf "Package: linux-*\nPin: release n='"$EXTRA"'\nPin-Priority: 500\n" \
    >"$1/etc/apt/preferences.d/kernel"'
mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='APT::Install-Recommends "false"' --setup-hook="$pin" \
    --include="$PACKAGES,linux-image-$KERNEL=$VERSION" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$SUITE" "$root" "${sources[@]}"

# No network is there later.
rm -f "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/*
echo dattobd-test >"$root/etc/hostname"
cat >"$root/etc/fstab" <<'FSTAB'
UUID=6b1d4bd5-6f6c-4a40-9a5c-0d1de3f5a001 /     ext4 errors=remount-ro 0 1
FSTAB
# Nobody logs in.
ln -sf /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
ln -sf /dev/null "$root/etc/systemd/system/getty@tty1.service"
# What takes an emulated machine seconds in each boot, and is for others: LVM, foreign binaries, huge pages, timers.
for unit in e2scrub_reap.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount systemd-pstore.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
    sys-fs-fuse-connections.mount apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    fstrim.timer; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
cat >"$root/usr/local/sbin/stage" <<'STAGE'
#!/bin/bash
# Runs what the control disk holds.
mkdir -p /run/t
tar -C /run/t -xf /dev/disk/by-id/virtio-control
exec bash /run/t/guest.sh
STAGE
chmod +x "$root/usr/local/sbin/stage"
cat >"$root/etc/systemd/system/stage.service" <<'UNIT'
[Unit]
Description=Run this boot's part of the test
After=multi-user.target
[Service]
ExecStart=/usr/local/sbin/stage
StandardOutput=file:/dev/ttyS1
StandardError=file:/dev/ttyS1
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl enable stage.service
# The first boot has nothing to do after an update.
touch "$root/etc/.updated" "$root/var/.updated"
rm -f "$state/debian.img"
mke2fs -q -t ext4 -b 4096 -U 6b1d4bd5-6f6c-4a40-9a5c-0d1de3f5a001 -L root -d "$root" "$state/debian.img" "${IMAGE_MIB:-640}M"
du -sxm "$root"
rm -rf "$root"
