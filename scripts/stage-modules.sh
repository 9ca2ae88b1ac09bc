#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# stage-modules.sh TARGET: puts the built modules where a VM finds them.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: stage-modules.sh TARGET}"
bin=$TOP/target/vm-bin
mkdir -p "$bin"
cp "$TOP/target/module/$T_NAME/dattobd.ko" "$bin/dattobd.ko"
if [ -e "$TOP/target/module/$T_NAME/test/dbd_testdisk.ko" ]; then
    cp "$TOP/target/module/$T_NAME/test/"*.ko "$bin/"
fi
if [ -e "$TOP/target/module/$T_NAME/faults/dattobd.ko" ]; then
    cp "$TOP/target/module/$T_NAME/faults/dattobd.ko" "$bin/dattobd-faults.ko"
fi
