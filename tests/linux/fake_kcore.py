# SPDX-License-Identifier: MIT
"""A /proc/kcore as a file with contents, so that the live path runs on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from crash_hotplug.core.elf import PT_LOAD, ProgramHeader, core_header, pack_program_headers
from crash_hotplug.core.ranges import Range

DIRECT_MAP = 0xFFFF_8880_0000_0000
TEXT_VIRT = 0xFFFF_FFFF_8100_0000
TEXT_PHYS = 0x100_0000
RAM_SIZE = 0x4000_0000
TEXT_OFFSET = 0x80_0000
"""Of the kernel's text in the file; before it is room for 149,000 program headers."""
_RAM_OFFSET = 0x100_0000
RAM_HEADER_AT = 64 + 2 * 56
"""Of the program header of RAM in the file."""
_VMALLOC = ProgramHeader(PT_LOAD, 7, 0x800_0000_0000, 0xFFFF_C900_0000_0000, (1 << 64) - 1, 1 << 40, 1 << 40, 4096)


def write_kcore(
    path: Path, physical: Mapping[int, bytes], kernel_data: Mapping[int, bytes], more_ram: Sequence[Range] = ()
) -> None:
    """Write a sparse kcore.

    :param physical: contents by physical address
    :param kernel_data: contents by virtual address in the kernel's text mapping
    :param more_ram: physical ranges above that have a program header and no contents
    """
    text_size = 0x80_0000
    entries = [
        ProgramHeader(PT_LOAD, 7, TEXT_OFFSET, TEXT_VIRT, TEXT_PHYS, text_size, text_size, 4096),
        _VMALLOC,
        ProgramHeader(PT_LOAD, 7, _RAM_OFFSET, DIRECT_MAP, 0, RAM_SIZE, RAM_SIZE, 4096),
        *(
            ProgramHeader(PT_LOAD, 7, _RAM_OFFSET + r.start, DIRECT_MAP + r.start, r.start, r.size, r.size, 4096)
            for r in more_ram
        ),
    ]
    with path.open("wb") as file:
        file.write(core_header(62, len(entries)).to_bytes() + pack_program_headers(entries))
        for phys, data in physical.items():
            file.seek(_RAM_OFFSET + phys)
            file.write(data)
        for virt, data in kernel_data.items():
            file.seek(TEXT_OFFSET + virt - TEXT_VIRT)
            file.write(data)
        file.truncate(_RAM_OFFSET + RAM_SIZE)
