"""The capture kernel's zero page (``struct boot_params``, Documentation/arch/x86/zero-page.rst)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from crash_hotplug.core.architecture import PAGE
from crash_hotplug.core.boot_params import (
    BOOT_FLAG,
    CMD_LINE_PTR,
    CMDLINE_SIZE,
    E820_COUNT,
    E820_ENTRY,
    E820_RAM,
    E820_RESERVED,
    E820_TABLE,
    EXT_CMD_LINE_PTR,
    MAGIC,
    RAMDISK,
    SETUP_MAGIC,
    VERSION,
)
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.profile import SYSTEM_RAM, MachineProfile

E820Entry = tuple[Range, int]


def build_boot_params(cmdline_phys: int, initrd: Range, e820: Sequence[E820Entry]) -> bytes:
    """Return the page: where command line and initrd are, and which memory the capture kernel may use."""
    page = bytearray(PAGE)
    page[E820_COUNT] = len(e820)
    struct.pack_into("<HIH", page, BOOT_FLAG, 0xAA55, 0, 0)
    page[MAGIC : MAGIC + 4] = SETUP_MAGIC
    struct.pack_into("<H", page, VERSION, 0x20F)
    struct.pack_into("<II", page, RAMDISK, initrd.start & 0xFFFFFFFF, initrd.size)
    struct.pack_into("<I", page, CMD_LINE_PTR, cmdline_phys & 0xFFFFFFFF)
    struct.pack_into("<I", page, EXT_CMD_LINE_PTR, cmdline_phys >> 32)
    struct.pack_into("<I", page, CMDLINE_SIZE, 0x7FF)
    for i, (where, kind) in enumerate(e820):
        E820_ENTRY.pack_into(page, E820_TABLE + E820_ENTRY.size * i, where.start, where.size, kind)
    return bytes(page)


def e820_of_kexec_tools(profile: MachineProfile, elfcorehdr: Range, backup: Range) -> list[E820Entry]:
    """Return the map as kexec-tools makes it: in the order of addresses; elfcorehdr and backup region left out."""
    usable = _reservation(profile, RangeList([elfcorehdr, backup]))
    return sorted([*_low_ram(profile), *_reserved(profile), *usable])


def e820_of_kernel(profile: MachineProfile, elfcorehdr: Range) -> list[E820Entry]:
    """Return the map as ``crash_setup_memmap_entries()`` of arch/x86/kernel/crash.c makes it."""
    return [*_low_ram(profile), *_reserved(profile), *_reservation(profile, RangeList([elfcorehdr]))]


def _low_ram(profile: MachineProfile) -> list[E820Entry]:
    low = profile.boot_ram.intersect(RangeList([Range(0, 1 << 20)]))
    return [(ram, E820_RAM) for ram in low]


def _reserved(profile: MachineProfile) -> list[E820Entry]:
    return [(entry.range, E820_RESERVED) for entry in profile.firmware if entry.name != SYSTEM_RAM]


def _reservation(profile: MachineProfile, without: RangeList) -> list[E820Entry]:
    return [(usable, E820_RAM) for usable in RangeList(profile.crashkernel).exclude(without)]
