#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# One stage, inside the VM: run by stage.service late in each boot, with standard output to the host. The control
# disk is unpacked around it. Devices: minor 0 is the root (ext4), minor 1 is /data (xfs); images are on /scratch.
set -Eeuo pipefail
T=/run/t
stage=$(cat $T/stage)
# Nothing can be run from /run.
mkdir -p /opt/t
mount -t tmpfs tmpfs /opt/t
cp $T/dbdtest /opt/t/
PATH=/opt/t:$PATH
export HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
data=/dev/disk/by-id/virtio-data
scratch=/dev/disk/by-id/virtio-scratch
list=/etc/datto/dla/reload_devices
writers=()

say() { printf '[%6.1f] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }
fail() {
    trap - ERR
    say "FAILED: $*"
    journalctl --no-pager -b -o cat -u dattobd-reload 2>/dev/null | tail -20 || true
    dmesg | grep -i datto | tail -40 || true
    grep minor= $list 2>/dev/null || true
    dbdctl info 2>&1 || true
    systemctl --failed --no-legend || true
    echo "STAGE FAILED: $*"
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
# quiet COMMAND...: shows what it said only when it fails.
quiet() { "$@" >/run/said 2>&1 </dev/null || { tail -30 /run/said; fail "$*"; }; }

json() { dbdctl info --json "$1" | jq -r ".devices[0].$2"; }
# is MINOR FIELD VALUE
is() {
    local got
    got=$(json "$1" "$2")
    [ "$got" = "$3" ] || fail "minor $1: $2 is $got instead of $3"
}
# both MODE: both devices are up and without a flaw.
both() {
    local n
    say "$(dbdctl info --json | jq -c '[.devices[] | {minor, state_text, error, crash_blocks, nr_changed_blocks, cow_file}]')"
    for n in 0 1; do
        is $n state_text "active $1"
        is $n error 0
        is $n chain_broken false
        is $n recorded true
    done
}
exact() { is 0 crash_blocks 0; is 1 crash_blocks 0; }
image() { echo "/scratch/image$1"; }
folder() { [ "$1" = 1 ] && echo /data || echo ""; }

# Ordinary work on both filesystems.
work() {
    local where round=$1
    for where in /var/tmp /data; do
        rm -rf "$where/w$((round - 2))"
        mkdir -p "$where/w$round"
        cp -a /usr/lib/systemd "$where/w$round/"
        dd if=/dev/urandom of="$where/w$round/new" bs=64k count=60 status=none
        dd if=/dev/urandom of="$where/direct" bs=16k seek=$((round * 7)) count=50 conv=notrunc oflag=direct status=none
        dd if=/dev/urandom of="$where/again" bs=4k seek=$((round * 11)) count=200 conv=notrunc,fsync status=none
        mv "$where/w$round/systemd/network" "$where/w$round/moved" 2>/dev/null || true
    done
}
# Work that goes on until the end of the machine.
load() {
    local where
    for where in /var/tmp /data; do
        (
            trap - ERR
            set +e
            n=0
            while :; do
                n=$((n + 1))
                dd if=/dev/urandom of="$where/load$((n % 5))" bs=32k count=60 conv=fsync status=none
                dd if=/dev/urandom of="$where/direct" bs=4k seek=$((n * 37 % 3000)) count=8 conv=notrunc oflag=direct \
                    status=none
                cp -a /usr/lib/udev "$where/copy$n"
                rm -rf "$where/copy$((n - 2))"
            done
        ) &
        writers+=($!)
    done
}
# next_snapshot N: the Nth COW files; the images are brought up to date and compared.
next_snapshot() {
    local n minor old
    n=$1
    for minor in 0 1; do
        old=$(json $minor cow_file)
        dbdctl transition-to-snapshot -f 80 "$(folder $minor)/.datto$n" $minor
        update-img --quiet /dev/datto$minor "$(folder $minor)$old" "$(image $minor)"
        same $minor
        rm "$(folder $minor)$old"
    done
}
# What the stages with kills call the COW file behind the snapshot SEQID.
cow_of() { [ "$2" = 1 ] && echo "$(folder "$1")/.datto" || echo "$(folder "$1")/.d$2"; }
# after_kill: whatever was going on when the machine died, the chains go on. Updates the images.
after_kill() {
    local minor seq image_seq n added=
    local -a files
    for minor in 0 1; do
        say "$(dbdctl info --json $minor | jq -c '.devices[0] | {minor, state_text, error, seq_id, crash_blocks, nr_changed_blocks}')"
        is $minor chain_broken false
        is $minor recorded true
        [ "$(json $minor crash_blocks)" -le "$(json $minor nr_changed_blocks)" ] || fail "more added than changed"
        added="$added$(json $minor crash_blocks) of $(json $minor nr_changed_blocks) blocks, "
        case "$(json $minor state_text)" in
        "active incremental") ;;
        # None of these machines was shut down in snapshot mode: where the copies lay was only in its memory.
        "active snapshot") fail "minor $minor: a snapshot that nobody has sealed came up as good" ;;
        *)
            ! dd if=/dev/datto$minor of=/dev/null bs=4096 count=1 iflag=direct status=none 2>/run/said ||
                fail "minor $minor: the snapshot is lost, but can be read"
            grep -q 'Input/output error' /run/said || fail "minor $minor: the lost snapshot's node: $(cat /run/said)"
            dbdctl drop-snapshot $minor
            ;;
        esac
        is $minor state_text "active incremental"
        seq=$(json $minor seq_id)
        # What was to take over next, and has not.
        rm -f "$(cow_of $minor $((seq + 1)))"
        dbdctl transition-to-snapshot -f 80 "$(cow_of $minor $((seq + 1)))" $minor
        image_seq=$(cat /scratch/seq$minor 2>/dev/null || echo 1)
        files=()
        for n in $(seq "$image_seq" "$seq"); do files+=("$(cow_of $minor "$n")"); done
        update-img --quiet /dev/datto$minor "${files[@]}" "$(image $minor)"
        same $minor
        say "minor $minor: the image has followed from snapshot $image_seq to $((seq + 1))"
        rm "${files[@]}"
        echo $((seq + 1)) >/scratch/seq$minor
    done
    echo "told added=${added%, }"
}
# Snapshots come and go, until the end of the machine.
transitions() {
    (
        trap - ERR
        set +e
        while :; do
            for minor in 0 1; do
                sleep 0.$RANDOM
                dbdctl transition-to-snapshot -f 80 "$(cow_of $minor $(($(json $minor seq_id) + 1)))" $minor
                sleep 0.$RANDOM
                dbdctl transition-to-incremental $minor
            done
        done >/dev/null 2>&1
    ) &
    writers+=($!)
}
# same MINOR: the image is the snapshot, outside the COW file.
same() {
    dbdtest cmp "$(image "$1")" "/dev/datto$1" --skip-cow "$1" || fail "minor $1: the image differs from the snapshot"
}
incremental() {
    local minor
    for minor in 0 1; do dbdctl transition-to-incremental $minor; done
}
passed() {
    sync -f /scratch
    umount /scratch 2>/dev/null || true
    # The host reads the serial line to its end.
    echo "STAGE PASSED"
    systemctl --no-block reboot
    exit 0
}

