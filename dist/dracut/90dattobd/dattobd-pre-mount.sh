#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Announces a tracked root filesystem to dattobd, before fsck and the mount. Never stops a boot.
# dracut sources this file: no exit, and no variable but its own.

# Boot with dattobd=off to leave it out.
case " $(cat /proc/cmdline) " in
*" dattobd=off "*) ;;
*)
    # With systemd, dracut does not wait for the device before this.
    # shellcheck disable=SC2154 # dracut sets root
    case $root in
    block:/*) dbdctl boot --root "${root#block:}" --wait 30 ;;
    esac
    ;;
esac
:
