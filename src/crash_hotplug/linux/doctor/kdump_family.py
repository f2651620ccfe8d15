"""The three families of kdump tools: their rules file, their settings, and what they load the crash image with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from crash_hotplug.core.doctor.shell_settings import Setting, read_setting
from crash_hotplug.linux.doctor.rooted_path import exists, read_config
from crash_hotplug.linux.sysroot import Sysroot

NO_MEMHOTPLUG = "acpi_no_memhotplug"
"""Without it a capture kernel takes the DIMMs that ACPI announces for its own RAM (docs/elfcorehdr.md)."""


class Family(NamedTuple):
    """One distribution's way."""

    name: str
    tool: str
    """The program that loads the crash image."""
    marks: tuple[str, ...]
    """Files that only this family has."""
    rules: str
    """Name of its udev rules file."""
    settings: str
    append: str
    """The setting that is appended to the capture kernel's command line."""
    whole: str
    """The setting that replaces the command line that the tool would make."""
    arguments: str
    """The setting with more arguments for kexec."""
    unit: str
    reload: str
    """What a person types to load the image again."""
    passes_no_memhotplug: bool = False
    """Whether the tool itself passes acpi_no_memhotplug, unless *whole* is set."""


DEBIAN = Family(
    "kdump-tools (Debian, Ubuntu)",
    "/usr/sbin/kdump-config",
    ("/usr/sbin/kdump-config", "/etc/default/kdump-tools"),
    "50-kdump-tools.rules",
    "/etc/default/kdump-tools",
    "KDUMP_CMDLINE_APPEND",
    "KDUMP_CMDLINE",
    "KDUMP_KEXEC_ARGS",
    "kdump-tools.service",
    "kdump-config reload",
)
OPENSUSE = Family(
    "kdump (openSUSE)",
    "/usr/lib/kdump/load.sh",
    ("/usr/lib/kdump/load.sh", "/usr/lib/kdump/70-kdump.rules", "/usr/lib/udev/rules.d/70-kdump.rules"),
    "70-kdump.rules",
    "/etc/sysconfig/kdump",
    "KDUMP_COMMANDLINE_APPEND",
    "KDUMP_COMMANDLINE",
    "KEXEC_OPTIONS",
    "kdump.service",
    "systemctl restart kdump.service",
    passes_no_memhotplug=True,
)
RED_HAT = Family(
    "kdumpctl (Red Hat, Fedora)",
    "/usr/bin/kdumpctl",
    ("/usr/bin/kdumpctl", "/etc/kdump.conf", "/usr/lib/udev/rules.d/98-kexec.rules"),
    "98-kexec.rules",
    "/etc/sysconfig/kdump",
    "KDUMP_COMMANDLINE_APPEND",
    "KDUMP_COMMANDLINE",
    "KEXEC_ARGS",
    "kdump.service",
    "kdumpctl reload",
)
FAMILIES = (DEBIAN, OPENSUSE, RED_HAT)


@dataclass(frozen=True)
class KdumpSettings:
    """What the settings say of the next load of a crash image."""

    family: Family
    text: str | None
    """The settings file; None where it does not exist."""
    append: Setting | None
    append_default: str | None
    """What the tool appends where *append* is not set; None where it is not known."""
    whole: Setting | None
    arguments: Setting | None

    @property
    def appended(self) -> str | None:
        """What is appended to the capture kernel's command line; None where that cannot be told."""
        if self.append is None or self.append.value == "":
            return self.append_default
        return self.append.value

    @property
    def next_has_no_memhotplug(self) -> bool | None:
        """Whether the next capture kernel gets acpi_no_memhotplug; None where that cannot be told."""
        is_whole = self.whole is not None and self.whole.value != ""
        if self.family.passes_no_memhotplug and not is_whole:
            return True
        given = [self.appended, *([self.whole.value] if is_whole and self.whole is not None else [])]
        if any(part is not None and NO_MEMHOTPLUG in part.split() for part in given):
            return True
        return None if None in given else False


def read_kdump_settings(sysroot: Sysroot) -> KdumpSettings | None:
    """Find the family and read its settings; None where none is installed.

    :raise CannotTellError: a file may not be read
    :raise InputError: a file is not what it should be
    """
    family = next((family for family in FAMILIES if any(exists(sysroot, mark) for mark in family.marks)), None)
    if family is None:
        return None
    text = read_config(sysroot, family.settings)
    given = text or ""
    return KdumpSettings(
        family,
        text,
        read_setting(given, family.append),
        _append_default(sysroot, family),
        read_setting(given, family.whole),
        read_setting(given, family.arguments),
    )


def _append_default(sysroot: Sysroot, family: Family) -> str | None:
    """Return what kdump-config itself appends where the setting is empty; the other tools then append nothing."""
    if family is not DEBIAN:
        return ""
    script = read_config(sysroot, family.tool) or ""
    found = re.search(rf'^{family.append}=\$\{{{family.append}:="([^"$`\\]*)"\}}', script, re.MULTILINE)
    return found[1] if found else None


def append_default_line(family: Family, default: str | None) -> str:
    """Return the line of the tool that says its default, as it is read here; "" where there is none."""
    return f'{family.append}=${{{family.append}:="{default}"}}\n' if default else ""
