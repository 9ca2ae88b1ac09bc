#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# The backup cycle, step by step, on a mounted ext4 with a Debian file tree. `make demo` runs this
# inside a VM with the stock kernel:
#   /dev/vda  the production disk: ext4 with at least 500 MiB of real files
#   /dev/vdb  where the backup image goes
# A writer keeps changing files on the production disk during every step, the transitions included.
set -Eeuo pipefail
export PATH=/t/bin:$PATH
DISK=/dev/vda
PROD=/mnt/production            # the filesystem that is backed up
BACKUP=/mnt/backup              # another disk
IMAGE=$BACKUP/production.img
LOG=/run/demo                   # the writer's log, in memory: apart from all disks
ROUNDS=${ROUNDS:-2}
step=0
title="preparation"
current=

bold() { printf '\n\033[1m%s\033[0m\n' "$*"; }
note() { printf '  %s\n' "$*"; }
failed() {
    local status=$?
    printf '\nDEMO FAILED in step %s (%s): %s\n' "$step" "$title" "${1:-${current:-$BASH_COMMAND}}"
    echo "The kernel's last messages:"
    dmesg | tail -15
    echo "Logs: target/demo-logs/out.txt (this transcript), console.txt and results/dmesg.txt (kernel)"
    exit $((status ? status : 1))
}
trap failed ERR

begin() {
    step=$1
    title=$2
    bold "Step $step: $title"
}

seconds() { awk -v a="$1" -v b="$(date +%s%N)" 'BEGIN {printf "%.1f s", (b - a) / 1e9}'; }

# run COMMAND...: shows the command, its output and how long it took.
run() {
    local start
    printf '  \033[32m# %s\033[0m\n' "$*"
    start=$(date +%s%N)
    current="$*"
    "$@" 2>&1 | tr '\r' '\n' | sed 's/^/    /'
    current=
    note "$(seconds "$start")"
}

# watch_progress PID TOTAL: while the process runs, how far its standard output has come.
watch_progress() {
    local pid=$1 total=$2 at
    while sleep 5 && at=$(sed -n 's/^pos:\t//p' "/proc/$pid/fdinfo/1" 2>/dev/null) && [ -n "$at" ]; do
        note "... $((at >> 20)) of $((total >> 20)) MiB ($((at * 100 / total)) %)"
    done
}

mib() { awk -v b="$1" 'BEGIN {printf "%.1f MiB", b / 1048576}'; }

bold "Preparation"
mkdir -p $PROD $BACKUP $LOG /mnt/check
modprobe loop
mount $DISK $PROD
mkfs.xfs -q -f /dev/vdb         # xfs: the checks below take their copies by reflink
mount /dev/vdb $BACKUP
size=$(blockdev --getsize64 $DISK)
note "$DISK: $(findmnt -no FSTYPE $PROD), $(mib "$size"), $(df -h --output=used $PROD | tail -1 | tr -d ' ') in $(df --output=iused $PROD | tail -1 | tr -d ' ') files, mounted at $PROD"
note "kernel: $(uname -r), Debian's own; image: $IMAGE on another disk"
dbdtest files-run $LOG $PROD/work --threads 2 --pause 15000 --seed 2024 --until $LOG/stop >$LOG/out 2>&1 &
writer=$!
sleep 2
note "a writer works in $PROD/work from now to the end: creates, changes, renames, deletes files, with and"
note "without fsync, and keeps a log of its own in memory, so that we can tell later what must be in the image"

