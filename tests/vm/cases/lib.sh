# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by the cases: devices, filesystems, checks. A case ends with `passed`.
#
# A counter-case loads a module with a deliberate fault (`# fault: N`, kernel/faults.rs), sets
# EXPECT to the name of the check that must catch it and sources the case itself: it passes only if
# just that check fails.
set -Eeuo pipefail
M=/mnt/origin                   # where the origin is mounted
S=/mnt/scratch                  # room for images, on a disk of its own
W=/run/case                     # model logs and small files, in memory
LONG=${LONG:-0}                 # 1: take the time that a night has
SLOW=${SLOW:-1}                 # all time limits times so much
EXPECT=${EXPECT:-}

say() { printf '[%6.1f] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }
fail() { say "FAILED: $*"; exit 1; }
skip() { echo "$*"; exit 77; }
trap 'say "FAILED: line $LINENO: $BASH_COMMAND"' ERR
trap cleanup EXIT
rm -rf "$W"
mkdir -p "$M" "$S" "$W"
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd

cleanup() {
    local pid minor mount
    trap - ERR
    set +e
    touch "$W/stop"
    for pid in $(jobs -p); do kill "$pid" 2>/dev/null; done
    wait
    for mount in /mnt/snap /mnt/copy; do mountpoint -q "$mount" && umount "$mount"; done
    for minor in $(minors); do dbdtest ioctl destroy "minor=$minor" >/dev/null; done
    for mount in "$M" /mnt/second "$S"; do mountpoint -q "$mount" && umount "$mount"; done
}

# The minors in use.
minors() { sed -n 's/.*"minor": \([0-9]*\),*/\1/p' /proc/datto-info; }

# timeout [-k SECONDS] SECONDS COMMAND...: as the program of that name, with more time where all takes longer.
timeout() {
    local kill=() seconds
    if [ "$1" = -k ]; then
        kill=(-k "$2")
        shift 2
    fi
    seconds=$(($1 * SLOW))
    shift
    command timeout "${kill[@]}" $seconds "$@"
}

# check NAME COMMAND...: a check that a counter-case may expect to fail. Exit code 1 is a finding; any
# other means that the check itself did not work, which proves nothing.
check() {
    local name=$1 status=0
    shift
    "$@" || status=$?
    [ $status != 0 ] || return 0
    if [ "$EXPECT" = "$name" ] && [ $status = 1 ]; then
        say "caught by the check $name, as it should be"
        exit 0
    fi
    fail "check $name (exit code $status): $*"
}

passed() {
    [ -z "$EXPECT" ] || fail "the fault was not noticed: the check $EXPECT should have failed"
    say "passed"
}

# expect ERRNO CALL ARGS...: a raw ioctl must end like this (OK or the errno's name).
expect() {
    local want=$1 got
    shift
    got=$(dbdtest ioctl "$@" | tail -1)
    [ "$got" = "$want" ] || fail "ioctl $* gave $got instead of $want"
    say "ok: $* -> $want"
}

# refuses COMMAND...: must fail, not crash, and say why on stderr.
refuses() {
    local status=0
    "$@" >"$W/out" 2>"$W/err" || status=$?
    [ $status != 0 ] || fail "succeeded, but should not: $*"
    [ $status -lt 126 ] || [ $status = 255 ] || fail "exit code $status: $*: $(cat "$W/err")"
    [ -s "$W/err" ] || fail "no reason on stderr: $*"
    say "ok, refused: $* ($(head -1 "$W/err"))"
}

# INFO's field of a minor.
info() { dbdtest ioctl info "minor=$1" | tr ' ' '\n' | sed -n "s/^$2=//p"; }
status() { dbdtest ioctl status "minor=$1" | tr ' ' '\n' | sed -n "s/^$2=//p"; }
is_state() {
    [ "$(info "$1" state)" = "$2" ] || fail "minor $1 is in state $(info "$1" state) instead of $2"
}

# wait_state MINOR STATE: it comes within a moment.
wait_state() {
    local n
    for n in $(seq $((100 * SLOW))); do
        [ "$(info "$1" state)" != "$2" ] || return 0
        sleep 0.1
    done
    fail "minor $1 stays in state $(info "$1" state) instead of $2; error $(info "$1" error)"
}

# is_sealed DEVICE HEADER: the COW file is sealed. HEADER is a copy of its first block, made before.
is_sealed() {
    # Unreadable: just being written.
    dbdtest root-state "$1" "$2" >"$W/roots" 2>&1 && sort -n -k4 "$W/roots" | tail -1 | grep -q Sealed
}

# wait_sealed DEVICE HEADER: as it is some seconds after the filesystem has gone.
wait_sealed() {
    local n
    for n in $(seq $((100 * SLOW))); do
        ! is_sealed "$1" "$2" || return 0
        sleep 0.1
    done
    fail "not sealed: $(cat "$W/roots")"
}

# partition DISK SIZE...: partitions of these sizes (MiB, or sectors with an s).
partition() {
    local disk=$1 size
    shift
    wipefs -qa "$disk"
    for size; do
        case $size in
        *s) echo "size=${size%s}" ;;
        *) echo "size=${size}MiB" ;;
        esac
    done | sfdisk -q --label gpt --wipe always --wipe-partitions always "$disk"
    udevadm settle
}

