#!/bin/sh
# SPDX-License-Identifier: MIT
# build-package.sh deb|rpm: build the package from what git knows of this tree, and put it into dist/.  Needs no root.
set -eu
cd "$(dirname "$0")/.."
kind=$1
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/crash_hotplug/__init__.py)
name=crash-hotplug-$version
work=$PWD/build/$kind
rm -rf "$work"
mkdir -p "$work/$name" dist
git ls-files -z --cached --others --exclude-standard >"$work/files"
xargs -0 cp --parents -t "$work/$name" <"$work/files"

build_deb() {
    cp -r "$work/$name/packaging/debian" "$work/$name/debian"
    (cd "$work/$name" && dpkg-buildpackage --build=binary --no-sign)
}

build_rpm() {
    tar -C "$work" -czf "$work/$name.tar.gz" "$name"
    # Where rpm is Debian's, the macros of python3-devel and systemd-rpm-macros are missing: these stand in for them, so
    # that the spec file can be built and looked at.  A package to be used is built on the distribution that it is for.
    missing=
    if [ "$(rpm --eval '%{?_unitdir}')" = "" ]; then
        missing='--nodeps --load packaging/rpm/debian.macros'
    fi
    # shellcheck disable=SC2086  # a list of words
    rpmbuild -ba $missing --define "_topdir $work" --define "_sourcedir $work" packaging/rpm/crash-hotplug.spec
    find "$work/RPMS" "$work/SRPMS" -name '*.rpm' -exec mv -t "$work" {} +
}

"build_$kind" >"$work/build.log" 2>&1 || {
    cat "$work/build.log" >&2
    exit 1
}
for package in "$work"/*."$kind"; do
    cp "$package" dist/
    echo "dist/${package##*/}"
done
