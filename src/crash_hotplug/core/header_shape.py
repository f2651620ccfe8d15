# SPDX-License-Identifier: MIT
"""The shape of a header: entries that the capture kernel or a tool misreads, and entries that no loader writes."""

from __future__ import annotations

from collections.abc import Iterator

from crash_hotplug.core.elf import DUMP_INCOMPLETE, PF_RWX, PT_LOAD, PT_NOTE, ElfHeader, ProgramHeader, core_header
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, note_header
from crash_hotplug.core.finding import Comparison, Finding, Kind, placed
from crash_hotplug.core.machine import Machine, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList

_NOTE_LIMIT = 4 << 20
"""The most bytes that ``kmalloc()`` gives on x86_64 (KMALLOC_MAX_SIZE), and so the most of one PT_NOTE."""


def shape_findings(header: ElfCoreHeader) -> Iterator[Finding]:
    """Yield the defects of header and PT_LOADs that are independent of the machine."""
    if header.elf_header.e_flags & DUMP_INCOMPLETE:
        # /proc/vmcore has the e_flags of the header that was loaded.
        yield Finding(Kind.MALFORMED, "the ELF header has e_flags 1: tools would take the dump for an incomplete one")
    for p in header.program_headers:
        if p.p_type != PT_LOAD:
            continue
        if p.p_filesz != p.p_memsz or p.p_paddr + p.p_memsz > 1 << 64:
            # Both sizes of one range went wrong on powerpc once: FileSiz 0xffffffffc0000000.
            sentence = f"the range at {p.p_paddr:#x} has file size {p.p_filesz:#x} and memory size {p.p_memsz:#x}"
            yield Finding(Kind.MALFORMED, f"{sentence}: no dump can hold it")
        elif p.p_offset != p.p_paddr and p.p_memsz and p is not header.backup_region:
            whole = Range(p.p_paddr, p.p_paddr + p.p_memsz)
            sentence = f"{placed(whole)} would be read from {p.p_offset:#x}: the wrong memory"
            yield Finding(Kind.WRONG_SOURCE, sentence, (whole,))
    yield from overlap_findings(header.ram_headers)


def unusual_notes(machine: Machine, header: ElfCoreHeader) -> Iterator[Finding]:
    """Yield a note for each part of *header* that no loader writes; a field that already is a finding has none."""
    meant = core_header(machine.architecture.machine_number, len(header.program_headers))
    meant = meant._replace(e_flags=header.elf_header.e_flags & DUMP_INCOMPLETE)
    if header.elf_header != meant:
        yield Finding(Kind.UNUSUAL, f"the ELF header has {_differences(header.elf_header, meant)}")
    texts = -len(header.ram_headers)
    for number, p in enumerate(header.program_headers):
        if p.p_type == PT_NOTE:
            as_written = note_header(NoteRegion(p.p_offset, p.p_memsz))
        elif p.p_type == PT_LOAD:
            texts += 1
            # Most entries are these and right; a header may have thousands.
            is_right = p.p_flags == PF_RWX and p.p_align == 0
            as_written = p if is_right else p._replace(p_flags=PF_RWX, p_align=0)
        else:
            yield Finding(Kind.UNUSUAL, f"entry {number} is neither PT_NOTE nor PT_LOAD: its p_type is {p.p_type:#x}")
            continue
        if p != as_written:
            yield Finding(Kind.UNUSUAL, f"entry {number} has {_differences(p, as_written)}")
        elif p.p_memsz == 0 and p.p_type == PT_LOAD:
            yield Finding(Kind.UNUSUAL, f"entry {number} describes nothing: its p_memsz is 0")
    if texts > 1:
        yield Finding(Kind.UNUSUAL, f"the kernel text is described {texts} times")
    yield from _unknown_notes(machine, header)


def _differences(found: ElfHeader | ProgramHeader, meant: ElfHeader | ProgramHeader) -> str:
    pairs = zip(found._fields, found, meant)
    return ", ".join(f"{name} {_shown(is_)} (a loader writes {_shown(by)})" for name, is_, by in pairs if is_ != by)


