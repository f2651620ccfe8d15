# SPDX-License-Identifier: MIT
"""Hot-pluggable memory: memory blocks, and the memory devices that ACPI can plug in."""

from __future__ import annotations

import re

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import MemoryBlocks
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.sysroot import Sysroot

BLOCKS = "/sys/devices/system/memory"
_BLOCK = "memory"
_BLOCK_NAME = re.compile(_BLOCK + r"\d{1,9}").fullmatch
ACPI_DEVICES = "/sys/bus/acpi/devices"
_ACPI_PRESENT = 1
"""Bit 0 of ``_STA``."""


def block_names(sysroot: Sysroot) -> list[str]:
    """Return the names of the block directories, ``memory0`` and so on."""
    return [name for name in sysroot.names(BLOCKS) if _BLOCK_NAME(name)]


def read_memory_blocks(sysroot: Sysroot) -> MemoryBlocks | None:
    """Read block size and counts; None on kernels without memory hot-plug.

    :raise InputError: the block size is not a hexadecimal number
    """
    size = sysroot.read_text(f"{BLOCKS}/block_size_bytes")
    if size is None:
        return None
    if not re.fullmatch(r"[0-9a-f]{1,16}", size):
        raise InputError(f"{sysroot.locate(BLOCKS)}/block_size_bytes is not a hexadecimal number: {size[:20]!r}")
    blocks, bytes_each = sysroot.directory_of_many(BLOCKS), int(size, 16)
    names = [name for name in blocks.names if _BLOCK_NAME(name)]
    offline = [name for name in names if blocks.read_text(name, "state") != "online"]
    starts = [int(name[len(_BLOCK) :]) * bytes_each for name in offline]
    ram = RangeList((start, start + bytes_each) for start in starts if start + bytes_each <= 1 << 64)
    return MemoryBlocks(bytes_each, len(names) - len(offline), len(offline), ram)


def acpi_device_names(sysroot: Sysroot) -> list[str]:
    """Return the names of the memory devices (DIMMs of a virtual machine), plugged in or not: ``PNP0C80:00``."""
    return [name for name in sysroot.names(ACPI_DEVICES) if re.fullmatch(r"PNP0C80:[0-9a-f]{1,8}", name)]


def count_present_acpi_devices(sysroot: Sysroot) -> int:
    """Return the number of memory devices that are plugged in; 0 also where the kernel does not show it.

    :raise InputError: a file is not text, or too large
    """
    return sum(1 for name in acpi_device_names(sysroot) if _acpi_status(sysroot, name) & _ACPI_PRESENT)


def _acpi_status(sysroot: Sysroot, name: str) -> int:
    try:
        text = sysroot.read_text(f"{ACPI_DEVICES}/{name}/status") or ""
    except CannotTellError:
        return 0
    return int(text) if re.fullmatch(r"\d{1,10}", text) else 0