# make_fs TYPE DEVICE [OPTIONS]
make_fs() {
    local type=$1 dev=$2
    shift 2
    case $type in
    ext4) mkfs.ext4 -q -F -b 4096 -E nodiscard,lazy_itable_init=0 "$dev" "$@" ;;
    # The variables lift the lower bound of 300 MB.
    xfs) TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f -K "$@" "$dev" ;;
    *) fail "make_fs $type" ;;
    esac
    # Newer mounts take the type from udev's database, which still knows the one before.
    udevadm settle
}

scratch() {
    mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=1 -O ^has_journal "$1"
    mount "$1" "$S"
}

# fsck_copy IMAGE TYPE [DIR]: replays the journal of a copy of the image, checks the filesystem, and
# leaves it mounted read-only at /mnt/copy.
fsck_copy() {
    local image=$1 type=$2 copy=$S/copy
    mkdir -p /mnt/copy
    cp --sparse=always "$image" "$copy"
    case $type in
    ext4)
        e2fsck -fy -E journal_only "$copy" >"$W/fsck" 2>&1 || [ $? -le 1 ] || return 1
        e2fsck -fn "$copy" >"$W/fsck" 2>&1 || { cat "$W/fsck"; return 1; }
        ;;
    xfs)
        mount -o loop,nouuid "$copy" /mnt/copy || return 1
        umount /mnt/copy
        xfs_repair -n -f "$copy" >"$W/fsck" 2>&1 || { cat "$W/fsck"; return 1; }
        ;;
    esac
    local nouuid=
    [ "$type" != xfs ] || nouuid=,nouuid
    mount -o "loop,ro$nouuid" "$copy" /mnt/copy
}

fsck_device() {
    case $1 in
    ext4) e2fsck -fn "$2" ;;
    xfs) xfs_repair -n "$2" ;;
    esac >"$W/fsck" 2>&1 || { cat "$W/fsck"; fail "the origin's filesystem is damaged"; }
}

# with_time TEXT COMMAND...: says how long it took.
with_time() {
    local text=$1 start end
    shift
    start=$(date +%s%N)
    "$@"
    end=$(date +%s%N)
    say "$text: $(((end - start) / 1000000)) ms"
}

# small_cycle TYPE DEVICE [MKFS ARGS]: one snapshot, one increment and a new snapshot on any kind of
# device, with a stamp writer and a file writer; image, change map and filesystem are checked.
small_cycle() {
    local type=$1 dev=$2
    shift 2
    say "== $type on $dev, $(blockdev --getsize64 "$dev") bytes in blocks of $(blockdev --getss "$dev")"
    rm -rf "$W"
    mkdir -p "$W"
    make_fs "$type" "$dev" "$@"
    mount "$dev" "$M"
    # What a case wants to be there first.
    ! declare -F furnish >/dev/null || furnish
    dbdtest stamp-init "$W" "direct:$M/direct:4M" "buffered:$M/buffered:4M" --threads 2
    dbdtest stamp-run "$W" --until "$W/stop" --pause 10000 --seed 111 &
    local stamper=$!
    dbdtest files-run "$W" "$M/files" --until "$W/stop" --pause 40000 --seed 112 &
    local filer=$!
    dbdtest mark "$W" s0 dbdctl setup-snapshot -f 24 "$dev" "$M/.cow0" 0
    [ "$(blockdev --getsize64 /dev/datto0)" = "$(blockdev --getsize64 "$dev")" ] || fail "sizes differ"
    [ "$(blockdev --getro /dev/datto0)" = 1 ] || fail "the node is not read-only"
    rm -f "$S/image"
    dd if=/dev/datto0 of="$S/image" bs=1M status=none
    check snapshot-stamps dbdtest stamp-verify "$W" /dev/datto0 --mark s0
    dbdctl transition-to-incremental 0
    sleep 1
    dbdtest mark "$W" s1 dbdctl transition-to-snapshot -f 24 "$M/.cow1" 0
    update-img /dev/datto0 "$M/.cow0" "$S/image"
    rm "$M/.cow0"
    check image-is-snapshot dbdtest cmp "$S/image" /dev/datto0 --skip-cow 0
    check image-stamps dbdtest stamp-verify "$W" "$S/image" --mark s1
    touch "$W/stop"
    wait $stamper
    wait $filer
    [ "$(info 0 error)" = 0 ] || fail "the snapshot has failed: $(info 0 error)"
    dbdctl destroy 0
    umount "$M"
    check origin-stamps dbdtest stamp-verify "$W" "$dev"
    fsck_device "$type" "$dev"
}
