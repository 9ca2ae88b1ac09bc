#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The part of packages.sh that runs inside the chroot. Needs KERNEL and TARGET.
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
# boots IMAGE OPTION...: a root filesystem that is on the list boots with this initramfs, and the list was
# found before the mount. The module of a version that cannot do it yet only has to be asked.
boots() {
    local initrd=$1 kvm=()
    shift
    dd if=/dev/zero of=/tmp/disk bs=1M count=0 seek=128 status=none
    mke2fs -q -F -t ext4 -d /tmp/rootfs /tmp/disk
    [ -z "${KVM:-}" ] || kvm=(-accel kvm)
    timeout 240 qemu-system-x86_64 "${kvm[@]}" -accel tcg,thread=multi -M q35 -cpu max -smp 2 -m 1G -nographic -no-reboot \
        -kernel "/boot/vmlinuz-$KERNEL" -initrd "$initrd" -drive file=/tmp/disk,format=raw,if=virtio \
        -append "root=/dev/vda rw console=ttyS0 panic=-1 quiet $*" >/tmp/console 2>&1 </dev/null || true
    grep -q ROOT-IS-UP /tmp/console || { tail -40 /tmp/console; fail "no boot with $initrd"; }
}
make_rootfs() {
    mkdir -p /tmp/rootfs/{sbin,bin,usr/lib,etc/datto/dla,proc,sys,dev,run,tmp}
    cp /bin/busybox /tmp/rootfs/bin/
    touch /tmp/rootfs/etc/os-release
    ln -sf busybox /tmp/rootfs/bin/sh
    printf 'minor=0 device=/dev/vda cow=/.datto mode=snapshot\nminor=1 device=/dev/vdx cow=/.x\n' \
        >/tmp/rootfs/etc/datto/dla/reload_devices
    cat >/tmp/rootfs/sbin/init <<'END'
#!/bin/sh
b=/bin/busybox
$b mountpoint -q /proc || $b mount -t proc proc /proc
echo ROOT-IS-UP
$b dmesg | $b grep dattobd
echo "module: $($b ls -d /sys/module/dattobd)"
echo "rest: $($b grep minor= /run/dattobd/reload_devices)"
echo "loops: $($b ls -d /sys/block/loop*/loop 2>/dev/null)"
echo ROOT-ENDS
$b poweroff -f
END
    chmod +x /tmp/rootfs/sbin/init
}
# announced: what the boot left in the console.
announced() {
    grep -q 'dattobd.*reload-snapshot /dev/vda /.datto 0' /tmp/console || grep -q 'datto0' /tmp/console ||
        { sed -n '/ROOT-IS-UP/,$p' /tmp/console; fail "the root was not announced"; }
    grep -q '^rest: minor=1 ' /tmp/console || { sed -n '/ROOT-IS-UP/,$p' /tmp/console; fail "the rest was not kept"; }
    grep -q '^loops: .\?$' /tmp/console || fail "a loop device is left over"
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

make_rootfs
step "an initramfs by dracut"
if command -v dracut >/dev/null; then
    quiet dracut --force --no-hostonly --add dattobd /tmp/dracut.img "$KERNEL"
    lsinitrd /tmp/dracut.img >/tmp/files
    has /tmp/files "${inside[@]}" 'pre-mount/20-dattobd-pre-mount.sh'
    step "boot with it"
    boots /tmp/dracut.img
    announced
    # Without being asked to, too.
    quiet dracut --force --hostonly --no-hostonly-cmdline /tmp/dracut.img "$KERNEL"
    lsinitrd /tmp/dracut.img >/tmp/files
    has /tmp/files sbin/dbdctl dattobd.ko 59-dattobd.rules
    # Where `make install` puts it.
    mv /usr/sbin/dbdctl /usr/local/sbin/
    quiet dracut --force --hostonly --no-hostonly-cmdline /tmp/dracut.img "$KERNEL"
    mv /usr/local/sbin/dbdctl /usr/sbin/
    lsinitrd /tmp/dracut.img >/tmp/files
    has /tmp/files ' usr/sbin/dbdctl' dattobd.ko 59-dattobd.rules
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
step "boot with it"
boots /tmp/initrd.img
announced
boots /tmp/initrd.img dattobd=off
grep -q 'module: /sys' /tmp/console && fail "dattobd=off was not heard"

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
    for word in "no module for no-such-kernel" "$KERNEL"; do
        grep -qF "$word" "$log" || fail "the error is not clear: $(cat "$log")"
    done
    grep -qF "$KERNEL" <<<"$("$install" --help)" || fail "no help"
    quiet unshare --net "$install" "$KERNEL"
    modinfo -k "$KERNEL" dattobd >/dev/null || fail "the bundle did not install the module"
    quiet dpkg -P dattobd-tools "dattobd-modules-$KERNEL"
    echo >>"$(dirname "$install")/INSTALL.md"
    "$install" "$KERNEL" >"$log" 2>&1 && fail "a damaged bundle was taken"
fi

step "DKMS, with headers as Debian ships them"
headers=/usr/src/linux-headers-$KERNEL
rm -f "$headers"/rust/*.rmeta "$headers"/rust/lib*.so "$headers"/rust/kernel/generated_*.rs
# Remade from the source it would take minutes; that is what `make setup` tests.
mkdir -p /var/cache/dattobd/host
cp /cache/"$TARGET"/rust-metadata-"$KERNEL"-*.tar.xz /var/cache/dattobd/host/
quiet apt-get install -y --no-install-recommends "$deb"/dattobd-dkms_*.deb
dkms status | tee /tmp/status
if ! grep -q "$KERNEL.*installed" /tmp/status; then
    quiet dkms install "dattobd/$(dpkg-query -W -f '${Version}' dattobd-dkms)" -k "$KERNEL"
fi
modinfo -k "$KERNEL" -F vermagic dattobd | grep -q "^$KERNEL " || fail "DKMS did not install the module"
quiet dpkg -P dattobd-dkms
modinfo -k "$KERNEL" dattobd >/dev/null 2>&1 && fail "DKMS left the module"

step "from source, without packages: make install"
mkdir /root/source
tar -C /dattobd --exclude=./target --exclude=./.git -cf - . | tar -C /root/source -xf -
# Crates that a build has fetched before are not fetched again.
quiet env CARGO_HOME=/cache/cargo make -C /root/source install "KDIR=/lib/modules/$KERNEL/build"
grep -q 'systemctl enable dattobd-reload' "$log" || fail "it does not say what comes next"
modinfo -k "$KERNEL" -F vermagic dattobd | grep -q "^$KERNEL " || fail "depmod does not know the module"
[ "$(modinfo -k "$KERNEL" -n dattobd)" = "/lib/modules/$KERNEL/updates/dattobd.ko" ] ||
    fail "the module is not where the README signs it"
/usr/local/sbin/dbdctl --version
/usr/local/sbin/update-img --version
systemd-analyze verify /etc/systemd/system/dattobd-reload.service 2>&1 | grep dattobd && fail "the unit has mistakes"
udevadm verify --no-style /etc/udev/rules.d/59-dattobd.rules || fail "the udev rule has mistakes"
for file in man/man8/dbdctl.8 man/man8/update-img.8 bash-completion/completions/dbdctl zsh/site-functions/_dbdctl \
    fish/vendor_completions.d/dbdctl.fish; do
    [ -s "/usr/local/share/$file" ] || fail "no /usr/local/share/$file"
done
PATH=$PATH:/usr/local/sbin datto_reload --dry-run --wait 0
quiet mkinitramfs -o /tmp/initrd.img "$KERNEL"
lsinitramfs /tmp/initrd.img >/tmp/files
has /tmp/files "${inside[@]}" scripts/local-premount/dattobd
step "boot with its initramfs"
boots /tmp/initrd.img
announced
exit 0
