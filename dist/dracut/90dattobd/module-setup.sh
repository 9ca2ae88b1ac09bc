#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# Puts dbdctl, the module and the udev rule into dracut's initramfs, so that a tracked root filesystem is
# announced before it is mounted.

# Where dbdctl is: dracut itself looks in a few folders only, and `make install` has another one.
dattobd_dbdctl() {
    PATH=$PATH:/usr/local/sbin command -v dbdctl
}

check() {
    if ! dattobd_dbdctl >/dev/null; then
        dinfo "dattobd: there is no dbdctl, a tracked root filesystem will not be picked up"
        return 1
    fi
    return 0
}

depends() {
    echo udev-rules
    return 0
}

installkernel() {
    # "=" would be a folder; a kernel that the module is not installed for boots as ever.
    # shellcheck disable=SC2154 # dracut sets hostonly
    hostonly='' instmods dattobd loop ext4 xfs
    return 0
}

install() {
    inst "$(dattobd_dbdctl)" /usr/sbin/dbdctl
    inst_multiple modprobe
    inst_rules 59-dattobd.rules
    inst_multiple -o /etc/modprobe.d/dattobd.conf
    # shellcheck disable=SC2154 # dracut sets moddir
    inst_hook pre-mount 20 "$moddir/dattobd-pre-mount.sh"
}
