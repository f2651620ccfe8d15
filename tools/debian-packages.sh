#!/bin/sh
# SPDX-License-Identifier: MIT
# Install the named Debian packages that are missing.  Without root, or on another distribution, only say which they are:
# the tests that need them are then skipped with that reason.
set -eu
command -v dpkg-query >/dev/null || exit 0
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages (as root: apt-get install$missing); what needs them is skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # a list of words
apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1 || {
    apt-get update -qq >/dev/null
    apt-get install -qq -y --no-install-recommends $missing >/dev/null
}
