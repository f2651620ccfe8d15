# SPDX-License-Identifier: MIT
"""Dumps in ELF format: as the capture kernel shows them in /proc/vmcore, and as ``makedumpfile -E`` saves them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from crash_hotplug.core.arch.architecture import PAGE, Architecture, whole_pages
from crash_hotplug.core.dump.vmcore import (
    HEAD_LIMIT,
    NOTE_COUNT_LIMIT,
    NOTES_LIMIT,
    WHAT,
    ByteSource,
    DumpFile,
    Flattening,
    Vmcore,
)
from crash_hotplug.core.elf import (
    DUMP_INCOMPLETE,
    ELF_HEADER_SIZE,
    PT_LOAD,
    PT_NOTE,
    Note,
    ProgramHeader,
    parse_core_header,
    parse_notes,
    program_headers_end,
)
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.finding import Comparison, Finding, Kind
from crash_hotplug.core.header_shape import overlap_findings
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.verdict import compare_direct_map, compare_kernel_text


class _ElfVmcore(NamedTuple):
    headers: ElfCoreHeader
    """ELF header and program headers; p_offset is a file offset here."""
    notes: tuple[Note, ...]
    file_size: int
    notes_cut: int
    flattening: Flattening | None = None


class ElfVmcore(_ElfVmcore, Vmcore):
    """The headers and notes of an ELF vmcore."""

    format_name = "elf"
    dump_level = None
    compression = None

    @property
    def architecture(self) -> Architecture:
        """The architecture that the ELF header names."""
        return self.headers.architecture

    @property
    def ram(self) -> RangeList:
        """Physical ranges that the PT_LOADs of RAM describe."""
        return self.headers.ram

    @property
    def saved_size(self) -> int:
        """Bytes of RAM that the file should have."""
        return sum(min(p.p_filesz, p.p_memsz) for p in self.headers.ram_headers)

    @property
    def left_out_size(self) -> int:
        """Bytes of RAM that ``makedumpfile -E`` left out."""
        return sum(max(0, p.p_memsz - p.p_filesz) for p in self.headers.ram_headers)

    @property
    def range_count(self) -> int:
        """How many PT_LOADs describe RAM."""
        return len(self.headers.ram_headers)

    @property
    def files(self) -> tuple[DumpFile, ...]:
        """The one file of the dump."""
        kept = [p for p in self.headers.program_headers if p.p_type in (PT_LOAD, PT_NOTE)]
        announced = max((p.p_offset + p.p_filesz for p in kept), default=0)
        loads = [p.p_offset + p.p_filesz for p in self.headers.program_headers if p.p_type == PT_LOAD and p.p_filesz]
        if self.flattening is not None:
            is_beginning = self.flattening.is_beginning
        else:
            is_beginning = bool(loads) and self.file_size < min(loads) and self.file_size <= HEAD_LIMIT
        return (DumpFile(self.file_size, announced, is_beginning, flattening=self.flattening),)

    def add_layout(self, result: Comparison) -> None:
        """Check the program headers by themselves."""
        result.findings.extend(_malformed(self))
        result.findings.extend(overlap_findings(self.headers.ram_headers))
        result.findings.extend(_misplaced(self))
        if self.headers.elf_header.e_flags & DUMP_INCOMPLETE:
            sentence = "this dump is marked as incomplete (e_flags 1): makedumpfile ran out of space"
            result.findings.append(Finding(Kind.TRUNCATED, sentence))

    def add_addresses(self, result: Comparison) -> None:
        """Check that the kernel text is described."""
        if self.headers.kernel_text is None and self.headers.architecture.maps_kernel_text:
            sentence = "the kernel text is not described: debuggers cannot find the kernel's code and data"
            result.findings.append(Finding(Kind.WRONG_KERNEL_TEXT, sentence))

    def compare_addresses(self, machine: Machine, result: Comparison) -> None:
        """Compare the virtual addresses of the PT_LOADs with the machine's."""
        if self.headers.kernel_text is not None:  # else add_addresses() has reported it
            compare_kernel_text(machine, self.headers.kernel_text, result)
        compare_direct_map(machine, self.headers.ram_headers, result)


