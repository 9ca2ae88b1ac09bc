#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# kernel-meta.sh RELEASE VERSION STORE: rebuilds the Rust metadata that Debian's header packages leave
# out and drops it into /usr/src/linux-headers-RELEASE, so that modules in Rust can be built as any
# other. VERSION is the version of the packages; linux-source must be there in just that version. A
# rebuild takes minutes and is kept in STORE. Runs where the compilers are: in the build chroot, or on a
# machine that runs such a kernel itself.
set -euo pipefail
export LC_ALL=C
release=$1 version=$2 store=$3
headers=/usr/src/linux-headers-$release
config=$headers/.config
series=$(cut -d. -f1,2 <<<"$release")
kept=$store/rust-metadata-$release-$version.tar.xz

die() { printf 'error: %s\n' "$*" >&2; exit 1; }
config_text() { sed -n "s/^CONFIG_$1=\"\(.*\)\"/\1/p" "$config"; }

# The compilers must be those that built the kernel: Rust has no stable ABI, not even between builds
# of one version.
[ -e "$config" ] || die "$headers is not there: install linux-headers-$release"
grep -q '^CONFIG_RUST=y' "$config" || die "$release was built without CONFIG_RUST=y: no module in Rust can be loaded"
cc=$(config_text CC_VERSION_TEXT | cut -d' ' -f1)       # x86_64-linux-gnu-gcc-14
gcc=${cc##*-}
missing=()
for tool in "$cc" "gcc-$gcc" "g++-$gcc" rustc bindgen make bc bison flex pahole openssl pkg-config xz; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} = 0 ] || die "missing: ${missing[*]}. On Debian: apt install gcc-$gcc g++-$gcc rustc rust-src" \
    "bindgen clang libclang-dev lld llvm make bc bison flex pahole openssl libssl-dev libelf-dev pkgconf xz-utils"
[ "$(rustc --version)" = "$(config_text RUSTC_VERSION_TEXT)" ] ||
    die "$release was built by '$(config_text RUSTC_VERSION_TEXT)', but rustc here is '$(rustc --version)'"

rust_symbols='^(_R|rust_helper_)'

# Symbol names carry a hash of the crate and of the compiler, so equal names mean an equal build.
# With MODVERSIONS off nothing else would stop a module that was built against other metadata.
verify() {
    local theirs=$1/theirs ours=$1/ours
    awk -v r="$rust_symbols" '$3 == "vmlinux" && $2 ~ r {print $2}' "$headers/Module.symvers" | sort -u >"$theirs"
    grep -E "$rust_symbols" "$1/exports" | sort -u >"$ours"
    [ -s "$theirs" ] || die "$headers/Module.symvers names no Rust symbol: cannot check the metadata against it"
    if ! cmp -s "$theirs" "$ours"; then
        comm -3 "$theirs" "$ours" | head -8 >&2
        die "the rebuilt Rust metadata does not agree with $release: of its $(wc -l <"$theirs") Rust symbols" \
            "$(comm -12 "$theirs" "$ours" | wc -l) are the same"
    fi
    echo "$release: all $(wc -l <"$theirs") exported Rust symbols agree"
}

rebuild() {
    local work=$1 run
    mkdir -p "$work/src" "$work/obj" "$work/deb"
    local tarball=/usr/src/linux-source-$series.tar.xz
    # Without a network, the installed package serves as well.
    if ! [ -e "$tarball" ] ||
        [ "$(dpkg-query -W -f '${Version}' "linux-source-$series" 2>/dev/null)" != "$version" ]; then
        (
            cd "$work/deb"
            apt-get download "linux-source-$series=$version" ||
                die "linux-source-$series has no version $version here: run apt-get update, or upgrade to a kernel that is packaged now"
            dpkg-deb -x linux-source-*.deb .
        )
        tarball=$work/deb$tarball
    fi
    tar -C "$work/src" --strip-components=1 -xf "$tarball"
    rm -rf "$work/deb"
    cp "$config" "$work/obj/.config"
    # The release string must come out identical.
    local base
    base=$(make -s -C "$work/src" kernelversion)
    echo "${release#"$base"}" >"$work/obj/localversion"
    run=(make -C "$work/src" O="$work/obj" ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- CC="$cc"
        HOSTCC="gcc-$gcc" HOSTCXX="g++-$gcc" LIBCLANG_PATH="$(libclang)")
    "${run[@]}" olddefconfig
    "${run[@]}" "-j$(nproc)" prepare
    [ "$(cat "$work/obj/include/config/kernel.release")" = "$release" ] ||
        die "the sources of $version make $(cat "$work/obj/include/config/kernel.release"), not $release"

    local drop=$work/drop
    mkdir -p "$drop/headers/rust/kernel" "$drop/kbuild/scripts"
    cp "$work"/obj/rust/*.rmeta "$work"/obj/rust/lib*.so "$drop/headers/rust/"
    find "$work/obj/rust/kernel" -maxdepth 1 -name 'generated_*.rs' -exec cp {} "$drop/headers/rust/kernel/" \;
    cp "$work/obj/scripts/target.json" "$drop/kbuild/scripts/"
    sed -n 's/^EXPORT_SYMBOL_RUST_GPL(\(.*\));/\1/p' "$work"/obj/rust/exports_*_generated.h >"$drop/exports"
}

# For bindgen: the newest there is.
libclang() {
    find /usr/lib/llvm-*/lib -maxdepth 1 -name 'libclang*.so' -printf '%h\n' | sort -V | tail -1
}

mkdir -p "$store"
work=$(mktemp -d "$store/rust-metadata.XXXXXX")
log=$store/rust-metadata.log
trap 'rm -rf "$work"' EXIT
if [ -e "$kept" ]; then
    mkdir "$work/drop"
    tar -C "$work/drop" -xJf "$kept"
else
    echo "rebuilding the Rust metadata of $release (some minutes), log: $log"
    # A plain subshell, not one in a condition: in there `set -e` would not work.
    trap 'status=$?; rm -rf "$work"; [ $status = 0 ] || tail -15 "$log" >&2' EXIT
    (rebuild "$work") >"$log" 2>&1
    trap 'rm -rf "$work"' EXIT
fi
verify "$work/drop"
if [ ! -e "$kept" ]; then
    tar -C "$work/drop" -cf - headers kbuild exports | xz -T0 -3 >"$kept.new"
    mv "$kept.new" "$kept"
fi
cp -r "$work/drop/headers/." "$headers/"
cp -r "$work/drop/kbuild/." "$(dirname "$(readlink -f "$headers/scripts")")/"
