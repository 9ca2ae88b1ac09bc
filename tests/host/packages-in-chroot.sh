#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The part of packages.sh that runs inside the chroot. Needs KERNEL.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
deb=/dattobd/target/deb
log=/tmp/log

step() { printf '%s\n' "-- $*"; }
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }
# quiet COMMAND...: shows what it said only when it fails.
quiet() { "$@" >"$log" 2>&1 </dev/null || { tail -30 "$log"; fail "$*"; }; }
# has LIST WORD...: each word is in the list of files.
has() {
    local list=$1 word
    shift
    for word in "$@"; do grep -q -- "$word" "$list" || fail "the initramfs has no $word"; done
}
inside=(sbin/dbdctl dattobd.ko 59-dattobd.rules '/loop.ko' xfs.ko)

step "install tools and module"
quiet dpkg -i "$deb"/dattobd-tools_*.deb "$deb/dattobd-modules-$KERNEL"_*.deb
dbdctl --version
update-img --version
modinfo -k "$KERNEL" -F vermagic dattobd | grep -q "^$KERNEL " || fail "depmod does not know the module"
[ -L /etc/systemd/system/sysinit.target.wants/dattobd-reload.service ] || fail "the unit is not enabled"
systemd-analyze verify /usr/lib/systemd/system/dattobd-reload.service 2>&1 | grep dattobd && fail "the unit has mistakes"
[ -d /etc/datto/dla ] || fail "no place for the list"
udevadm verify --no-style /usr/lib/udev/rules.d/59-dattobd.rules || fail "the udev rule has mistakes"
MANPATH=/usr/share/man man -w dbdctl-boot datto_reload >/dev/null 2>&1 || [ ! -x /usr/bin/man ] || fail "no man page"
datto_reload --dry-run --wait 0

step "an initramfs by dracut"
if command -v dracut >/dev/null; then
    quiet dracut --force --no-hostonly --add dattobd /tmp/dracut.img "$KERNEL"
    lsinitrd /tmp/dracut.img >/tmp/files
    has /tmp/files "${inside[@]}" 'pre-mount/20-dattobd-pre-mount.sh'
    # Without being asked to, too.
    quiet dracut --force --hostonly --no-hostonly-cmdline /tmp/dracut.img "$KERNEL"
    lsinitrd /tmp/dracut.img >/tmp/files
    has /tmp/files sbin/dbdctl dattobd.ko 59-dattobd.rules
fi

step "an initramfs by initramfs-tools"
quiet apt-get install -y --no-install-recommends initramfs-tools
quiet mkinitramfs -o /tmp/initrd.img "$KERNEL"
lsinitramfs /tmp/initrd.img >/tmp/files
has /tmp/files "${inside[@]}" scripts/local-premount/dattobd
unmkinitramfs /tmp/initrd.img /tmp/unpacked
main=/tmp/unpacked
[ ! -d $main/main ] || main=$main/main
# What it needs to run is in there with it.
chroot $main /sbin/dbdctl --version >/dev/null || fail "dbdctl does not run in the initramfs"
grep -q dattobd $main/scripts/local-premount/ORDER || fail "the script is not run"

step "install again, over itself"
quiet dpkg -i "$deb"/dattobd-tools_*.deb "$deb/dattobd-modules-$KERNEL"_*.deb

step "remove, install, purge"
echo '# mine' >/etc/datto/dla/reload_devices
quiet dpkg -r dattobd-tools "dattobd-modules-$KERNEL"
[ -e /etc/datto/dla/reload_devices ] || fail "a removal must not forget the devices"
[ ! -e /usr/sbin/dbdctl ] || fail "dbdctl is still there"
modinfo -k "$KERNEL" dattobd >/dev/null 2>&1 && fail "depmod still knows the module"
quiet mkinitramfs -o /tmp/initrd.img "$KERNEL"
lsinitramfs /tmp/initrd.img | grep dattobd && fail "an initramfs still has it"
quiet dpkg -i "$deb"/dattobd-tools_*.deb
quiet dpkg -P dattobd-tools "dattobd-modules-$KERNEL"
[ ! -e /etc/datto ] || fail "the purge left /etc/datto"

bundle=$(echo /dattobd/target/bundle/dattobd-*.tar.xz)
if [ -e "$bundle" ]; then
    step "the bundle, without a network"
    tar -C /tmp -xf "$bundle"
    install=$(echo /tmp/dattobd-*/install.sh)
    "$install" no-such-kernel >"$log" 2>&1 && fail "a kernel without a module was taken"
    grep -q "no module for no-such-kernel" "$log" && grep -qF "$KERNEL" "$log" || fail "the error is not clear: $(cat "$log")"
    "$install" --help | grep -qF "$KERNEL" || fail "no help"
    quiet unshare --net "$install" "$KERNEL"
    modinfo -k "$KERNEL" dattobd >/dev/null || fail "the bundle did not install the module"
    quiet dpkg -P dattobd-tools "dattobd-modules-$KERNEL"
    echo >>"$(dirname "$install")/INSTALL.md"
    "$install" "$KERNEL" >"$log" 2>&1 && fail "a damaged bundle was taken"
fi

step "DKMS"
quiet apt-get install -y --no-install-recommends "$deb"/dattobd-dkms_*.deb
dkms status | tee /tmp/status
if ! grep -q "$KERNEL.*installed" /tmp/status; then
    quiet dkms install "dattobd/$(dpkg-query -W -f '${Version}' dattobd-dkms)" -k "$KERNEL"
fi
modinfo -k "$KERNEL" -F vermagic dattobd | grep -q "^$KERNEL " || fail "DKMS did not install the module"
quiet dpkg -P dattobd-dkms
modinfo -k "$KERNEL" dattobd >/dev/null 2>&1 && fail "DKMS left the module"
exit 0
