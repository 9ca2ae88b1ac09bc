# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by what runs in the recorded VM and in those that look at the cuts.

# What the file N of the writer `synced` holds.
synced_file() { head -c $((4096 + $2 * 7919 % 60000)) < <(yes "synced file $2 of $1" 2>/dev/null); }

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
