#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# dkms-prepare.sh KDIR: kdir.sh for DKMS, which runs as root and may have no home folder.
export XDG_CACHE_HOME=/var/cache
exec "$(dirname "$0")/kdir.sh" "$@"
