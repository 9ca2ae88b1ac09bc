# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by the stress programs. Each runs in a VM by itself, as the cases do, by `CASE_DIR=stress
# harness/run-cases NAME`, and takes SEED, which all its choices follow from, and COUNT, which says
# how long it goes on (its header: `# count: SHORT LONG`). What it has done it counts with `counted`.
. /t/cases/lib.sh
SEED=${SEED:-1}
COUNT=${COUNT:?a stress program sets its COUNT}
ME=$(basename "$0")
say "SEED=$SEED COUNT=$COUNT $ME"
RANDOM=$SEED
: >/results/counts
mkfifo "$W/never"

fail() {
    say "FAILED: $*"
    say "repeat with: make stress ONLY=$ME SEED=$SEED COUNT=$COUNT"
    exit 1
}

# counted WHAT N: for docs/reliability.md.
counted() { echo "$1 $2" >>/results/counts; }

# What the cases' own cleanup does not know: frozen filesystems, suspended devices, swap, more mounts.
eval "case_$(declare -f cleanup)"
cleanup() {
    local mount name
    trap - ERR
    set +e
    touch "$W/stop"
    for name in $(dmsetup ls 2>/dev/null | awk '$2 ~ /^\(/ {print $1}'); do dmsetup resume "$name" 2>/dev/null; done
    for mount in $(findmnt -rno TARGET | grep '^/mnt/'); do fsfreeze -u "$mount" 2>/dev/null; done
    swapoff -a
    case_cleanup
    for mount in $(findmnt -rno TARGET | grep '^/mnt/' | tac); do umount "$mount" 2>/dev/null || umount -l "$mount"; done
}

# one_of WORD...: sets ONE to one of them. Not printed: RANDOM in a subshell does not follow from the seed.
one_of() { shift $((RANDOM % $#)); ONE=$1; }

# nap MILLISECONDS: up to so long.
nap() { local n=$((RANDOM % $1)); sleep "$((n / 1000)).$(printf %03d $((n % 1000)))"; }

# in_time SECONDS COMMAND...: what does not end has hung. Where everybody waits then the kernel's log says.
in_time() {
    local seconds=$1 status=0 look
    shift
    # Just before: afterwards it is not there any more. No process of its own that would stay behind.
    (read -rt $((seconds * SLOW - 2)) <>"$W/never" || echo w >/proc/sysrq-trigger) &
    look=$!
    timeout -k 5 "$seconds" "$@" || status=$?
    kill $look 2>/dev/null || true
    wait $look 2>/dev/null || true
    [ $status != 124 ] && [ $status != 137 ] || fail "hangs: $*"
    return $status
}