def _shown(value: object) -> str:
    return hex(value) if isinstance(value, int) else bytes(value).hex(" ") if isinstance(value, bytes) else str(value)


def _unknown_notes(machine: Machine, header: ElfCoreHeader) -> Iterator[Finding]:
    """Yield a note for each PT_NOTE that is no CPU's and not vmcoreinfo's, as far as their addresses are known."""
    sizes = {cpu.crash_notes.size for cpu in machine.cpus if cpu.crash_notes is not None}
    if machine.vmcoreinfo is None or not sizes:
        return
    known = {cpu.crash_notes.phys for cpu in machine.cpus if cpu.crash_notes is not None} | {machine.vmcoreinfo.phys}
    nameless = sum(cpu.crash_notes is None for cpu in machine.cpus)
    for note in dict.fromkeys(header.notes):
        if note.phys in known and note.phys != machine.vmcoreinfo.phys and note.size > max(sizes):
            sentence = f"a CPU saves {max(sizes)} bytes at {note.phys:#x}, but {note.size} are described"
        elif note.phys not in known and (note.size not in sizes or nameless == 0):
            sentence = f"the notes at {note.phys:#x} are no CPU's and not vmcoreinfo"
        else:
            nameless -= note.phys not in known  # the notes of a CPU that is not present
            continue
        yield Finding(Kind.UNKNOWN_NOTES, sentence)


def compare_notes(machine: Machine, header: ElfCoreHeader, result: Comparison) -> None:
    """Look for PT_NOTEs from which the capture kernel makes no notes, or too many (fs/proc/vmcore.c).

    ``merge_note_headers_elf64()`` takes them for the first entries, ``update_note_header_size_elf64()`` reads each one
    into a buffer of its size.
    """
    notes = header.notes
    if any(p.p_type != PT_NOTE for p in header.program_headers[: len(notes)]):
        sentence = (
            "a PT_NOTE stands behind another entry: the capture kernel would drop that entry and keep the PT_NOTE"
        )
        result.findings.append(Finding(Kind.MALFORMED, sentence))
    places = RangeList((note.phys, min(note.phys + note.size, 1 << 64)) for note in notes)
    for gone in () if machine.architecture.reads_gone_memory else places.exclude(machine.ram):
        sentence = f"notes are described at {gone.start:#x}, which is not RAM: reading them ends the capture kernel"
        result.findings.append(Finding(Kind.MEMORY_GONE, sentence, (gone,)))
    saved = {cpu.crash_notes.phys: cpu.crash_notes.size for cpu in machine.online_cpus if cpu.crash_notes is not None}
    seen: set[int] = set()
    for note in sorted(notes, reverse=True):
        if not 0 < note.size <= _NOTE_LIMIT:
            sentence = f"the notes at {note.phys:#x} have {note.size} bytes: the capture kernel fails to read them"
            result.findings.append(Finding(Kind.MALFORMED, f"{sentence}, and saves no dump"))
        if note.phys not in seen:
            seen.add(note.phys)
            continue
        sentence = f"the notes at {note.phys:#x} are described twice"
        if note.size >= saved.get(note.phys, note.size + 1):
            sentence += ": a dump would have the registers of a CPU too many"
            result.findings.append(Finding(Kind.DESCRIBED_TWICE, sentence))
        else:  # vmcoreinfo, which is the same twice; a CPU that is not running; or too few bytes to hold registers
            result.notes.append(Finding(Kind.DESCRIBED_TWICE, sentence))


def overlap_findings(ram_headers: tuple[ProgramHeader, ...]) -> Iterator[Finding]:
    """Yield each physical range that more than one PT_LOAD of RAM describes."""
    last_end = 0
    for start, end in sorted((p.p_paddr, min(p.p_paddr + p.p_memsz, 1 << 64)) for p in ram_headers):
        if start < last_end and start < end:
            overlap = Range(start, min(last_end, end))
            yield Finding(Kind.OVERLAP, f"{placed(overlap)} is described twice", (overlap,))
        last_end = max(last_end, end)
