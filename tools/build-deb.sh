#!/bin/sh
# Build the .deb from what git knows of this tree, and put it into dist/.  Needs no root.
set -eu
cd "$(dirname "$0")/.."
tree=build/deb/crash-hotplug
rm -rf build/deb
mkdir -p "$tree" dist
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$tree"
cp -r "$tree/packaging/debian" "$tree/debian"
(cd "$tree" && dpkg-buildpackage --build=binary --no-sign >../build.log 2>&1) || {
    cat build/deb/build.log >&2
    exit 1
}
cp build/deb/*.deb dist/
ls dist/*.deb
