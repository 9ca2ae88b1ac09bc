#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# stage-modules.sh TARGET: puts the built modules where a VM finds them. DBD_DEBUG=1: those for the debug kernel, with
# the tools in a folder of their own.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: stage-modules.sh TARGET}"
for_kernel
bin=$TOP/target/vm-bin
if [ "${DBD_DEBUG:-0}" = 1 ]; then
    mkdir -p "$TOP/target/debug"
    cp -u -r "$bin/." "$TOP/target/debug/bin"
    bin=$TOP/target/debug/bin
fi
mkdir -p "$bin"
cp "$TOP/$MODULES/dattobd.ko" "$bin/dattobd.ko"
if [ -e "$TOP/$MODULES/test/dbd_testdisk.ko" ]; then
    cp "$TOP/$MODULES/test/"*.ko "$bin/"
fi
if [ -e "$TOP/$MODULES/faults/dattobd.ko" ]; then
    cp "$TOP/$MODULES/faults/dattobd.ko" "$bin/dattobd-faults.ko"
fi
