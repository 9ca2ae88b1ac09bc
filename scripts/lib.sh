# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Shared by the scripts in this folder: where things are, and how to fail.
set -euo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/dattobd

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# target NAME: sets T_NAME, T_SUITE, ... from targets.conf.
target() {
    local line
    line=$(awk -v n="$1" '$1 == n' "$TOP/scripts/targets.conf")
    [ -n "$line" ] || die "unknown target '$1': see scripts/targets.conf"
    # shellcheck disable=SC2034  # read by the scripts that source this one
    read -r T_NAME T_SUITE T_EXTRA T_LOCAL T_FLAVOUR T_GCC T_LLVM <<<"$line"
    ROOT=$CACHE/$T_NAME/root
    STATE=$CACHE/$T_NAME
}

# for_kernel: which kernel modules are built for: the packaged one or, with DBD_DEBUG=1, the debug kernel. Sets its
# release, its build directory in the chroot, the arguments of make that name the compiler, and where results go.
for_kernel() {
    # shellcheck disable=SC2034  # read by the scripts that source this one
    if [ "${DBD_DEBUG:-0}" = 1 ]; then
        KERNEL=$(cat "$STATE/debug-kernel/kernel")
        BUILD=/cache/$T_NAME/debug-kernel/obj COMPILER=LLVM=-$T_LLVM MODULES=target/module/$T_NAME-debug
    else
        KERNEL=$(cat "$STATE/kernel")
        BUILD=/lib/modules/$KERNEL/build COMPILER=CC=x86_64-linux-gnu-gcc-$T_GCC MODULES=target/module/$T_NAME
    fi
}

# locked FILE COMMAND...: one at a time, so that several checkouts can share the cache.
locked() {
    local lock=$1
    shift
    mkdir -p "$(dirname "$lock")"
    (
        flock 9
        "$@"
    ) 9>"$lock"
}

# The Debian mirror that this machine uses, as apt itself understands its sources.
mirror() {
    local m list
    m=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u |
        awk '!found && /\/debian\/*$|^mirror\+file:.*debian\.list\/*$/ {found = $0} END {print found}')
    # Debian's cloud images name a file that lists the mirrors.
    if [ "${m#mirror+file:}" != "$m" ]; then
        list=$(sed 's|^mirror+file:/*|/|; s|/*$||' <<<"$m")
        m=$(awk '!found && /^(http|https|file):/ {found = $1} END {print found}' "$list")
    fi
    [ -n "$m" ] || die "no Debian mirror (an address that ends in /debian) among this machine's apt sources"
    echo "$m"
}

# in_chroot COMMAND...: runs in the target's chroot, with the checkout at /dattobd and the cache at
# /cache. The mounts live in a namespace of their own and vanish with it.
in_chroot() {
    TOP=$TOP CACHE=$CACHE ROOT=$ROOT unshare --mount --propagation private bash -c '
        set -e
        mkdir -p "$ROOT/dattobd" "$ROOT/cache"
        mount --rbind /dev "$ROOT/dev"
        mount -t proc proc "$ROOT/proc"
        mount --bind /sys "$ROOT/sys"
        mount --bind "$TOP" "$ROOT/dattobd"
        mount --bind "$CACHE" "$ROOT/cache"
        # A machine behind a proxy has certificates of its own: the chroot needs them too.
        ca=
        for file in "${SSL_CERT_FILE:-}" "${CARGO_HTTP_CAINFO:-}" /etc/ssl/certs/ca-certificates.crt; do
            [ -z "$ca" ] && [ -f "$file" ] && cp -L "$file" "$ROOT/etc/ssl/host-ca.crt" && ca=1
        done
        [ -z "$ca" ] || set -- SSL_CERT_FILE=/etc/ssl/host-ca.crt \
            CARGO_HTTP_CAINFO=/etc/ssl/host-ca.crt "$@"
        # A build or a VM ends with the script that started it.
        exec setpriv --pdeathsig TERM chroot "$ROOT" /usr/bin/env -u CARGO_HOME -u RUSTUP_HOME -u RUSTUP_TOOLCHAIN \
            HOME=/root LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin \
            CARGO_HOME=/cache/cargo "$@"
    ' in_chroot "$@"
}
