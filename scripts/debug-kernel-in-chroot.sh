#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# debug-kernel-in-chroot.sh STORE RELEASE VERSION LLVM: the part of debug-kernel.sh that runs inside the chroot.
# VERSION is that of the packaged kernel RELEASE, whose sources are taken; LLVM the number of the clang. Leaves
# in STORE: src and obj (modules are built against obj), vmlinuz, initrd.img, modules.tar, kernel (its release).
set -euo pipefail
store=$1 packaged=$2 version=$3 llvm=$4
config=/dattobd/tests/debug/config
series=$(cut -d. -f1,2 <<<"$packaged")

die() { printf 'error: %s\n' "$*" >&2; exit 1; }

if [ "$(cat "$store/src.version" 2>/dev/null)" != "$version" ]; then
    rm -rf "$store/src" "$store/obj" "$store/src.version"
    mkdir -p "$store/src" "$store/deb"
    (
        cd "$store/deb"
        apt-get download "linux-source-$series=$version"
        dpkg-deb -x linux-source-*.deb .
    )
    tar -C "$store/src" --strip-components=1 -xf "$store/deb/usr/src/linux-source-$series.tar.xz"
    rm -rf "$store/deb"
    echo "$version" >"$store/src.version"
fi
mkdir -p "$store/obj"
# For a kernel with KASAN and Rust only clang will do. It must be the clang of rustc's LLVM or near it.
run=(make -C "$store/src" O="$store/obj" ARCH=x86 LLVM="-$llvm" LIBCLANG_PATH="/usr/lib/llvm-$llvm/lib"
    KBUILD_BUILD_USER=dattobd KBUILD_BUILD_HOST=debug)
"${run[@]}" -s KCONFIG_ALLCONFIG="$config" allnoconfig
missing=$(grep -E '^(CONFIG_|# CONFIG_[A-Z0-9_]* is not set)' "$config" | grep -vxFf "$store/obj/.config" || true)
[ -z "$missing" ] || die "this kernel does not take these lines of tests/debug/config:
$missing"
"${run[@]}" -s "-j$(nproc)" bzImage
"${run[@]}" -s "-j$(nproc)" modules
release=$(cat "$store/obj/include/config/kernel.release")

rm -rf "$store/mods"
"${run[@]}" -s INSTALL_MOD_PATH="$store/mods" modules_install
rm -f "$store/mods/lib/modules/$release/build"
tar -C "$store/mods" -cf "$store/modules.tar" lib
rm -rf "$store/mods"
cp "$store/obj/arch/x86/boot/bzImage" "$store/vmlinuz"

# As in vm-image-in-chroot.sh, but what the root file system needs is built in.
init=$store/initrd
rm -rf "$init"
mkdir -p "$init"/{bin,proc,sys,dev,ro,rw,new,modules}
cp /bin/busybox "$init/bin/"
install -m755 /dattobd/tests/vm/harness/initramfs-init "$init/init"
(cd "$init" && find . | cpio -o -H newc --quiet | gzip -1) >"$store/initrd.img"
rm -rf "$init"
echo "$release" >"$store/kernel"
