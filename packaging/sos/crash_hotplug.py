# SPDX-License-Identifier: MIT
"""A plugin for sos 4.0 or newer: the state of the loaded crash image.

``crash-hotplug --sysroot sosreport-….tar.xz`` reads the tree that ``snapshot`` puts into the report.  The copied files
are what is left where ``snapshot`` fails.
"""

import os
import shlex

from sos.report.plugins import DebianPlugin, IndependentPlugin, Plugin, RedHatPlugin, SuSEPlugin, UbuntuPlugin


class CrashHotplug(Plugin, IndependentPlugin, RedHatPlugin, DebianPlugin, UbuntuPlugin, SuSEPlugin):
    """Collects what ``crash-hotplug`` reads.

    sos 4.0 of Debian does not load a plugin that is an IndependentPlugin only.
    """

    short_desc = "Accuracy of the loaded kdump crash image"

    plugin_name = "crash_hotplug"
    profiles = ("system", "debug")
    packages = ("crash-hotplug",)
    commands = ("crash-hotplug",)

    def setup(self) -> None:
        """Tell sos which files and commands to collect."""
        snapshot = self.get_cmd_output_path(name="snapshot", make=False)
        os.makedirs(os.path.dirname(snapshot), exist_ok=True)
        self.add_cmd_output(f"crash-hotplug snapshot -o {shlex.quote(snapshot)}", suggest_filename="snapshot.log")
        self.add_cmd_output([f"crash-hotplug {command} --json" for command in ("status", "doctor")])
        self.add_copy_spec(
            [
                "/proc/cmdline",
                "/proc/iomem",
                "/proc/sys/kernel/osrelease",
                "/run/crash-hotplug",
                "/sys/devices/system/cpu/cpu*/crash_notes*",
                "/sys/devices/system/cpu/cpu*/online",
                "/sys/devices/system/cpu/crash_hotplug",
                "/sys/devices/system/cpu/offline",
                "/sys/devices/system/cpu/online",
                "/sys/devices/system/cpu/possible",
                "/sys/devices/system/cpu/present",
                "/sys/devices/system/memory/block_size_bytes",
                "/sys/devices/system/memory/crash_hotplug",
                "/sys/devices/system/memory/memory*/state",
                "/sys/kernel/crash_elfcorehdr_size",
                "/sys/kernel/kexec",
                "/sys/kernel/kexec_crash_loaded",
                "/sys/kernel/kexec_crash_size",
                "/sys/kernel/vmcoreinfo",
            ]
        )
