#!/bin/sh
# SPDX-License-Identifier: MIT
# What try_deb.sh does inside the chroot: every line has to succeed.
set -eux
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
rule=/etc/udev/rules.d/50-kdump-tools.rules
wants=/etc/systemd/system/multi-user.target.wants/crash-hotplug.service

state_of_the_machine() {
    find /etc /lib/udev /usr/lib/python3 /var/lib/crash-hotplug -type f ! -name '*.pyc' -exec md5sum {} + 2>/dev/null | sort
}

state_of_the_machine >/root/before
[ ! -e "$rule" ]

# Installed: it runs, teaches, completes, and its service is enabled.
dpkg -i /root/crash-hotplug.deb
crash-hotplug --version
code=0 && crash-hotplug status || code=$?
[ "$code" -eq 3 ] || [ "$code" -eq 5 ]
man crash-hotplug-watch | grep 'EXIT STATUS'
fish -c "complete -C 'crash-hotplug sta'" | grep '^status'
[ "$(systemctl is-enabled crash-hotplug)" = enabled ]
systemd-analyze verify crash-hotplug.service
setpriv --reuid=65534 --regid=65534 --clear-groups crash-hotplug --version

# What doctor wrote outlives an upgrade; so does an administrator's decision not to have the service.
crash-hotplug doctor --fix || true
grep 'crash-hotplug' "$rule"
systemctl disable crash-hotplug
dpkg -i /root/crash-hotplug.deb
[ -e "$rule" ]
[ ! -e "$wants" ]

# Removed: kdump-tools' own rule is live again; purged: nothing is left.
dpkg -r crash-hotplug
[ ! -e "$rule" ]
dpkg -P crash-hotplug
state_of_the_machine | diff /root/before -
[ "$(find / -xdev -name '*crash?hotplug*' ! -path '/root/*' ! -path '/proc/*' ! -path '/sys/*' ! -path '/var/cache/man/*')" = "" ]
set +x
echo "installed, upgraded, removed and purged: $(python3 --version), $(systemctl --version | head -1)"
