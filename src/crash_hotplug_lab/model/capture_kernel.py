# SPDX-License-Identifier: MIT
"""The capture kernel, from its command line to the program headers of its elfcorehdr; its start is in arch/.

It follows the kernel, not the product: the command line as kernel/crash_dump.c and lib/cmdline.c read it, the header as
fs/proc/vmcore.c does.  A panic so is an oracle for the verdict on an image.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from crash_hotplug.core.elf import ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.memory import AbsentMemoryError, PhysicalMemory

COMMAND_LINE_SIZE = 2048
"""Bytes of the command line that the kernel keeps (arch/x86/include/asm/setup.h, include/uapi/asm-generic/setup.h)."""


class NoCaptureError(CrashHotplugError):
    """The capture kernel does not start, or shows no /proc/vmcore; the message is a sentence for people."""


class OldMemory(NamedTuple):
    """The crashed kernel's memory as the capture kernel reads it (``read_from_oldmem()`` in fs/proc/vmcore.c)."""

    memory: PhysicalMemory
    own_ram: RangeList
    """Physical ranges that the capture kernel uses as RAM; ``ioremap()`` refuses them."""
    reads_gone_memory: bool = True
    """Whether a read of memory that is gone returns anything."""

    def read(self, phys: int, length: int) -> bytes:
        """Return *length* bytes at a physical address; all ones where there is no memory.

        :raise NoCaptureError: an address is RAM of the capture kernel, or there is no memory and the read aborts
        """
        if RangeList([Range(phys, phys + length)]).intersect(self.own_ram):
            raise NoCaptureError(f"the capture kernel uses {phys:#x} as its own RAM and cannot read it as old memory")
        try:
            return self.memory.read(phys, length)
        except AbsentMemoryError as error:
            if not self.reads_gone_memory:
                raise NoCaptureError(f"the capture kernel's read aborts: {error}") from error
            return b"\xff" * length


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


def read_elfcorehdr(old: OldMemory, phys: int, machine_number: int) -> tuple[ElfCoreHeader, bytes]:
    """Read the header as ``parse_crash_elf64_headers()`` does, with its checks.

    :param machine_number: the capture kernel's ``e_machine``
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
        and (e_type, e_machine, e_version) == (4, machine_number, 1)
        and (e_ehsize, e_phentsize) == (ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE)
        and e_phnum > 0
    )
    if not accepted:
        raise NoCaptureError(f"the capture kernel accepts no elfcorehdr at {phys:#x}")
    data = old.read(phys, ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE * e_phnum)
    return parse_elfcorehdr(data), data
