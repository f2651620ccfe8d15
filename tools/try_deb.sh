#!/bin/sh
# SPDX-License-Identifier: MIT
# try_deb.sh DEB [SUITE...]: install, upgrade, remove and purge the package beside the real kdump-tools, in a chroot of each
# Debian release (default: bullseye bookworm trixie).  As root; needs debootstrap.  Nothing of this machine is changed.
set -eu
if [ "$(id -u)" -ne 0 ]; then
    echo "a chroot needs root" >&2
    exit 1
fi
deb=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- bullseye bookworm trixie
cd "$(dirname "$0")/.."

make_root() { # SUITE DIRECTORY
    debootstrap --variant=minbase --include=python3,man-db,systemd,procps,udev,fish "$1" "$2.new"
    printf '#!/bin/sh\nexit 101\n' >"$2.new/usr/sbin/policy-rc.d"  # no service is started in there
    chmod +x "$2.new/usr/sbin/policy-rc.d"
    DEBIAN_FRONTEND=noninteractive chroot "$2.new" apt-get install -y --no-install-recommends kdump-tools
    mv "$2.new" "$2"
}

for suite in "$@"; do
    root=$PWD/build/chroot/$suite
    if [ ! -d "$root" ]; then
        rm -rf "$root.new"
        mkdir -p "$root.new"
        echo "$suite: making the chroot" >&2
        make_root "$suite" "$root" >"$root.log" 2>&1 || {
            tail -20 "$root.log" >&2
            exit 1
        }
    fi
    # The trial's writes go to memory: the chroot is the same for the next one, and the mounts end with their name space.
    unshare --mount --propagation private sh -euc '
        mount -t tmpfs tmpfs /mnt
        mkdir /mnt/changes /mnt/work /mnt/root
        mount -t overlay overlay -o "lowerdir=$1,upperdir=/mnt/changes,workdir=/mnt/work" /mnt/root
        mount -t proc proc /mnt/root/proc
        mount --rbind /sys /mnt/root/sys
        cp "$2" /mnt/root/root/crash-hotplug.deb
        cp tools/try_deb_inside.sh /mnt/root/root/
        exec chroot /mnt/root sh /root/try_deb_inside.sh
    ' sh "$root" "$deb" >"$root.log" 2>&1 || {
        cat "$root.log" >&2
        echo "$suite: failed" >&2
        exit 1
    }
    echo "$suite: $(tail -1 "$root.log")"
done
