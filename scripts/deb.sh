#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# deb.sh TARGET...: makes the Debian packages in target/deb, from what was built before: the tools of the
# first target, and the modules of all. In the first one's chroot.
. "$(dirname "$0")/lib.sh"
target "${1:?usage: deb.sh TARGET...}"
targets=("$@")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -1)
out=$TOP/target/deb
build=$out/build/dattobd
log=$out/build.log
packages=(debhelper dh-dkms dpkg-dev lintian)

# Packages that only this script needs: the chroot stays what it is for everybody else.
in_chroot_has() {
    for p in "${packages[@]}"; do
        [ -e "$ROOT/var/lib/dpkg/info/$p.list" ] || return 1
    done
}
install_packages() {
    in_chroot_has && return
    say "installing ${packages[*]}"
    in_chroot env DEBIAN_FRONTEND=noninteractive bash -euc \
        'apt-get update -q; apt-get install -qy --no-install-recommends "$@"' install "${packages[@]}" >&2
}

# fill FILE: replaces the placeholders of a template.
fill() {
    sed "s/@KERNEL@/$kernel/g; s/@KERNEL_VERSION@/$kernel_version/g; s/@GCC@/$gcc/g; s/@GXX@/$gxx/g
        s/@MAINTAINER@/$maintainer/g" "$1"
}

# A target's module, and what belongs to its package.
stage_module() {
    local kernel kernel_version f name deb=$TOP/dist/debian
    target "$1"
    kernel=$(cat "$STATE/kernel")
    name=dattobd-modules-$kernel
    # With MODVERSIONS off, only the package's exact version is known to be the kernel that we built for.
    kernel_version=$(in_chroot dpkg-query -W -f '${Version}' "linux-image-$kernel")
    mkdir "$build/modules/$kernel"
    cp "$TOP/target/module/$T_NAME/dattobd.ko" "$build/modules/$kernel/"
    for f in "$deb"/dattobd-modules.*.in; do
        fill "$f" >"$build/debian/$name.$(basename "${f#"$deb/dattobd-modules."}" .in)"
    done
    fill "$deb/control-modules.in" >>"$build/debian/control"
}

stage() {
    local maintainer date gcc='' gxx='' kernel='' kernel_version='' deb=$TOP/dist/debian t
    # DKMS takes whichever compiler the kernel was built with.
    while read -r t; do
        gcc="${gcc:+$gcc | }gcc-$t" gxx="${gxx:+$gxx | }g++-$t"
    done < <(awk '!/^#/ && NF {print $6}' "$TOP/scripts/targets.conf" | sort -u)
    maintainer=$(git -C "$TOP" log -1 --format='%an <%ae>' 2>/dev/null || echo 'dattobd <root@localhost>')
    date=$(git -C "$TOP" log -1 --format=%cD 2>/dev/null || date -R)
    rm -rf "$out"
    mkdir -p "$build"/{debian,bin,man,modules,src,completions}
    cp -r "$TOP/dist" "$TOP/README.md" "$TOP/INSTALL.md" "$TOP/docs/json.md" "$build/"
    cp "$TOP/target/$T_NAME/release/"{dbdctl,update-img} "$build/bin/"
    cp -r "$TOP/kernel" "$TOP/ioctl-abi" "$TOP/Kbuild" "$TOP/Cargo.toml" "$build/src/"
    # What a build in place leaves behind.
    find "$build/src" \( -name '*.o' -o -name '.*.cmd' -o -name '*.mod*' -o -name '*.rmeta' \) -delete
    rm -r "$build/src/kernel/logic/tests"
    mkdir "$build/src/scripts"
    cp "$TOP/scripts/"{lib.sh,targets.conf,kdir.sh,kernel-meta.sh,dkms-prepare.sh} "$build/src/scripts/"
    chmod a-x "$build/src/scripts/lib.sh"

    cp "$deb"/{rules,copyright} "$deb"/dattobd-tools.* "$build/debian/"
    fill "$deb/control.in" >"$build/debian/control"
    printf 'dattobd (%s) unstable; urgency=medium\n\n  * Built from the sources of this version.\n\n -- %s  %s\n' \
        "$version" "$maintainer" "$date" >"$build/debian/changelog"
    for t in "${targets[@]}"; do stage_module "$t"; done
    target "${targets[0]}"
}

make_packages() {
    in_chroot env KERNELS="$(ls "$build/modules")" VERSION="$version" DEB_BUILD_OPTIONS=nocheck bash -euc '
        cd /dattobd/target/deb/build/dattobd
        strip --strip-debug modules/*/dattobd.ko
        bin/dbdctl man man
        for shell in bash zsh fish; do bin/dbdctl completions $shell >completions/dbdctl.$shell; done
        # Nothing is compiled here: build-essential is not needed.
        dpkg-buildpackage -d -b -us -uc
    ' >"$log" 2>&1 || { tail -20 "$log" >&2; die "building the packages failed: $log"; }
    mv "$out"/build/*.deb "$out/build/"*.changes "$out/build/"*.buildinfo "$out/"
    rm -rf "$out/build"
}

install_packages
locked "$TOP/target/deb.lock" stage
make_packages
say "lintian"
in_chroot bash -euc 'lintian --allow-root --tag-display-limit 0 --fail-on error,warning /dattobd/target/deb/*.changes' >&2 ||
    die "lintian is not content"
ls -1 "$out"/*.deb
