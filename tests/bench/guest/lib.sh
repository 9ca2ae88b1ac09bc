# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by the benchmark programs of this folder. Each measurement is a line of JSON in /results/bench.jsonl;
# tests/bench/results.py makes ratios of them.
#
# BY: wall, or instructions (one CPU that executes an instruction each nanosecond, and `dbdtest spin` in the
# background, which counts what nobody uses). FILE_MIB: how much the loads write or read; SEQ_MIB: sequential ones,
# which need more of it to take long beside fio's own start. SAMPLES: how often what varies is measured. TRIES: how
# often a noisy measurement is made.
set -Eeuo pipefail
BY=${BY:-wall} FILE_MIB=${FILE_MIB:-64} SEQ_MIB=${SEQ_MIB:-128} SAMPLES=${SAMPLES:-1} TRIES=${TRIES:-3}
M=/mnt/bench
W=/run/bench
OUT=/results/bench.jsonl
DISK=/dev/vda                   # tracked, or bare
SECOND=/dev/vdb                 # for what device mapper keeps elsewhere
THIRD=/dev/vdc                  # the data of dm-thin
N=0
mkdir -p "$M" "$W" /results
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd

say() { printf '[%6.1f] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"; }
fail() { say "FAILED: $*"; exit 1; }
trap 'say "FAILED: line $LINENO: $BASH_COMMAND"' ERR

# Nothing but the load shall run: no writeback of old pages, no watchdogs of udev.
quiet() {
    sync
    udevadm settle
}

# By instructions: disks of our own. fio's buffers get huge pages by chance,
# which makes a bio of 1 MiB half as dear: never, then.
start() {
    echo never >/sys/kernel/mm/transparent_hugepage/enabled
    [ "$BY" = instructions ] || return 0
    insmod /t/bin/dbd_benchdisk.ko disks=3 size_mib="$(((FILE_MIB > SEQ_MIB ? FILE_MIB : SEQ_MIB) * 3 + 64))"
    DISK=/dev/benchdisk0 SECOND=/dev/benchdisk1 THIRD=/dev/benchdisk2
}

# The part of fio's command line that makes a load. Buffers of 1 MiB are not filled with random data: that takes
# longer than to write them, and counts.
load_options() {
    case $1 in
    first-touch) OPTIONS=(--rw=write:4092k --bs=4k --ioengine=psync "--io_size=${FILE_MIB}k") ;;
    randwrite-qd1*) OPTIONS=(--rw=randwrite --bs=4k --ioengine=psync) ;;
    randwrite-qd32*) OPTIONS=(--rw=randwrite --bs=4k --ioengine=libaio --iodepth=32) ;;
    seqwrite) OPTIONS=(--rw=write --bs=1M --ioengine=libaio --iodepth=4 --zero_buffers) ;;
    randread* | snapread-rand) OPTIONS=(--rw=randread --bs=4k --ioengine=libaio --iodepth=32) ;;
    snapread-seq*) OPTIONS=(--rw=read --bs=1M --ioengine=libaio --iodepth=4) ;;
    *) fail "no load $1" ;;
    esac
}

