"""/sys/bus/acpi/devices: memory devices that the firmware can plug in (DIMMs of a virtual machine, mostly)."""

from __future__ import annotations

import re

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.sysroot import Sysroot

DIRECTORY = "/sys/bus/acpi/devices"
_MEMORY_DEVICE = re.compile(r"PNP0C80:[0-9a-f]{1,8}")
_PRESENT = 1
"""Bit 0 of ``_STA``."""


def device_names(sysroot: Sysroot) -> list[str]:
    """Return the names of the memory devices, plugged in or not, such as ``PNP0C80:00``."""
    return [name for name in sysroot.names(DIRECTORY) if _MEMORY_DEVICE.fullmatch(name)]


def count_present(sysroot: Sysroot) -> int:
    """Return how many memory devices are plugged in; 0 also where nothing tells it.

    :raise InputError: a file is not text, or too large
    """
    return sum(1 for name in device_names(sysroot) if _status(sysroot, name) & _PRESENT)


def _status(sysroot: Sysroot, name: str) -> int:
    try:
        text = sysroot.read_text(f"{DIRECTORY}/{name}/status") or ""
    except CannotTellError:
        return 0
    return int(text) if re.fullmatch(r"\d{1,10}", text) else 0
