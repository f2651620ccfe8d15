# SPDX-License-Identifier: MIT
"""The differences between architectures in building and reading an elfcorehdr.

Each architecture has one record here.  No other code in the core depends on the architecture.
"""

from __future__ import annotations

from crash_hotplug.core.ranges import Range
from crash_hotplug.core.records import NamedTuple


class Architecture(NamedTuple):
    """How one architecture lays out its elfcorehdr."""

    name: str
    """The name ``uname -m`` prints."""
    machine_number: int
    """``e_machine`` of its ELF files."""
    excluded_low_memory: Range
    """Physical range that the kernel's own loader leaves out of the header."""
    backup_region_source: Range
    """Physical range in which RAM that kexec-tools backs up lies; empty where it backs up none."""
    maps_kernel_text: bool
    """Whether the header has a PT_LOAD of the kernel text at its virtual address."""
    kernel_text_virt: Range
    """Virtual range in which kernel text is linked (a PT_LOAD there is no RAM range)."""
    kernel_padding: int
    """The kernel's loader pads the header with zeros to a multiple of this (``ELF_CORE_HEADER_ALIGN``)."""


X86_64 = Architecture(
    name="x86_64",
    machine_number=62,
    # elf_header_exclude_ranges() in arch/x86/kernel/crash.c: the low 1M is always reserved by the capture kernel.
    excluded_low_memory=Range(0, 1 << 20),
    # BACKUP_SRC_START and BACKUP_SRC_END of kexec-tools: purgatory copies the RAM found there elsewhere.
    backup_region_source=Range(0, 640 << 10),
    maps_kernel_text=True,
    # __START_KERNEL_map up to the end of the address space (Documentation/arch/x86/x86_64/mm.rst).
    kernel_text_virt=Range(0xFFFF_FFFF_8000_0000, 1 << 64),
    kernel_padding=4096,
)

PAGE = 4096
"""Bytes in a page of x86_64; the segments of an image are made of whole ones."""

SUPPORTED = {architecture.machine_number: architecture for architecture in (X86_64,)}
"""The supported architectures by ``e_machine``."""

_OTHER_NAMES = {3: "i386", 8: "MIPS", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 183: "aarch64", 243: "riscv"}
_OTHER_NAMES[258] = "loongarch"


def architecture_of(machine_number: int) -> Architecture | None:
    """Return the architecture with this ``e_machine``, or None where it is not supported."""
    return SUPPORTED.get(machine_number)


def machine_name(machine_number: int) -> str:
    """Return a name for *machine_number* that a person knows, for messages."""
    known = SUPPORTED.get(machine_number)
    name = known.name if known else _OTHER_NAMES.get(machine_number, "unknown")
    return f"{name} (e_machine {machine_number})"


def whole_pages(size: int) -> int:
    """Return *size* bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE
