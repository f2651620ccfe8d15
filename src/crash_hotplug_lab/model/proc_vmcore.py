# SPDX-License-Identifier: MIT
"""/proc/vmcore as the capture kernel shows it: headers rearranged, notes merged (fs/proc/vmcore.c)."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cached_property

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.elf import PT_LOAD, PT_NOTE, ProgramHeader, pack_program_headers, program_headers_end
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.capture_kernel import NoCaptureError, OldMemory


def _page_up(size: int) -> int:
    return -(-size // PAGE) * PAGE


KMALLOC_MAX_SIZE = 4 << 20
"""The most that ``kmalloc()`` gives on x86_64, and so the most that a PT_NOTE may have."""


def real_notes(old: OldMemory, place: NoteRegion) -> bytes:
    """Return the notes saved at a PT_NOTE's place, up to the empty note (``update_note_header_size_elf64()``).

    There is none if the CPU saved no registers, or without memory there.  The list ends before a note that does not fit
    into the place.

    :raise NoCaptureError: the capture kernel cannot read the place
    """
    if place.size == 0:
        raise NoCaptureError(f"the capture kernel reads a note at {place.phys:#x} into no memory, and panics")
    if place.size > KMALLOC_MAX_SIZE:
        raise NoCaptureError(f"the capture kernel has no memory for {place.size} bytes of notes")
    data = old.read(place.phys, place.size)
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
    old: OldMemory

    @cached_property
    def notes(self) -> bytes:
        """All notes, merged into one PT_NOTE.

        :raise NoCaptureError: there is none, or one cannot be read: there is no /proc/vmcore then
        """
        merged = b"".join(real_notes(self.old, place) for place in self.elfcorehdr.notes)
        if not merged:
            raise NoCaptureError("the capture kernel found no notes")
        return merged

    @cached_property
    def _kept(self) -> tuple[ProgramHeader, ...]:
        """The program headers behind the merged PT_NOTE.

        ``merge_note_headers_elf64()`` takes as many of the first ones out as there are PT_NOTEs, wherever these are.
        """
        return self.elfcorehdr.program_headers[len(self.elfcorehdr.notes) :]

    @cached_property
    def program_headers(self) -> tuple[ProgramHeader, ...]:
        """The merged PT_NOTE, then each PT_LOAD in whole pages, one after the other in the file."""
        headers_size = _page_up(64 + 56 * (1 + len(self._kept)))
        made = [ProgramHeader(PT_NOTE, 0, headers_size, 0, 0, len(self.notes), len(self.notes), 4)]
        at = headers_size + _page_up(len(self.notes))
        for p in self._kept:
            if p.p_type != PT_LOAD:
                made.append(p)
                continue
            into_page = p.p_offset % PAGE
            made.append(p._replace(p_offset=at + into_page))
            at += _page_up(into_page + p.p_memsz)
        return tuple(made)

    @cached_property
    def _contents(self) -> list[tuple[int, Range]]:
        """(file offset, physical range) of each PT_LOAD, in whole pages."""
        made = []
        for source, shown in zip(self._kept, self.program_headers[1:]):
            if source.p_type != PT_LOAD:
                continue
            start = source.p_offset // PAGE * PAGE
            made.append((shown.p_offset // PAGE * PAGE, Range(start, _page_up(source.p_offset + source.p_memsz))))
        return made

    @cached_property
    def _front(self) -> bytes:
        header = self.elfcorehdr.elf_header._replace(e_phnum=len(self.program_headers))
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
        return RangeList(source for _offset, source in self._contents).exclude(self.old.memory.present)

    def wrong(self, backup: tuple[Range, int] | None) -> RangeList:
        """Return the physical ranges that the file describes, but whose contents in it are not the crashed kernel's.

        :param backup: the physical range that purgatory copied, and the physical address of the copy
        """
        found: list[Range] = []
        for p in self._kept:
            if p.p_type == PT_LOAD and p.p_memsz:
                described = Range(p.p_paddr, p.p_paddr + p.p_memsz)
                moved = p.p_offset - p.p_paddr
                found.append(Range(min(p.p_paddr + p.p_filesz, described.end), described.end))
                if moved and not _is_copy(described, moved, backup):
                    found.append(described)
                    continue
                source = RangeList([Range(p.p_offset, p.p_offset + p.p_memsz)])
                for start, end in (*source.intersect(self.old.own_ram), *source.exclude(self.old.memory.present)):
                    found.append(Range(start - moved, end - moved))
        return RangeList(found)

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
                    for phys, page in self.old.memory.pages(source.start, source.end):
                        file.seek(offset + phys - source.start)
                        file.write(page)
                file.truncate(self.size)
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)
            raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _is_copy(described: Range, moved: int, backup: tuple[Range, int] | None) -> bool:
    """Whether *described*, read *moved* bytes higher, is what purgatory copied there."""
    if backup is None:
        return False
    source, destination = backup
    return source.start <= described.start and described.end <= source.end and moved == destination - source.start
