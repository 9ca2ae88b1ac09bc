#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kernel-in-chroot.sh STATE: the part of kernel.sh that runs inside the chroot. Needs T_FLAVOUR, T_FROM, T_GCC
# and T_LLVM. Writes the kernel release to STATE/kernel.
set -euxo pipefail
state=$1
export DEBIAN_FRONTEND=noninteractive
apt-get update

# Newest first. A kernel counts only if its own linux-source is there in exactly that version: with
# MODVERSIONS off, a module built against another one would load and corrupt memory.
apt-cache search --names-only "^linux-headers-7\..*-$T_FLAVOUR\$" | awk '{print $1}' |
    grep -vE -- '-(rt|unsigned)-' | sort -V -r >/tmp/headers
chosen=
while read -r headers; do
    release=${headers#linux-headers-}
    for version in $(apt-cache madison "$headers" | awk '{print $3}'); do
        series=$(echo "$release" | cut -d. -f1,2)
        apt-cache madison "linux-source-$series" | awk '{print $3}' | grep -qxF "$version" || continue
        apt-cache show "linux-image-$release=$version" >/dev/null 2>&1 || continue
        apt-get install -y -t "$T_FROM" "$headers=$version" "linux-image-$release=$version" || continue
        if grep -q '^CONFIG_RUST=y' "/usr/src/$headers/.config"; then
            chosen=$release
            break 2
        fi
        echo "$release has no CONFIG_RUST=y: not usable"
    done
done </tmp/headers
[ -n "$chosen" ] || {
    echo "no packaged 7.x kernel with CONFIG_RUST=y and a matching linux-source was found"
    exit 1
}

headers_dir=/usr/src/linux-headers-$chosen
rustc_text=$(sed -n 's/^CONFIG_RUSTC_VERSION_TEXT="\(.*\)"/\1/p' "$headers_dir/.config")
[ "$(rustc --version)" = "$rustc_text" ] || {
    echo "$chosen was built by '$rustc_text', the chroot has '$(rustc --version)'"
    exit 1
}

meta=$state/meta-$chosen-$version.tar.xz
if [ ! -e "$meta" ]; then
    work=$state/build-meta
    rm -rf "$work"
    mkdir -p "$work/src" "$work/obj"
    cd "$work"
    apt-get download "linux-source-$series=$version"
    dpkg-deb -x linux-source-*.deb deb
    tar -C src --strip-components=1 -xf deb/usr/src/linux-source-"$series".tar.xz
    rm -rf deb linux-source-*.deb
    cp "$headers_dir/.config" obj/.config
    # The release string must come out identical.
    base=$(make -s -C src kernelversion)
    echo "${chosen#"$base"}" >obj/localversion
    run=(make -C "$work/src" O="$work/obj" ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu-
        CC="x86_64-linux-gnu-gcc-$T_GCC" HOSTCC="gcc-$T_GCC" HOSTCXX="g++-$T_GCC"
        LIBCLANG_PATH="/usr/lib/llvm-$T_LLVM/lib")
    "${run[@]}" olddefconfig
    "${run[@]}" "-j$(nproc)" prepare
    [ "$(cat obj/include/config/kernel.release)" = "$chosen" ]
    mkdir -p drop/headers/rust/kernel drop/kbuild/scripts
    cp obj/rust/*.rmeta obj/rust/lib*.so drop/headers/rust/
    cp obj/rust/kernel/generated_*.rs drop/headers/rust/kernel/ || true
    cp obj/scripts/target.json drop/kbuild/scripts/

    # Every Rust symbol that the packaged kernel exports must be one that this build exports too.
    sed -n 's/.*\tEXPORT_SYMBOL_RUST_GPL(\(.*\));/\1/p; s/^EXPORT_SYMBOL_RUST_GPL(\(.*\));/\1/p' \
        obj/rust/exports_*_generated.h | sort -u >ours
    awk '$3 ~ /^rust\// {print $2}' "$headers_dir/Module.symvers" | sort -u >theirs
    missing=$(comm -13 ours theirs | grep -v '^rust_helper_' || true)
    [ -z "$missing" ] || {
        echo "the rebuilt Rust metadata does not match $chosen; exported there but not here:"
        echo "$missing" | head
        exit 1
    }
    echo "$(wc -l <theirs) exported Rust symbols compared"
    tar -C drop -cJf "$meta.new" .
    mv "$meta.new" "$meta"
    cd /
    rm -rf "$work"
fi
tmp=$(mktemp -d)
tar -C "$tmp" -xJf "$meta"
cp -r "$tmp/headers/." "$headers_dir/"
cp -r "$tmp/kbuild/." "$(dirname "$(readlink -f "$headers_dir/scripts")")/"
rm -rf "$tmp"
apt-get clean
echo "$chosen" >"$state/kernel"