echo "STAGE UP"
[ "$stage" != boot-kill ] || sleep 1000
# Before anything else: what the boot has made of the devices.
case $stage in
reboot | boot)
    both incremental
    exact
    ;;
snapshot)
    both snapshot
    exact
    ;;
crash | last-crash | reset)
    both incremental
    say "after the crash: $(json 0 crash_blocks) of $(json 0 nr_changed_blocks) blocks of the root," \
        "$(json 1 crash_blocks) of $(json 1 nr_changed_blocks) of /data only because nobody knows"
    ;;
esac
for _ in $(seq 100); do
    boot=$(systemd-analyze time 2>/dev/null | head -1) && [ -n "$boot" ] && break
    sleep 0.3
done
echo "told boot=${boot#Startup finished in }"
read -r _ user nice system _ _ irq softirq _ </proc/stat
echo "told busy=$(((user + nice + system + irq + softirq) * 10))"
[ "$(findmnt -no FSTYPE /)" = ext4 ] || fail "the root is not ext4"
case $stage in
install) mkfs.ext4 -q -F -O ^has_journal -E nodiscard "$scratch" ;;
*)
    [ "$(findmnt -no FSTYPE /data)" = xfs ] || fail "/data is not mounted"
    [ "$(systemctl --failed --no-legend | wc -l)" = 0 ] || fail "a unit has failed"
    ;;
