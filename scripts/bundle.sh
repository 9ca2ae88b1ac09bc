#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
# bundle.sh: one file with the packages of target/deb, the modules in them, and an installer.
. "$(dirname "$0")/lib.sh"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$TOP/Cargo.toml" | head -1)
name=dattobd-$version-amd64
out=$TOP/target/bundle
debs=("$TOP"/target/deb/*.deb)
[ -e "${debs[0]}" ] || die "no packages in target/deb: run make bundle"
rm -rf "$out"
mkdir -p "$out/$name"/{packages,modules}
cp "${debs[@]}" "$out/$name/packages/"
# The bare modules as well, for machines without dpkg.
for deb in "$TOP"/target/deb/dattobd-modules-*.deb; do
    dpkg-deb -x "$deb" "$out/x"
    for dir in "$out"/x/usr/lib/modules/*; do
        mkdir "$out/$name/modules/${dir##*/}"
        cp "$dir/updates/dattobd/dattobd.ko" "$out/$name/modules/${dir##*/}/"
    done
    rm -r "$out/x"
done
cp "$TOP/INSTALL.md" "$TOP/README.md" "$TOP/docs/json.md" "$out/$name/"
install -m755 "$TOP/dist/bundle/install.sh" "$out/$name/"
(cd "$out/$name" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$out/sums"
mv "$out/sums" "$out/$name/SHA256SUMS"
tar -C "$out" --owner=0 --group=0 --sort=name -cJf "$out/$name.tar.xz" "$name"
rm -r "${out:?}/$name"
ls -1 "$out/$name.tar.xz"
