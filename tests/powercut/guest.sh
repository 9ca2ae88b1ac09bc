# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by what runs in the recorded VM and in those that look at the cuts.

# What the file N of the writer `synced` holds.
synced_file() { head -c $((4096 + $2 * 7919 % 60000)) < <(yes "synced file $2 of $1" 2>/dev/null); }

# mount_it FS DEVICE: mounts it where it belongs. A cut may have torn ext4's superblock, which has two
# sectors: then the mount refuses it, and a repair, tracked as all writes are, has to come first. Of xfs it may have
# torn any block of several sectors: its recovery leaves a block alone whose first sector is the newer one, and then
# finds the checksum wrong. The host knows whether anything was torn.
mount_it() {
    if [ "$1" = ext4 ] && grep -q 'checksum does not match' <<<"$(LC_ALL=C dumpe2fs -h "$2" 2>&1)"; then
        echo "result repaired=1"
        e2fsck -fy "$2" >"$W/repair" 2>&1 || [ $? -le 1 ] || { cat "$W/repair"; fail "the repair has failed"; }
    fi
    mount -o discard "$2" "$M" 2>"$W/refused" && return
    if [ "$1" = xfs ] && grep -qE 'log mount/recovery failed: error -(74|117)' <<<"$(dmesg | tail -40)"; then
        echo "result repaired=1"
        xfs_repair -L "$2" >"$W/repair" 2>&1 || { cat "$W/repair"; fail "the repair has failed"; }
        mount -o discard "$2" "$M"
        return
    fi
    cat "$W/refused"
    return 1
}

# comes_to STATE: minor 0 is in one of these states within a moment.
comes_to() {
    local n state
    for n in $(seq 100); do
        state=$(info 0 state)
        case " $* " in *" $state "*) return 0 ;; esac
        sleep 0.1
    done
    fail "minor 0 stays in state $state, error $(info 0 error)"
}
