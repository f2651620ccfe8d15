# SPDX-License-Identifier: MIT
"""The crash images of the two loaders on x86_64, kexec-tools and the kernel: the segments and their places.

Both loaders fill the reserved region from the top.  tests/lab/model/test_captures.py compares the places with the
output of ``kexec -d`` and with captured machines.

The capture kernel's zero page is ``struct boot_params`` (Documentation/arch/x86/zero-page.rst).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import (
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
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.loader import (
    KERNEL_ALIGNMENT,
    CaptureKernel,
    LoadPlan,
    Region,
    pages,
    plan_with_purgatory,
    segment,
)
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ, SYSTEM_RAM, CrashHotplug, MachineProfile

_MIN_ELFCOREHDR = 16 << 10
_PURGATORY_PAGES = 9
_SETUP_PAGES = 6
_CMDLINE_OFFSET = 5 * PAGE
_GDT_SIZE = 0x30


def plan_of_kexec_tools(
    profile: MachineProfile, machine: Machine, files: CaptureKernel, hotplug_room: int | None
) -> LoadPlan:
    """Return the image of ``kexec -p -c`` (kexec-tools' ``load_crashdump_segments()`` and ``do_bzImage64_load()``).

    :param machine: the machine as /proc and /sys show it
    :param hotplug_room: bytes for the elfcorehdr with ``--hotplug``; the digest then excludes it
    :raise CannotTellError: the image does not fit into the reserved region
    """
    region = Region(profile.reserved)
    low = machine.dumpable_ram.intersect(RangeList([machine.architecture.backup_region_source]))
    source = low[0] if low else Range(0, 0)
    backup_at = region.place_high(max(source.size, 1))
    header = expected_elfcorehdr(machine, Loader.KEXEC_TOOLS, backup_region_phys=backup_at)
    room = -(-max(_MIN_ELFCOREHDR, hotplug_room or 0, header.size) // 1024) * 1024
    header_at = region.place_high(pages(room))
    purgatory_at = region.place_high(_PURGATORY_PAGES * PAGE)
    setup_at = region.place_high(_SETUP_PAGES * PAGE)
    kernel_at = region.place_high(pages(files.kernel_memsz), KERNEL_ALIGNMENT)
    initrd_at = region.place_high(pages(len(files.initrd)))
    gdt_at = region.take(profile.reserved.start, _GDT_SIZE)
    e820 = e820_of_kexec_tools(profile, Range(header_at, header_at + room), Range(backup_at, backup_at + source.size))
    rsdp = f" acpi_rsdp={profile.acpi_rsdp:#x}" if profile.acpi_rsdp is not None else ""
    cmdline = f"{files.append}{rsdp} elfcorehdr={header_at >> 10}K\n"
    setup = build_boot_params(setup_at + _CMDLINE_OFFSET, Range(initrd_at, initrd_at + len(files.initrd)), e820).ljust(
        _CMDLINE_OFFSET, b"\0"
    )
    hashed = [
        segment(gdt_at, bytes(range(_GDT_SIZE))),
        segment(kernel_at, files.kernel, files.kernel_memsz),
        segment(initrd_at, files.initrd),
        segment(setup_at, setup + cmdline.encode(), _SETUP_PAGES * PAGE),
        segment(backup_at, b"", source.size),
    ]
    elfcorehdr = segment(header_at, header.to_bytes(1024), room)
    if hotplug_room is None:
        hashed.append(elfcorehdr)
    words = (setup_at, source.start, source.size, backup_at)
    return plan_with_purgatory(purgatory_at, _PURGATORY_PAGES, words, hashed, elfcorehdr, header)


def plan_of_kernel(profile: MachineProfile, machine: Machine, files: CaptureKernel) -> LoadPlan:
    """Return the image that ``kexec_file_load`` builds inside the kernel (arch/x86/kernel/kexec-bzimage64.c).

    :param machine: the machine as the kernel knows it
    :raise CannotTellError: the image does not fit into the reserved region
    """
    region = Region(profile.reserved)
    header = expected_elfcorehdr(machine, Loader.KERNEL)
    padded = header.to_bytes(machine.architecture.kernel_padding)
    room = {
        CrashHotplug.NONE: len(padded),
        CrashHotplug.V6: max(len(padded), CRASH_HOTPLUG_ELFCOREHDR_SZ),
        CrashHotplug.MERGED: max(header.size, profile.elfcorehdr_size + 64),
    }[profile.crash_hotplug]
    header_at = region.take(profile.reserved.start, room)
    purgatory_at = region.place_high(profile.purgatory_pages * PAGE)
    setup_at = region.place_high(2 * PAGE)
    kernel_at = region.place_high(pages(files.kernel_memsz), KERNEL_ALIGNMENT)
    initrd_at = region.place_high(pages(len(files.initrd)))
    e820 = e820_of_kernel(profile, Range(header_at, header_at + room))
    cmdline = f"elfcorehdr={header_at:#x} {files.append}"
    setup = build_boot_params(setup_at + PAGE, Range(initrd_at, initrd_at + len(files.initrd)), e820)
    hashed = [
        segment(setup_at, setup + cmdline.encode(), 2 * PAGE),
        segment(kernel_at, files.kernel, files.kernel_memsz),
        segment(initrd_at, files.initrd),
    ]
    elfcorehdr = segment(header_at, padded, room)
    if profile.crash_hotplug is CrashHotplug.NONE:
        hashed.append(elfcorehdr)
    return plan_with_purgatory(purgatory_at, profile.purgatory_pages, (setup_at,), hashed, elfcorehdr, header)


E820Entry = tuple[Range, int]


def build_boot_params(cmdline_phys: int, initrd: Range, e820: Sequence[E820Entry]) -> bytes:
    """Return the zero page: the places of command line and initrd, and the memory that the capture kernel may use."""
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
    """Return the map of kexec-tools: sorted by address, without elfcorehdr and backup region."""
    usable = _reservation(profile, RangeList([elfcorehdr, backup]))
    return sorted([*_low_ram(profile), *_reserved(profile), *usable])


def e820_of_kernel(profile: MachineProfile, elfcorehdr: Range) -> list[E820Entry]:
    """Return the map of ``crash_setup_memmap_entries()`` in arch/x86/kernel/crash.c."""
    return [*_low_ram(profile), *_reserved(profile), *_reservation(profile, RangeList([elfcorehdr]))]


def _low_ram(profile: MachineProfile) -> list[E820Entry]:
    low = profile.boot_ram.intersect(RangeList([Range(0, 1 << 20)]))
    return [(ram, E820_RAM) for ram in low]


def _reserved(profile: MachineProfile) -> list[E820Entry]:
    return [(entry.range, E820_RESERVED) for entry in profile.firmware if entry.name != SYSTEM_RAM]


def _reservation(profile: MachineProfile, without: RangeList) -> list[E820Entry]:
    return [(usable, E820_RAM) for usable in RangeList(profile.crashkernel).exclude(without)]
