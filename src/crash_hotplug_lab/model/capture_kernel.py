# SPDX-License-Identifier: MIT
"""The capture kernel, from its zero page to the program headers of its elfcorehdr.

It follows the kernel, not the product: the command line as kernel/crash_dump.c and lib/cmdline.c read it, the header as
fs/proc/vmcore.c does.  A panic so is an oracle for the verdict on an image.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import E820_RAM, cmdline_phys, e820_table, is_boot_params
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.elf import ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.memory import AbsentMemoryError, PhysicalMemory
from crash_hotplug_lab.model.purgatory import Purgatory

COMMAND_LINE_SIZE = 2048
"""Bytes of the command line that the kernel keeps (arch/x86/include/asm/setup.h)."""
_EM_X86_64 = 62


class NoCaptureError(CrashHotplugError):
    """The capture kernel does not start, or shows no /proc/vmcore; the message is a sentence for people."""


class OldMemory(NamedTuple):
    """The crashed kernel's memory as the capture kernel reads it (``read_from_oldmem()`` in fs/proc/vmcore.c)."""

    memory: PhysicalMemory
    own_ram: RangeList
    """Physical ranges that the capture kernel uses as RAM; ``ioremap()`` refuses them."""

    def read(self, phys: int, length: int) -> bytes:
        """Return *length* bytes at a physical address; all ones where there is no memory.

        :raise NoCaptureError: an address is RAM of the capture kernel
        """
        if RangeList([Range(phys, phys + length)]).intersect(self.own_ram):
            raise NoCaptureError(f"the capture kernel uses {phys:#x} as its own RAM and cannot read it as old memory")
        try:
            return self.memory.read(phys, length)
        except AbsentMemoryError:
            return b"\xff" * length


def start_capture_kernel(memory: PhysicalMemory, purgatory: Purgatory) -> tuple[OldMemory, int]:
    """Start the capture kernel from the zero page that purgatory passes to it.

    :return: its view of the old memory, and the physical address of its elfcorehdr
    :raise NoCaptureError: it has no RAM to run in, or its command line has no ``elfcorehdr=``
    :raise AbsentMemoryError: zero page or command line have no memory behind them
    """
    page = memory.read(purgatory.boot_params_phys, PAGE)
    if not is_boot_params(page):
        raise NoCaptureError(f"there is no boot_params at {purgatory.boot_params_phys:#x}")
    own_ram = RangeList(entry for entry, kind in e820_table(page) if kind == E820_RAM)
    if not memory.present.covers(own_ram.exclude(RangeList([X86_64.excluded_low_memory]))):
        raise NoCaptureError("the capture kernel's memory map has RAM where no memory is")
    backup_at = None if purgatory.backup is None else purgatory.backup[1]
    for start, length in purgatory.regions:
        is_read_only = start == backup_at or (length and memory.read(start, 4) == b"\x7fELF")
        if length and not is_read_only and not own_ram.covers(RangeList([Range(start, start + length)])):
            raise NoCaptureError(f"the capture kernel's memory map has no RAM at {start:#x}, where the image is loaded")
    address = elfcorehdr_address(memory.read(cmdline_phys(page), COMMAND_LINE_SIZE).split(b"\0")[0])
    if address is None:
        raise NoCaptureError("the capture kernel's command line has no elfcorehdr=")
    return OldMemory(memory, own_ram), address


def elfcorehdr_address(cmdline: bytes) -> int | None:
    """Return the address that ``setup_elfcorehdr()`` keeps; the last ``elfcorehdr=`` overrides the others."""
    address = None
    for word in cmdline[: COMMAND_LINE_SIZE - 1].decode("ascii", "replace").replace('"', "").split():
        if word == "--":
            break
        if word.startswith("elfcorehdr="):
            first, _, second = word[len("elfcorehdr=") :].partition("@")
            address = _memparse(second or first)
    return address


def _memparse(text: str) -> int:
    """Return the number that ``memparse()`` reads: hexadecimal, octal or decimal, with a suffix."""
    digits = re.match(r"0[xX][0-9a-fA-F]+|0[0-7]*|[0-9]+", text)
    if digits is None:
        return 0
    number = digits[0]
    base = 16 if number[:2].lower() == "0x" else 8 if number[0] == "0" else 10
    unit = "KMGTPE".find(text[len(number) : len(number) + 1].upper()) if text[len(number) :] else -1
    return int(number, base) << 10 * (unit + 1) & (1 << 64) - 1


def read_elfcorehdr(old: OldMemory, phys: int) -> tuple[ElfCoreHeader, bytes]:
    """Read the header as ``parse_crash_elf64_headers()`` does, with its checks.

    :return: the header, and its bytes without padding
    :raise NoCaptureError: the capture kernel rejects the header
    :raise ElfFormatError: the capture kernel accepts the header, but no tool can read the vmcore that it makes of it
    """
    data = old.read(phys, ELF_HEADER_SIZE)
    e_type, e_machine, e_version = struct.unpack_from("<HHI", data, 16)
    _e_flags, e_ehsize, e_phentsize, e_phnum = struct.unpack_from("<IHHH", data, 48)
    accepted = (
        data[:5] == b"\x7fELF\x02"
        and data[6] == 1
        and (e_type, e_machine, e_version) == (4, _EM_X86_64, 1)
        and (e_ehsize, e_phentsize) == (ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE)
        and e_phnum > 0
    )
    if not accepted:
        raise NoCaptureError(f"the capture kernel accepts no elfcorehdr at {phys:#x}")
    data = old.read(phys, ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE * e_phnum)
    return parse_elfcorehdr(data), data