begin 1 "install the module and the tools"
run insmod /t/bin/dattobd.ko
run install -m755 -t /usr/local/sbin /t/bin/dbdctl /t/bin/update-img
if compgen -G '/t/dist/udev/*.rules' >/dev/null; then
    run install -D -m644 -t /etc/udev/rules.d /t/dist/udev/*.rules
    udevadm control --reload
fi
run dbdctl --version

begin 2 "take the first snapshot of the mounted filesystem"
run dbdtest mark $LOG point0 dbdctl setup-snapshot $DISK $PROD/.datto0 0
note "/dev/datto0 now shows $DISK as it was at that moment; old data of changed blocks is kept in $PROD/.datto0"
run dbdctl info 0

begin 3 "copy the whole snapshot to an image, once"
printf '  \033[32m# %s\033[0m\n' "dd if=/dev/datto0 of=$IMAGE bs=1M conv=sparse"
start=$(date +%s%N)
dd if=/dev/datto0 of=$IMAGE bs=1M conv=sparse status=none &
copier=$!
watch_progress $copier "$size"
wait $copier
full=$size
note "$(mib "$full") read, $(mib "$(du -B1 $IMAGE | cut -f1)") of them not zero, $(seconds "$start")"

# verify POINT: the image is the snapshot, its filesystem is whole, its files are those of the point.
verify() {
    local copy=$BACKUP/copy.img
    bold "Checks of the image against the snapshot point \"$1\""
    if [ "$1" = point0 ]; then
        note "1. (the first image is a plain copy; the byte for byte comparison is for the updated ones)"
    else
        note "1. byte for byte the snapshot, outside the running COW file's own blocks:"
        run dbdtest cmp $IMAGE /dev/datto0 --skip-cow 0
    fi
    note "2. a copy of the image has a whole filesystem, after its journal was replayed:"
    cp --reflink=always $IMAGE $copy
    e2fsck -fy -E journal_only $copy >$LOG/fsck 2>&1 || [ $? -le 1 ]
    run e2fsck -fn $copy
    note "3. the files of the writer are just those that its log says were there at the point:"
    mount -o loop,ro,noload $copy /mnt/check
    run dbdtest files-check $LOG /mnt/check/work --mark "$1"
    umount /mnt/check
    rm $copy
    kill -0 $writer || failed "the writer has stopped: $(tail -3 $LOG/out)"
}
verify point0

for round in $(seq "$ROUNDS"); do
    old=$PROD/.datto$((round - 1))
    new=$PROD/.datto$round
    begin 4 "from snapshot to incremental: only remember what changes (round $round of $ROUNDS)"
    run dbdctl transition-to-incremental 0
    note "/dev/datto0 is gone, the old data in $old was given back: $(mib "$(stat -c %s "$old")") left"

    begin 5 "normal use"
    run cp -a $PROD/usr/bin "$PROD/copy$round"
    run rm -rf $PROD/usr/include/linux
    sleep 5
    run dbdctl info 0
    changed=$(dbdtest ioctl info minor=0 | tr ' ' '\n' | sed -n 's/^nr_changed_blocks=//p')

    begin 6 "a new snapshot, with a new COW file"
    run dbdtest mark $LOG "point$round" dbdctl transition-to-snapshot "$new" 0
    frozen=$(dbdtest ioctl status minor=0 | tr ' ' '\n' | sed -n 's/^freeze_ns=//p')
    note "the filesystem was held still for $((frozen / 1000000)) ms; about $changed blocks had changed"

    begin 7 "bring the image up to date: read only what changed"
    start=$(date +%s%N)
    run update-img /dev/datto0 "$old" $IMAGE
    took=$(seconds "$start")
    named=$(dbdtest cow-header "$old" | sed -n 's/.*changed=//p')
    note "$(mib $((named * 4096))) of $(mib "$full") read, $(awk -v a="$full" -v b=$((named * 4096)) 'BEGIN {printf "%.0f", a / b}') times less than a full copy, $took"

    begin 8 "delete the old COW file"
    run rm "$old"
    verify "point$round"
    [ "$round" = "$ROUNDS" ] || begin 9 "again from step 4"
done

step=10
title="end"
bold "End: the writer stops, tracking ends, the module goes"
touch $LOG/stop
wait $writer
note "the writer: $(tail -1 $LOG/out)"
run dbdctl destroy 0
run dbdtest files-check $LOG $PROD/work
umount $PROD
run e2fsck -fn $DISK
run rmmod dattobd
if grep -qE 'BUG:|WARNING:|Oops|Call Trace' <<<"$(dmesg)"; then failed "the kernel log has warnings"; fi
bold "The demo has passed."
