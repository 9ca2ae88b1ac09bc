#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# test-host.sh TARGET: tests of the crates and of the module's pure logic, with the target's toolchain.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: test-host.sh TARGET}"
in_chroot env RUSTFLAGS= bash -euc '
    cd /dattobd
    dir=/dattobd/target/$1
    cargo fmt --all --check
    cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
    cargo clippy --locked --workspace --all-targets --target-dir "$dir" -- -D warnings
    cargo test --locked --workspace --target-dir "$dir"
    RUSTFLAGS="--cfg loom" cargo test --locked -p cow-logic --release --test loom_claims --test loom_regions \
        --target-dir "$dir/loom"
    python3 tests/bench/test_results.py --quiet
' test "$T_NAME"
"$TOP/tests/host/listing.sh"
"$TOP/tests/host/fuzz.sh" "$T_NAME" 10
if [ -x "$TOP/tests/host/miri.sh" ]; then "$TOP/tests/host/miri.sh"; fi
