#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# listing.sh: docs/testing.md names each test program, and none that is not there.
set -euo pipefail
cd "$(dirname "$0")/../.."
there=$(find tests/vm/cases tests/stress -type f -name '[ts][0-9]*' -printf '%f\n' | sort -u)
named=$(grep -oE '`[ts][0-9]+-[a-z0-9-]+`' docs/testing.md | tr -d '`' | sort -u)
if ! diff <(echo "$there") <(echo "$named") >&2; then
    echo "error: docs/testing.md does not list the tests that there are (<: not listed, >: not there)" >&2
    exit 1
fi
