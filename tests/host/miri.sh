#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# The tests of the module's pure logic under Miri, which finds undefined behaviour in its unsafe code.
# Miri is not in Debian: a nightly toolchain of rustup has it (rustup +nightly component add miri).
set -eu
cd "$(dirname "$0")/../.."
if ! cargo +nightly miri --version >/dev/null 2>&1; then
	echo "************************************************************************" >&2
	echo "** SKIPPED: Miri. No nightly toolchain with Miri is installed here.   **" >&2
	echo "** Undefined behaviour in the maps' unsafe code was NOT looked for.   **" >&2
	echo "** To have it: rustup toolchain install nightly --component miri      **" >&2
	echo "************************************************************************" >&2
	exit 0
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/miri"
export MIRIFLAGS="${MIRIFLAGS:--Zmiri-strict-provenance}"
export CI="${CI:-true}" # no questions asked
exec cargo +nightly miri test -p cow-logic --test logic "$@"