def parse_elf_vmcore(source: ByteSource, flattening: Flattening | None = None) -> ElfVmcore:
    """Read headers and notes of an ELF vmcore; nothing else of the file is read.

    :param flattening: how the stream ended that it was read from; None where it was none
    :raise InputError: it is truncated inside its headers, or is not a vmcore
    """
    header, _architecture = parse_core_header(source.read_at(0, ELF_HEADER_SIZE), WHAT)
    headers = parse_elfcorehdr(source.read_at(0, program_headers_end(header)), WHAT)
    segments = [p for p in headers.program_headers if p.p_type == PT_NOTE]
    areas = RangeList((p.p_offset, p.p_offset + min(p.p_filesz, NOTES_LIMIT)) for p in segments)
    contents = []
    budget = NOTES_LIMIT
    for area in areas:
        contents.append(source.read_at(area.start, min(area.size, budget)))
        budget -= len(contents[-1])
    notes: list[Note] = []
    budget = NOTES_LIMIT
    starts = [area.start for area in areas]
    for p in segments:
        at = bisect_right(starts, p.p_offset) - 1
        if p.p_filesz:
            start = p.p_offset - starts[at]
            piece = contents[at][start : start + min(p.p_filesz, budget)]
            budget -= len(piece)
            notes.extend(islice(parse_notes(piece), NOTE_COUNT_LIMIT - len(notes)))
    size = source.size
    cut = sum(p.p_filesz - max(0, min(p.p_filesz, size - p.p_offset)) for p in segments)
    return ElfVmcore(headers, tuple(notes), size, cut, flattening)


def _malformed(vmcore: ElfVmcore) -> Iterator[Finding]:
    for p in vmcore.headers.program_headers:
        wraps = p.p_offset + p.p_filesz >= 1 << 63 or p.p_paddr + p.p_memsz > 1 << 64
        if wraps or (p.p_type == PT_LOAD and p.p_filesz > p.p_memsz):
            sentence = (
                f"the program header for physical {p.p_paddr:#x} is malformed: file offset {p.p_offset:#x}, "
                f"file size {p.p_filesz:#x}, memory size {p.p_memsz:#x}"
            )
            yield Finding(Kind.MALFORMED, sentence)
    if not vmcore.headers.ram:
        yield Finding(Kind.MALFORMED, "no memory is described")


def _misplaced(vmcore: ElfVmcore) -> Iterator[Finding]:
    """Yield each segment that is not where a dump's writer puts it: behind the one before it in the file.

    /proc/vmcore begins each segment on a page of its own, at the segment's offset in its first page of memory
    (``process_ptload_program_headers_elf64()`` in fs/proc/vmcore.c): a segment takes the pages that its memory touches,
    so one without any bytes takes one page where it begins inside of one.  ``makedumpfile -E`` leaves no gap.
    """
    end, last = program_headers_end(vmcore.headers.elf_header), None
    next_page = whole_pages(end)
    segments = [p for p in vmcore.headers.program_headers if p.p_type in (PT_LOAD, PT_NOTE)]
    for p in sorted(segments, key=lambda p: p.p_offset):
        behind = whole_pages(p.p_offset + p.p_memsz)
        if not p.p_filesz:
            next_page = max(next_page, behind)
            continue
        name = f"the memory at {p.p_paddr:#x}" if p.p_type == PT_LOAD else "a PT_NOTE"
        if p.p_offset < end:
            if not _is_same_memory(p, last):
                before = "the headers" if last is None else "the notes" if last.p_type == PT_NOTE else "other memory"
                sentence = f"{name} would be read from file offset {p.p_offset:#x}, where the file has {before}"
                yield Finding(Kind.FILE_OVERLAP, f"{sentence} up to {end:#x}")
        elif p.p_type == PT_LOAD and p.p_offset != end:
            aligned = next_page + p.p_paddr % PAGE
            is_first = last is None or last.p_type == PT_NOTE
            if p.p_offset != aligned and not (is_first and (p.p_offset - aligned) % PAGE == 0):
                sentence = f"{name} would be read from file offset {p.p_offset:#x}; a dump has it at {aligned:#x}"
                yield Finding(Kind.MISPLACED, sentence)
        if p.p_offset + p.p_filesz > end:
            end, last = p.p_offset + p.p_filesz, p
        next_page = max(next_page, behind)


def _is_same_memory(p: ProgramHeader, other: ProgramHeader | None) -> bool:
    """Whether two PT_LOADs give the same memory the same place in the file, as those of two virtual addresses do."""
    if other is None or PT_NOTE in (p.p_type, other.p_type):
        return False
    return p.p_offset - p.p_paddr == other.p_offset - other.p_paddr
