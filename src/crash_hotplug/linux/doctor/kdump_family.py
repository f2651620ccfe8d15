# SPDX-License-Identifier: MIT
"""The families of kdump tools: their files, and the settings with which they load the next crash image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from crash_hotplug.core.doctor.settings_files import Setting, read_setting
from crash_hotplug.linux.doctor.rooted_files import exists, read_config
from crash_hotplug.linux.sysroot import Sysroot

NO_MEMHOTPLUG = "acpi_no_memhotplug"
"""Without it a capture kernel uses the DIMMs that ACPI announces as its own RAM (docs/elfcorehdr.md)."""
NR_CPUS = "nr_cpus=1"
"""Without it a capture kernel of x86 before Linux 6.9 starts on no CPU that was added (docs/doctor.md)."""
_SUDO_KEXEC = 'KEXEC="sudo -i $KEXEC"'
"""kdumpctl calls kexec so where the session keyring lacks root's user keyring, as in a transient unit (kdump-utils
63f248c).  The calls do not depend on LUKS."""
_SUDO = ("/usr/bin/sudo", "/bin/sudo")


class Family(NamedTuple):
    """The kdump tools of one family of distributions."""

    name: str
    tool: str
    """The program that loads the crash image."""
    other_marks: tuple[str, ...]
    """Files beside the tool that only this family has."""
    rules: str
    """Name of its udev rules file."""
    unit: str
    reload: str
    """The command that loads the image again."""
    settings: str
    """The settings file, which has the next three settings."""
    append: str
    """Appended to the capture kernel's command line."""
    whole: str
    """Replaces the command line that the tool would build."""
    arguments: str
    """More arguments for kexec."""
    initramfs: tuple[str, ...]
    """Places of the capture kernel's initramfs; ``{release}`` stands for the kernel's release."""
    add_driver: str
    """How a person adds the driver ``{driver}`` to it and loads it."""
    passes_no_memhotplug: bool = False
    """Whether the tool itself passes acpi_no_memhotplug, unless *whole* is set."""
    switch: str | None = None
    """The setting without which the tool loads nothing: 0 or unset turns it off."""
    cpus: str | None = None
    """The setting of the number of CPUs that the capture kernel uses; None where its command line has it."""
    directory: str | None = None
    """The setting of the directory that takes the dump; None where /etc/kdump.conf has it."""


DEBIAN = Family(
    name="kdump-tools (Debian, Ubuntu)",
    tool="/usr/sbin/kdump-config",
    other_marks=("/etc/default/kdump-tools",),
    rules="50-kdump-tools.rules",
    unit="kdump-tools.service",
    reload="kdump-config reload",
    settings="/etc/default/kdump-tools",
    append="KDUMP_CMDLINE_APPEND",
    whole="KDUMP_CMDLINE",
    arguments="KDUMP_KEXEC_ARGS",
    switch="USE_KDUMP",
    directory="KDUMP_COREDIR",
    initramfs=("/var/lib/kdump/initrd.img-{release}", "/boot/initrd.img-{release}"),
    add_driver="echo {driver} >> /etc/initramfs-tools/modules && /etc/kernel/postinst.d/kdump-tools {release} "
    "&& kdump-config reload",
)
ALT = DEBIAN._replace(
    name="kdump-tools (ALT)",
    other_marks=("/etc/sysconfig/kdump-tools",),
    settings="/etc/sysconfig/kdump-tools",
)
"""ALT's kdump-tools 1.8 is Debian's with another settings file; its kdumpctl shows dumps and loads nothing."""
OPENSUSE = Family(
    name="kdump (openSUSE)",
    tool="/usr/lib/kdump/load.sh",
    other_marks=("/usr/lib/kdump/70-kdump.rules", "/usr/lib/udev/rules.d/70-kdump.rules"),
    rules="70-kdump.rules",
    unit="kdump.service",
    reload="systemctl restart kdump.service",
    settings="/etc/sysconfig/kdump",
    append="KDUMP_COMMANDLINE_APPEND",
    whole="KDUMP_COMMANDLINE",
    arguments="KEXEC_OPTIONS",
    initramfs=("/var/lib/kdump/initrd", "/boot/initrd-{release}-kdump"),
    add_driver="echo 'add_drivers+=\" {driver} \"' > /etc/dracut.conf.d/{driver}.conf && mkdumprd -f "
    "&& systemctl restart kdump.service",
    passes_no_memhotplug=True,
    cpus="KDUMP_CPUS",
    directory="KDUMP_SAVEDIR",
)
RED_HAT = Family(
    name="kdumpctl (Red Hat, Fedora)",
    tool="/usr/bin/kdumpctl",
    other_marks=("/etc/kdump.conf", "/usr/lib/udev/rules.d/98-kexec.rules"),
    rules="98-kexec.rules",
    unit="kdump.service",
    reload="kdumpctl reload",
    settings="/etc/sysconfig/kdump",
    append="KDUMP_COMMANDLINE_APPEND",
    whole="KDUMP_COMMANDLINE",
    arguments="KEXEC_ARGS",
    initramfs=("/boot/initramfs-{release}kdump.img", "/var/lib/kdump/initramfs-{release}kdump.img"),
    add_driver="echo extra_modules {driver} >> /etc/kdump.conf && kdumpctl restart",
)
FAMILIES = (DEBIAN, ALT, OPENSUSE, RED_HAT)


