#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Model checks of the module's lock-free protocols (seconds; with LOOM_EXHAUSTIVE=1 eight minutes).
# A target directory of its own, so that the flag does not make cargo build everything else again.
set -eu
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/loom"
export RUSTFLAGS="--cfg loom"
exec cargo test --release -p cow-logic --test loom_claims --test loom_regions "$@"
