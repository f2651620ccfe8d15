# SPDX-License-Identifier: MIT
"""The elfcorehdr: parse one, and write one.

Layout and order are those of ``crash_prepare_elf64_headers()`` in kernel/crash_core.c and of kexec-tools'
``crashdump-elf.c``: one PT_NOTE per CPU, one for vmcoreinfo, the kernel text, one PT_LOAD per RAM range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.elf import (
    ELF_HEADER_SIZE,
    PF_RWX,
    PN_XNUM,
    PROGRAM_HEADER_SIZE,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    ProgramHeader,
    core_header,
    pack_program_headers,
    parse_core_header,
    parse_program_headers,
    program_headers_end,
)
from crash_hotplug.core.errors import NoRoomError
from crash_hotplug.core.machine import KernelText, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple

WHAT = "this elfcorehdr"


class _ElfCoreHeader(NamedTuple):
    elf_header: ElfHeader
    program_headers: tuple[ProgramHeader, ...]
    architecture: Architecture


class ElfCoreHeader(_ElfCoreHeader):
    """A parsed or built elfcorehdr; :meth:`to_bytes` returns the parsed bytes unchanged."""

    @property
    def size(self) -> int:
        """Bytes without padding."""
        return program_headers_end(self.elf_header)

    def to_bytes(self, padding: int = 1) -> bytes:
        """Return the header's bytes, padded with zeros to a multiple of *padding*."""
        data = self.elf_header.to_bytes() + pack_program_headers(self.program_headers)
        return data + bytes(-len(data) % padding)

    @cached_property
    def notes(self) -> tuple[NoteRegion, ...]:
        """Physical places of all PT_NOTEs, in order: the CPUs', then vmcoreinfo's."""
        return tuple(NoteRegion(p.p_offset, p.p_memsz) for p in self.program_headers if p.p_type == PT_NOTE)

    @property
    def vmcoreinfo(self) -> NoteRegion | None:
        """The last PT_NOTE, where both loaders put vmcoreinfo; None where it looks like one more CPU's."""
        notes = self.notes
        if not notes or (len(notes) > 1 and notes[-1].size == notes[0].size):
            return None
        return notes[-1]

    @property
    def cpu_notes(self) -> tuple[NoteRegion, ...]:
        """The PT_NOTEs without vmcoreinfo's."""
        return self.notes if self.vmcoreinfo is None else self.notes[:-1]

    @cached_property
    def kernel_text(self) -> KernelText | None:
        """The PT_LOAD at the kernel's link address, or None.

        ``makedumpfile -E`` splits it where it leaves pages out; adjacent pieces are joined again.
        """
        pieces = self._text_headers
        if not pieces:
            return None
        text = KernelText(pieces[0].p_vaddr, pieces[0].p_paddr, pieces[0].p_memsz)
        for p in pieces[1:]:
            if (p.p_vaddr, p.p_paddr) == (text.virt + text.size, text.phys + text.size):
                text = KernelText(text.virt, text.phys, text.size + p.p_memsz)
        return text

    @cached_property
    def backup_region(self) -> ProgramHeader | None:
        """The PT_LOAD of low memory that points to purgatory's copy of that memory; or None."""
        source = self.architecture.backup_region_source
        for p in self.program_headers:
            if p.p_type == PT_LOAD and p.p_offset != p.p_paddr and source.start <= p.p_paddr < source.end:
                return p
        return None

    @cached_property
    def ram_headers(self) -> tuple[ProgramHeader, ...]:
        """The PT_LOADs of RAM, the backup region's included, the kernel text's not."""
        text = set(self._text_headers)
        return tuple(p for p in self.program_headers if p.p_type == PT_LOAD and p not in text)

    @cached_property
    def ram(self) -> RangeList:
        """Physical RAM that the header describes (addresses in the crashed kernel, not those that are read).

        Ends are cut at 2^64: a hostile p_memsz must not make a range that no machine has.
        """
        return RangeList((p.p_paddr, min(p.p_paddr + p.p_memsz, 1 << 64)) for p in self.ram_headers)

    @cached_property
    def _text_headers(self) -> Sequence[ProgramHeader]:
        loads = [p for p in self.program_headers if p.p_type == PT_LOAD]
        return self.architecture.kernel_text_headers(loads) if self.architecture.maps_kernel_text else ()


def parse_elfcorehdr(data: bytes, what: str = WHAT) -> ElfCoreHeader:
    """Parse the elfcorehdr at the start of *data*; the bytes after it (padding, room) are ignored.

    :raise ElfFormatError: it is not one, or is for an architecture that is not supported
    """
    elf_header, architecture = parse_core_header(data, what)
    return ElfCoreHeader(elf_header, tuple(parse_program_headers(data, elf_header, what)), architecture)


def note_header(note: NoteRegion) -> ProgramHeader:
    """Return the PT_NOTE for a place in memory."""
    return ProgramHeader(PT_NOTE, 0, note.phys, 0, note.phys, note.size, note.size, 0)


def kernel_text_header(text: KernelText) -> ProgramHeader:
    """Return the PT_LOAD that maps the kernel text at its virtual address."""
    return ProgramHeader(PT_LOAD, PF_RWX, text.phys, text.virt, text.phys, text.size, text.size, 0)


def ram_header(ram: Range, page_offset: int, read_from: int | None = None) -> ProgramHeader:
    """Return the PT_LOAD for one RAM range.

    :param page_offset: virtual minus physical address of RAM
    :param read_from: physical address of the backup region, where the contents are elsewhere
    """
    start = ram.start if read_from is None else read_from
    return ProgramHeader(PT_LOAD, PF_RWX, start, ram.start + page_offset, ram.start, ram.size, ram.size, 0)


def build_elfcorehdr(
    architecture: Architecture,
    cpu_notes: Iterable[NoteRegion],
    vmcoreinfo: NoteRegion | None,
    kernel_text: KernelText | None,
    ram_headers: Sequence[ProgramHeader],
) -> ElfCoreHeader:
    """Put a header together in the order that kernel and kexec-tools use.

    :raise NoRoomError: more entries than ``e_phnum`` can count
    """
    entries = [note_header(note) for note in cpu_notes]
    if vmcoreinfo is not None:
        entries.append(note_header(vmcoreinfo))
    if kernel_text is not None and architecture.maps_kernel_text:
        entries.append(kernel_text_header(kernel_text))
    entries.extend(ram_headers)
    if len(entries) >= PN_XNUM:
        raise NoRoomError(f"{len(entries)} entries do not fit into an elfcorehdr: e_phnum counts to {PN_XNUM - 1}")
    return ElfCoreHeader(core_header(architecture.machine_number, len(entries)), tuple(entries), architecture)


def entries_that_fit(room: int) -> int:
    """Return how many program headers an elfcorehdr in *room* bytes can have."""
    return max(0, min((room - ELF_HEADER_SIZE) // PROGRAM_HEADER_SIZE, PN_XNUM - 1))
