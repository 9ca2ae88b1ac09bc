#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# fuzz.sh TARGET [SECONDS]: fuzzes what reads COW files and private blocks, guided by coverage (libFuzzer), with
# overflow checks and debug assertions. Stable compilers do; no sanitizer is needed, as nothing there is unsafe.
# What was learnt is kept in target/fuzz/corpus; an input that fails goes to target/fuzz/failed. SEED=N.
. "$(dirname "$0")/../../scripts/lib.sh"
target "${1:?usage: fuzz.sh TARGET [SECONDS]}"
in_chroot env CXX="g++-$T_GCC" SEED="${SEED:-1}" bash -euc '
    seconds=$1
    cd /dattobd/tests/fuzz
    coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
    # --target: the flags are not for build scripts.
    RUSTFLAGS=$(echo $coverage --cfg fuzzing) cargo build --locked --release --bins --quiet \
        --target x86_64-unknown-linux-gnu --target-dir /dattobd/target/fuzz
    bin=/dattobd/target/fuzz/x86_64-unknown-linux-gnu/release
    passed=0 failed=0
    for name in cow_file private_blocks index_page; do
        mkdir -p /dattobd/target/fuzz/{corpus/$name,failed}
        log=/dattobd/target/fuzz/$name.log
        if "$bin/$name" -seed="$SEED" -max_total_time="$seconds" -max_len=65536 -len_control=50 -rss_limit_mb=1024 \
            -timeout=20 -artifact_prefix=/dattobd/target/fuzz/failed/$name- /dattobd/target/fuzz/corpus/$name \
            >"$log" 2>&1; then
            passed=$((passed + 1))
            echo "PASS $name: $(sed -n "s/^Done \([0-9]*\) runs.*/\1 inputs/p" "$log"), $(
                sed -n "s/.* cov: \([0-9]*\) .*/\1/p" "$log" | tail -1) places reached"
        else
            failed=$((failed + 1))
            echo "FAIL $name"
            grep -vE "^#[0-9]+" "$log" | tail -20 | sed "s/^/    | /"
        fi
    done
    echo "fuzzing: $passed passed, $failed failed"
    [ $failed = 0 ]
' fuzz "${2:-60}"