esac
mkdir -p /scratch
mount "$scratch" /scratch

case $stage in
install)
    quiet mkfs.xfs -q -f -K "$data"
    mkdir -p /data
    # By the UUID, as installers write it: the snapshot carries the same.
    echo "UUID=$(blkid -o value -s UUID "$data") /data xfs defaults 0 2" >>/etc/fstab
    systemctl daemon-reload
    mount /data
    say "apt install"
    # As the installer does when asked for a small one: the full one takes minutes in an emulated machine.
    printf 'MODULES=dep\nCOMPRESSLEVEL=1\n' >/etc/initramfs-tools/conf.d/small
    echo "deb [trusted=yes] file:$T/repo ./" >/etc/apt/sources.list.d/dattobd.list
    before=$(stat -c %Y "/boot/initrd.img-$(uname -r)")
    quiet apt-get -q update
    quiet apt-get -q -y install dattobd-tools "dattobd-modules-$(uname -r)"
    made=$(grep -c 'update-initramfs: Generating' /run/said)
    [ "$made" = 1 ] || fail "the initramfs was made $made times"
    [ "$(stat -c %Y "/boot/initrd.img-$(uname -r)")" -gt "$before" ] || fail "the initramfs was not made anew"
    lsinitramfs "/boot/initrd.img-$(uname -r)" >/run/files
    grep -q sbin/dbdctl /run/files || fail "no dbdctl in the initramfs"
    grep -q dattobd.ko /run/files || fail "no module in the initramfs"
    [ "$(systemctl is-enabled dattobd-reload)" = enabled ] || fail "the unit is not enabled"
    modprobe dattobd
    say "first snapshots"
    work 0
    dbdctl setup-snapshot -f 80 "$(findmnt -no SOURCE /)" /.datto 0
    dbdctl setup-snapshot -f 80 "$(findmnt -no SOURCE /data)" /data/.datto 1
    both snapshot
    for n in 0 1; do dd if=/dev/datto$n of="$(image $n)" bs=1M conv=sparse status=none; done
    work 1
    for n in 0 1; do same $n; done
    incremental
    work 2
    grep minor= $list
    passed
    ;;
reboot)
    work 3
    next_snapshot 2
    both snapshot
    work 4
    passed
    ;;
snapshot)
    # The image was the snapshot before the reboot, and nobody has written to it since.
    for n in 0 1; do same $n; done
    work 5
    for n in 0 1; do same $n; done
    incremental
    load
    sleep 3
    umount /scratch
    echo "STAGE PASSED"
    echo "STAGE KILL-ME"
    sleep 1000
    ;;
crash)
    next_snapshot 3
    work 6
    incremental
    load
    sleep 5
    umount /scratch
    echo "STAGE PASSED"
    sleep 2
    echo b >/proc/sysrq-trigger
    ;;
last-crash | reset)
    if [ $stage = reset ]; then next_snapshot 4; else next_snapshot 3; fi
    incremental
    work 7
    sed -i 's|cow=[^ ]*|cow=/.none|' $list
    grep minor= $list
    passed
    ;;
wrong)
    for n in 0 1; do
        say "minor $n: $(json $n state_text)"
        [ "$(json $n error)" != 0 ] || fail "minor $n does not show that it has failed"
        is $n chain_broken true
    done
    [ "$(systemctl is-system-running)" = running ] || fail "the system is $(systemctl is-system-running)"
    # And everything can begin anew.
    for n in 0 1; do dbdctl destroy $n; done
    dbdctl setup-snapshot -f 40 "$(findmnt -no SOURCE /data)" /data/.again 1
    dbdctl destroy 1
    passed
    ;;
kill | after-kill)
    after_kill
    incremental
    [ "$stage" = kill ] || passed
    work 8
    load
    transitions
    umount /scratch
    echo "STAGE PASSED"
    echo "STAGE KILL-ME"
    sleep 1000
    ;;
boot) passed ;;
off)
    [ "$(dbdctl info --json 2>/dev/null | jq '.devices | length')" = 0 ] || fail "there are devices"
    passed
    ;;
esac
