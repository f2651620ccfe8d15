# SPDX-License-Identifier: MIT
"""The crash images of the two loaders, kexec-tools and the kernel: the segments and their places.

Both loaders fill the reserved region from the top.  tests/lab/model/test_captures.py compares the places with the
output of ``kexec -d`` and with captured machines.

The capture kernel's zero page is ``struct boot_params`` (Documentation/arch/x86/zero-page.rst).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ, SYSTEM_RAM, CrashHotplug, MachineProfile
from crash_hotplug_lab.model.purgatory import ENTRY_OFFSET, build_purgatory

KERNEL_ALIGNMENT = 2 << 20
_MIN_ELFCOREHDR = 16 << 10
_PURGATORY_PAGES = 9
_SETUP_PAGES = 6
_CMDLINE_OFFSET = 5 * PAGE
_GDT_SIZE = 0x30


@dataclass(frozen=True)
class CaptureKernel:
    """The capture kernel's files: a bzImage and an initrd."""

    kernel: bytes
    initrd: bytes
    kernel_memsz: int
    """Bytes that the kernel needs while it starts (``init_size``)."""
    append: str = "console=ttyS0 quiet irqpoll nr_cpus=1 reset_devices"


def small_capture_kernel(pages: int = 4) -> CaptureKernel:
    """Return a kernel and an initrd of a few recognisable pages."""
    kernel = b"".join(b"capture kernel, page %06d\n".ljust(PAGE, b"\x90") % i for i in range(pages))
    initrd = b"".join(b"initrd, page %06d\n".ljust(PAGE, b"\x07") % i for i in range(max(1, pages // 2)))
    return CaptureKernel(kernel, initrd, 2 * len(kernel))


class LoadPlan(NamedTuple):
    """The arguments of a loader's kexec_load."""

    entry_phys: int
    segments: tuple[KexecSegment, ...]
    """In the order of addresses."""
    header: ElfCoreHeader


def parse_hotplug_size(value: str) -> int:
    """Parse the value of kexec-tools' ``--hotplug-size`` (v6), with kexec-tools' own message.

    :raise InputError: the value is not a positive number
    """
    try:
        size = int(value, 0)
    except ValueError:
        size = 0
    if size <= 0:
        raise InputError(f"Bad option value in --hotplug-size={value}")
    return size


class _Region:
    """The reserved region while it is being filled from the top."""

    def __init__(self, reserved: Range) -> None:
        self._reserved = reserved
        self._taken: list[Range] = []

    def place_high(self, size: int, alignment: int = PAGE) -> int:
        """Take the highest hole of *size* bytes and return its physical address.

        :raise CannotTellError: there is no such hole
        """
        for hole in reversed(list(RangeList([self._reserved]).exclude(RangeList(self._taken)))):
            start = (hole.end - size) // alignment * alignment
            if start >= hole.start:
                self._taken.append(Range(start, start + _pages(size)))
                return start
        raise CannotTellError(f"the reserved region of {self._reserved.size} bytes is too small for the crash image")

    def take(self, start: int, size: int) -> int:
        """Take the given place."""
        self._taken.append(Range(start, start + _pages(size)))
        return start


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def plan_of_kexec_tools(
    profile: MachineProfile, machine: Machine, files: CaptureKernel, hotplug_room: int | None = None
) -> LoadPlan:
    """Return the image of ``kexec -p -c`` (kexec-tools' ``load_crashdump_segments()`` and ``do_bzImage64_load()``).

    :param machine: the machine as /proc and /sys show it
    :param hotplug_room: bytes for the elfcorehdr with ``--hotplug``; the digest then excludes it
    :raise CannotTellError: the image does not fit into the reserved region
    """
    region = _Region(profile.reserved)
    low = machine.dumpable_ram.intersect(RangeList([machine.architecture.backup_region_source]))
    source = low[0] if low else Range(0, 0)
    backup_at = region.place_high(max(source.size, 1))
    header = expected_elfcorehdr(machine, Loader.KEXEC_TOOLS, backup_region_phys=backup_at)
    room = -(-max(_MIN_ELFCOREHDR, hotplug_room or 0, header.size) // 1024) * 1024
    header_at = region.place_high(_pages(room))
    purgatory_at = region.place_high(_PURGATORY_PAGES * PAGE)
    setup_at = region.place_high(_SETUP_PAGES * PAGE)
    kernel_at = region.place_high(_pages(files.kernel_memsz), KERNEL_ALIGNMENT)
    initrd_at = region.place_high(_pages(len(files.initrd)))
    gdt_at = region.take(profile.reserved.start, _GDT_SIZE)
    e820 = e820_of_kexec_tools(profile, Range(header_at, header_at + room), Range(backup_at, backup_at + source.size))
    rsdp = f" acpi_rsdp={profile.acpi_rsdp:#x}" if profile.acpi_rsdp is not None else ""
    cmdline = f"{files.append}{rsdp} elfcorehdr={header_at >> 10}K\n"
    setup = build_boot_params(setup_at + _CMDLINE_OFFSET, Range(initrd_at, initrd_at + len(files.initrd)), e820).ljust(
        _CMDLINE_OFFSET, b"\0"
    )
    hashed = [
        _segment(gdt_at, bytes(range(_GDT_SIZE))),
        _segment(kernel_at, files.kernel, files.kernel_memsz),
        _segment(initrd_at, files.initrd),
        _segment(setup_at, setup + cmdline.encode(), _SETUP_PAGES * PAGE),
        _segment(backup_at, b"", source.size),
    ]
    elfcorehdr = _segment(header_at, header.to_bytes(1024), room)
    if hotplug_room is None:
        hashed.append(elfcorehdr)
    return _plan(purgatory_at, _PURGATORY_PAGES, setup_at, (source, backup_at), hashed, elfcorehdr, header)


def plan_of_kernel(profile: MachineProfile, machine: Machine, files: CaptureKernel) -> LoadPlan:
    """Return the image that ``kexec_file_load`` builds inside the kernel (arch/x86/kernel/kexec-bzimage64.c).

    :param machine: the machine as the kernel knows it
    :raise CannotTellError: the image does not fit into the reserved region
    """
    region = _Region(profile.reserved)
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
    kernel_at = region.place_high(_pages(files.kernel_memsz), KERNEL_ALIGNMENT)
    initrd_at = region.place_high(_pages(len(files.initrd)))
    e820 = e820_of_kernel(profile, Range(header_at, header_at + room))
    cmdline = f"elfcorehdr={header_at:#x} {files.append}"
    setup = build_boot_params(setup_at + PAGE, Range(initrd_at, initrd_at + len(files.initrd)), e820)
    hashed = [
        _segment(setup_at, setup + cmdline.encode(), 2 * PAGE),
        _segment(kernel_at, files.kernel, files.kernel_memsz),
        _segment(initrd_at, files.initrd),
    ]
    elfcorehdr = _segment(header_at, padded, room)
    if profile.crash_hotplug is CrashHotplug.NONE:
        hashed.append(elfcorehdr)
    return _plan(purgatory_at, profile.purgatory_pages, setup_at, None, hashed, elfcorehdr, header)


def _segment(phys: int, buf: bytes, memsz: int = 0) -> KexecSegment:
    return KexecSegment(buf, phys, _pages(max(memsz, len(buf))))


def _plan(
    purgatory_at: int,
    purgatory_pages: int,
    boot_params_at: int,
    backup: tuple[Range, int] | None,
    hashed: Iterable[KexecSegment],
    elfcorehdr: KexecSegment,
    header: ElfCoreHeader,
) -> LoadPlan:
    """Sort the segments and add purgatory, with its digest over the *hashed* segments."""
    covered = sorted((segment for segment in hashed if segment.memsz), key=lambda s: s.phys)
    purgatory = build_purgatory(purgatory_pages, boot_params_at, backup, covered)
    segments = {segment.phys: segment for segment in (*covered, elfcorehdr, _segment(purgatory_at, purgatory))}
    return LoadPlan(purgatory_at + ENTRY_OFFSET, tuple(segments[phys] for phys in sorted(segments)), header)


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