@dataclass(frozen=True)
class KdumpSettings:
    """The settings for the next load of a crash image."""

    family: Family
    text: str | None
    """The settings file; None where it does not exist."""
    append: Setting | None
    append_default: str | None
    """The words that the tool appends where *append* is not set; None where they are not known."""
    whole: Setting | None
    arguments: Setting | None
    lacks_sudo: bool = False
    """Whether the tool calls kexec through sudo in a transient unit, and sudo is not installed."""

    @property
    def switch(self) -> Setting | None:
        """The setting that turns the tool on; None where it is not set, or the family has none."""
        return None if self.family.switch is None else read_setting(self.text or "", self.family.switch)

    @property
    def is_off(self) -> bool:
        """Whether the settings file turns the tool off; False where there is none, or only a shell can expand it."""
        if self.text is None or self.family.switch is None:
            return False
        return self.switch is None or self.switch.value in ("", "0")

    @property
    def appended(self) -> str | None:
        """The words appended to the capture kernel's command line; None where they are not known."""
        if self.append is None or self.append.value == "":
            return self.append_default
        return self.append.value

    @property
    def next_has_no_memhotplug(self) -> bool | None:
        """Whether the next capture kernel gets acpi_no_memhotplug; None where that is not known."""
        given = [self.appended]
        if self.whole is not None and self.whole.value != "":
            given.append(self.whole.value)
        elif self.family.passes_no_memhotplug:
            return True
        if any(part is not None and NO_MEMHOTPLUG in part.split() for part in given):
            return True
        return None if None in given else False


def read_kdump_settings(sysroot: Sysroot) -> KdumpSettings | None:
    """Find the installed family and read its settings; None where none is installed.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is invalid
    """
    family = _find_family(sysroot)
    if family is None:
        return None
    text = read_config(sysroot, family.settings)
    append, whole, arguments = (
        read_setting(text or "", name) for name in (family.append, family.whole, family.arguments)
    )
    script = read_config(sysroot, family.tool) or ""
    lacks_sudo = _SUDO_KEXEC in script and not any(exists(sysroot, path) for path in _SUDO)
    return KdumpSettings(family, text, append, _append_default(script, family), whole, arguments, lacks_sudo)


def _find_family(sysroot: Sysroot) -> Family | None:
    """Return the family by its own files, else by its tool: ALT has a kdump-config and a kdumpctl."""
    marks = [(family, family.other_marks) for family in FAMILIES] + [(family, (family.tool,)) for family in FAMILIES]
    return next((family for family, paths in marks if any(exists(sysroot, path) for path in paths)), None)


def _append_default(script: str, family: Family) -> str | None:
    """Return the words that kdump-config appends if the setting is empty; the other tools append none."""
    if family.tool != DEBIAN.tool:
        return ""
    found = re.search(rf'^{family.append}=\$\{{{family.append}:="([^"$`\\]*)"\}}', script, re.MULTILINE)
    return found[1] if found else None


def tool_lines(settings: KdumpSettings) -> str:
    """Return the lines of the tool from which :func:`read_kdump_settings` reads the same."""
    append, default = settings.family.append, settings.append_default
    lines = f'{append}=${{{append}:="{default}"}}\n' if default else ""
    return f"{lines}{_SUDO_KEXEC}\n" if settings.lacks_sudo else lines
