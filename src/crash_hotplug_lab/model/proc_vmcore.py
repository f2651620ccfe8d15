# SPDX-License-Identifier: MIT
"""/proc/vmcore as the capture kernel shows it: headers rearranged, notes merged (fs/proc/vmcore.c)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cached_property

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.elf import (
    PT_LOAD,
    PT_NOTE,
    ProgramHeader,
    core_header,
    pack_program_headers,
    program_headers_end,
)
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.memory import AbsentMemoryError, PhysicalMemory


def _page_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


def real_notes(memory: PhysicalMemory, place: NoteRegion) -> bytes:
    """Return the notes saved at a PT_NOTE's place, up to the empty note (``get_note_number_and_size_elf64()``).

    There is none if the CPU saved no registers.  The list ends before a note that does not fit into the place.
    """
    data = memory.read(place.phys, place.size)
    at = 0
    while at + 12 <= len(data):
        name_size = int.from_bytes(data[at : at + 4], "little")
        descriptor_size = int.from_bytes(data[at + 4 : at + 8], "little")
        if name_size == 0:
            break
        size = 12 + ((name_size + 3) & ~3) + ((descriptor_size + 3) & ~3)
        if at + size > len(data):
            break
        at += size
    return data[:at]


@dataclass(frozen=True)
class ProcVmcore:
    """/proc/vmcore over the memory of the crashed machine; a ``ByteSource`` for the audit."""

    elfcorehdr: ElfCoreHeader
    memory: PhysicalMemory

    @cached_property
    def notes(self) -> bytes:
        """All notes, merged into one PT_NOTE; a PT_NOTE that points to absent memory has none."""
        found = []
        for place in self.elfcorehdr.notes:
            try:
                found.append(real_notes(self.memory, place))
            except AbsentMemoryError:
                continue
        return b"".join(found)

    @cached_property
    def program_headers(self) -> tuple[ProgramHeader, ...]:
        """The merged PT_NOTE, then each PT_LOAD in whole pages, one after the other in the file."""
        loads = [p for p in self.elfcorehdr.program_headers if p.p_type == PT_LOAD]
        headers_size = _page_up(64 + 56 * (1 + len(loads)))
        made = [ProgramHeader(PT_NOTE, 0, headers_size, 0, 0, len(self.notes), len(self.notes), 4)]
        at = headers_size + _page_up(len(self.notes))
        for p in loads:
            into_page = p.p_offset % PAGE
            made.append(p._replace(p_offset=at + into_page))
            at += _page_up(into_page + p.p_memsz)
        return tuple(made)

    @cached_property
    def _contents(self) -> list[tuple[int, Range]]:
        """(file offset, physical range) of each PT_LOAD, in whole pages."""
        loads = [p for p in self.elfcorehdr.program_headers if p.p_type == PT_LOAD]
        made = []
        for source, shown in zip(loads, self.program_headers[1:]):
            start = source.p_offset // PAGE * PAGE
            made.append((shown.p_offset // PAGE * PAGE, Range(start, _page_up(source.p_offset + source.p_memsz))))
        return made

    @cached_property
    def _front(self) -> bytes:
        header = core_header(self.elfcorehdr.elf_header.e_machine, len(self.program_headers))
        front = (header.to_bytes() + pack_program_headers(self.program_headers)).ljust(
            _page_up(program_headers_end(header)), b"\0"
        )
        return (front + self.notes).ljust(len(front) + _page_up(len(self.notes)), b"\0")

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        if not self._contents:
            return len(self._front)
        offset, source = self._contents[-1]
        return offset + source.size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to *length* bytes of headers and notes at a file offset, without the contents of memory."""
        return self._front[offset : offset + length]

    @property
    def absent(self) -> RangeList:
        """Physical ranges in the file that have no memory behind them."""
        return RangeList(source for _offset, source in self._contents).exclude(self.memory.present)

    def write(self, path: str) -> None:
        """Save the vmcore as a sparse file, whole or not at all; pages of zeros take no space on the disk.

        :raise InputError: the file cannot be written
        """
        temporary = None
        try:
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", delete=False) as file:
                temporary = file.name
                file.write(self._front)
                for offset, source in self._contents:
                    for phys, page in self.memory.pages(source.start, source.end):
                        file.seek(offset + phys - source.start)
                        file.write(page)
                file.truncate(self.size)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
