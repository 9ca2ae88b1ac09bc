#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# install.sh [KERNEL]: installs dattobd from this folder, without a network and without a compiler: the
# tools, and the module for the running kernel (or another installed one).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kernel=${1:-$(uname -r)}

die() { printf 'error: %s\n' "$*" >&2; exit 1; }
# The kernels that there is a module for.
kernels() {
	for deb in "$here"/packages/dattobd-modules-*.deb; do
		basename "$deb" | sed 's/^dattobd-modules-\(.*\)_[^_]*_[^_]*$/\1/'
	done
}

case $kernel in
-h | --help)
	sed -n '3,4s/^# //p' "$0"
	echo "Kernels: $(kernels | tr '\n' ' ')"
	exit 0
	;;
esac
[ "$(id -u)" = 0 ] || die "only root can install: use sudo"
command -v dpkg >/dev/null || die "this is not Debian: there is no dpkg"
[ "$(dpkg --print-architecture)" = amd64 ] || die "the packages are for amd64"
(cd "$here" && sha256sum --quiet -c SHA256SUMS) || die "files are missing or damaged: unpack the bundle again"

module=
for k in $(kernels); do
	[ "$k" != "$kernel" ] || module=$(echo "$here/packages/dattobd-modules-${k}_"*.deb)
done
[ -n "$module" ] || die "there is no module for $kernel in this bundle.
There are modules for: $(kernels | tr '\n' ' ')
Boot one of these kernels, or install packages/dattobd-dkms_*.deb, which builds the module and needs the
compilers for it (INSTALL.md)."

# Modules carry no checksums of the kernel's interfaces: the very same build of the kernel is a must.
want=$(dpkg-deb -f "$module" Depends | sed -n 's/.*linux-image-[^ ]* (= \([^)]*\)).*/\1/p')
have=$(dpkg-query -W -f '${Version}' "linux-image-$kernel" 2>/dev/null) ||
	die "the kernel $kernel does not come from Debian's package linux-image-$kernel: build the module for it (INSTALL.md)"
[ "$have" = "$want" ] ||
	die "linux-image-$kernel is version $have here, and the module was built for $want: install that version, or build the module (INSTALL.md)"

dpkg -i "$here"/packages/dattobd-tools_*.deb "$module"

if [ "$kernel" = "$(uname -r)" ]; then
	if [ -e /sys/module/dattobd ]; then
		echo "A dattobd module is loaded. The new one comes with the next boot, or with: dbdctl hand-over"
	elif ! modprobe dattobd; then
		die "everything is installed, but the module cannot be loaded. With Secure Boot it must be signed: see INSTALL.md"
	else
		echo "dattobd $(cat /sys/module/dattobd/version 2>/dev/null) is ready: see dbdctl --help"
	fi
fi