# measure SUBJECT LOAD TARGET [DRAIN: a minor] [OFFSET, bytes]: runs the load on a file or device, touching each
# block once, and notes what it took.
measure() {
    local subject=$1 load=$2 target=$3 drain=${4:-} offset=${5:-0}
    local before after b0 b a z seconds drained busy took
    load_options "$load"
    rm -f "$W/before" "$W/after" "$W/fio"
    quiet
    # Both looks at the clock happen in fio's own process, right before and after its requests: its start
    # and its summing up are not in between. The first one is taken twice: the difference is what a look costs.
    fio --name=b --filename="$target" --size="${FILE_MIB}M" --offset="$offset" --direct=1 \
        --randseed=7 --allow_file_create=0 --overwrite=1 --invalidate=0 --fallocate=none --thread \
        --output-format=json --output="$W/fio" "${OPTIONS[@]}" \
        --exec_prerun="/t/bench/clock $W/before $BY start" \
        --exec_postrun="/t/bench/clock $W/after $BY end $drain" >"$W/fio.out" 2>&1 ||
        { cat "$W/fio.out"; fail "fio $load on $target"; }
    mapfile -t before <"$W/before"
    mapfile -t after <"$W/after"
    [ ${#before[@]} = 2 ] && [ ${#after[@]} -ge 1 ] || fail "no times: $(cat "$W/fio.out")"
    N=$((N + 1))
    cp "$W/fio" "/results/fio-$N.json"
    # Nanoseconds, ticks, ticks that nobody used.
    b0=(${before[0]}) b=(${before[1]}) a=(${after[0]}) z=(${after[-1]})
    seconds=$((a[0] - b[0])) drained=$((z[0] - b[0]))
    busy=$((z[1] - b[1] - (z[2] - b[2]) - ((b[1] - b0[1]) - (b[2] - b0[2]))))
    echo "{\"load\": \"$load\", \"subject\": \"$subject\", \"by\": \"$BY\", \"ns\": $seconds, \"drained_ns\": $drained," \
        "\"instructions\": $busy, \"fio\": \"fio-$N.json\"}" >>"$OUT"
    # For again_if_noisy.
    [ "$BY" = wall ] && took=$seconds || took=$busy
    echo "$load $subject $took" >>"$W/took"
    say "$load $subject: $((seconds / 1000000)) ms, $((drained / 1000000)) until drained, $((busy / 1000000)) M instructions"
}

# again_if_noisy COMMAND...: runs measurements that begin and end with the bare device, and again when what it did before and
# after something differs by more than 15 %: then the machine was busy with something else.
again_if_noisy() {
    local from try
    touch "$OUT"
    from=$(wc -l <"$OUT")
    for try in $(seq "$TRIES"); do
        : >"$W/took"
        "$@"
        awk '$2 == "bare" {
                if ($1 in last && ($3 > 1.15 * last[$1] || last[$1] > 1.15 * $3)) noisy = 1
                last[$1] = $3
            } END {exit noisy}' "$W/took" && return 0
        say "noisy: the bare device differs by more than 15 %"
        [ "$try" != "$TRIES" ] || break
        head -n "$from" "$OUT" >"$W/kept"
        cp "$W/kept" "$OUT"
    done
}

# samples COMMAND...: as often as SAMPLES says; each of them again if noisy.
samples() {
    local n
    for n in $(seq "$SAMPLES"); do
        again_if_noisy "$@"
    done
}

# A filesystem of 4 KiB blocks with one file, whose every block has been written. All that the filesystem keeps
# lies at its start (-G, no copies of the superblock), so that the file can lie in one piece.
make_origin() {
    local dev=$1
    wipefs -qa "$dev"
    mkfs.ext4 -q -F -b 4096 -G 256 -O sparse_super2 -E num_backup_sb=0,nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$dev"
    mount -o noatime "$dev" "$M"
    fallocate -l "${FILE_MIB}M" "$M/file"
    dd if=/dev/zero of="$M/file" bs=1M count="$FILE_MIB" oflag=direct conv=notrunc status=none
    sync
    umount "$M"
}

mounted() { mount -o noatime "$1" "$M"; }

# The module, and DISK tracked with minor 0.
track() {
    insmod /t/bin/dattobd.ko "$@"
    dbdctl setup-snapshot -f "$((FILE_MIB + FILE_MIB / 4 + 32))" "$DISK" "$M/.cow0" 0
    udevadm settle
}

untrack() {
    dbdctl destroy 0
    udevadm settle
    rmmod dattobd
}

# Marks each region of 4 MiB that the file lies in: a first write to a region waits for its mark.
touch_regions() {
    load_options first-touch
    fio --name=t --filename="$M/file" --size="${FILE_MIB}M" --direct=1 --allow_file_create=0 --overwrite=1 \
        --fallocate=none --thread "${OPTIONS[@]}" >"$W/fio.out" || fail "fio: $(cat "$W/fio.out")"
}

# Where the file begins on its device, in bytes. It must lie there in one piece.
file_start() {
    local start len
    read -r start len < <(dbdtest places "$M/file")
    [ "$len" = $((FILE_MIB * 256)) ] || fail "the file lies in pieces: $(dbdtest places "$M/file")"
    echo $((start * 4096))
}

# row WHAT VALUE [DIVISOR] [GIB] [PERCENT]: a figure that is no ratio, of a device of that size with so much changed.
row() {
    local value
    value=$(awk "BEGIN {printf \"%.6g\", ($2) / (${3:-1})}")
    echo "{\"row\": \"$1\", \"value\": $value, \"by\": \"$BY\", \"gib\": ${4:-null}, \"percent\": ${5:-null}}" >>"$OUT"
    say "$1: $value${4:+ ($4 GiB, $5 % changed)}"
}
