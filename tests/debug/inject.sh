# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by the programs that have memory refused to the module: failslab and fail_page_alloc, limited to allocations
# with the module's code in the backtrace and without a filesystem's, which is built into this kernel and not our
# matter here. Needs lib.sh.
ME=${0##*/}
INJECT="failslab fail_page_alloc"
F=/sys/kernel/debug
MANY=1000000
declare -A refused=([failslab]=0 [fail_page_alloc]=0)

# Into the kernel's log too: where it was when it hangs.
say() {
    printf '[%6.1f] %s\n' "$(cut -d' ' -f1 /proc/uptime)" "$*"
    echo "$ME: $*" >/dev/kmsg
}
knob() { local f; for f in $INJECT; do echo "$2" >$F/$f/"$1"; done; }
# Where the code of the filesystems lies: ext4, jbd2, xfs and what is linked between them. Not their init code, which
# lies behind all other code.
filesystems() {
    awk '$3 == "_etext" {end = $1}
        $2 ~ /[tT]/ && ($3 ~ /^ext4_/ || $3 ~ /^xfs_/) {print $1 | "sort >/run/filesystems"}
        END {close("sort >/run/filesystems"); while ((getline at <"/run/filesystems") > 0) if (at < end) print at}' \
        /proc/kallsyms | sed -n '1p; $p'
}
inject_ready() {
    local first last
    read -r first last <<<"$(/t/harness/leaks text dattobd)"
    knob require-start "$first"
    knob require-end "$last"
    read -r first last <<<"$(filesystems | tr '\n' ' ')"
    knob reject-start "0x$first"
    knob reject-end "0x$last"
    knob probability 0
    knob space 0
    knob verbose 0
    knob task-filter N
    knob ignore-gfp-wait N
    knob stacktrace-depth 28
    knob times $MANY
    echo N >$F/fail_page_alloc/ignore-gfp-highmem
    echo 0 >$F/fail_page_alloc/min-order
}
# count_refused: adds up what was refused since the last time.
count_refused() {
    local f
    for f in $INJECT; do
        refused[$f]=$((refused[$f] + MANY - $(cat $F/$f/times)))
        echo $MANY >$F/$f/times
    done
}
refused_in_all() { echo $((refused[failslab] + refused[fail_page_alloc])); }
