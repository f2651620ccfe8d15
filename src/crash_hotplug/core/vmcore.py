# SPDX-License-Identifier: MIT
"""Audit a vmcore: its contents, its defects, and its losses compared with a machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from crash_hotplug.core.arch.architecture import PAGE, whole_pages
from crash_hotplug.core.elf import (
    ELF_HEADER_SIZE,
    NT_PRSTATUS,
    PT_LOAD,
    PT_NOTE,
    Note,
    ProgramHeader,
    parse_core_header,
    parse_notes,
    program_headers_end,
)
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple, Protocol
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.verdict import (
    IN_DUMP,
    Comparison,
    Finding,
    Kind,
    compare_backup_region,
    compare_direct_map,
    compare_kernel_text,
    compare_memory,
    overlap_findings,
)
from crash_hotplug.core.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

WHAT = "this vmcore"
HEAD_LIMIT = 1 << 20
"""A file of at most this many bytes that ends before its first PT_LOAD ends is taken for the beginning of a vmcore."""
NOTES_LIMIT = 64 << 20
"""Notes beyond this many bytes are not read: 1,024 CPUs' take less than 1 MiB."""
NOTE_COUNT_LIMIT = 1 << 17
"""Notes beyond this number are not read: a hostile file could contain millions of small ones."""

_NOT_CONVERTIBLE = "makedumpfile -E saves one from /proc/vmcore, and converts no saved dump"
_OTHER_FORMATS = {
    b"KDUMP   ": ("compressed by makedumpfile", _NOT_CONVERTIBLE),
    b"DISKDUMP": ("in the diskdump format", _NOT_CONVERTIBLE),
    b"makedumpfile\0": ("flattened by makedumpfile -F", "makedumpfile -R restores the dump"),
    b"\x1f\x8b": ("compressed by gzip", "decompress it first"),
    b"\xfd7zXZ\0": ("compressed by xz", "decompress it first"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it first"),
}
"""The name of a format, and the way to an ELF vmcore, by the first bytes."""


class ByteSource(Protocol):
    """The bytes of a vmcore."""

    @property
    def size(self) -> int:
        """Bytes in the file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at file *offset*, fewer at the end of the file."""


class Vmcore(NamedTuple):
    """The headers and notes of an ELF vmcore."""

    headers: ElfCoreHeader
    """ELF header and program headers; p_offset is a file offset here."""
    notes: tuple[Note, ...]
    file_size: int
    notes_cut: int
    """Bytes of notes that the headers announce and the file does not have."""

    @property
    def vmcoreinfo(self) -> Vmcoreinfo:
        """The crashed kernel's description of itself."""
        found = next((n for n in self.notes if n.name == b"VMCOREINFO"), None)
        return parse_vmcoreinfo(found.descriptor if found else b"")

    @property
    def saved_cpus(self) -> int:
        """How many CPUs saved registers.  Notes are positional: they do not name the CPU."""
        return sum(1 for n in self.notes if n.type == NT_PRSTATUS and n.name == b"CORE")

    @property
    def holes(self) -> RangeList:
        """Physical ranges between the described ones."""
        ram = self.headers.ram
        return RangeList([(ram[0].start, ram[-1].end)]).exclude(ram) if ram else ram

    @property
    def announced_size(self) -> int:
        """Bytes the file should have."""
        kept = [p for p in self.headers.program_headers if p.p_type in (PT_LOAD, PT_NOTE)]
        return max((p.p_offset + p.p_filesz for p in kept), default=0)

    @property
    def is_beginning(self) -> bool:
        """Whether this is only the beginning of a file: its headers, hardly more."""
        loads = [p.p_offset + p.p_filesz for p in self.headers.program_headers if p.p_type == PT_LOAD and p.p_filesz]
        return bool(loads) and self.file_size < min(loads) and self.file_size <= HEAD_LIMIT


def parse_vmcore(source: ByteSource) -> Vmcore:
    """Read headers and notes of an ELF vmcore; nothing else of the file is read.

    :raise InputError: it has another format, is truncated inside its headers, or is not a vmcore
    """
    start = source.read_at(0, ELF_HEADER_SIZE)
    for magic, (format_name, hint) in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{WHAT} is {format_name}; only ELF vmcores can be audited so far; {hint}")
    header, _architecture = parse_core_header(start, WHAT)
    headers = parse_elfcorehdr(source.read_at(0, program_headers_end(header)), WHAT)
    notes: list[Note] = []
    cut = 0
    budget = min(NOTES_LIMIT, source.size)
    for p in headers.program_headers:
        if p.p_type == PT_NOTE:
            available = max(0, min(p.p_filesz, source.size - p.p_offset))
            cut += p.p_filesz - available
            contents = source.read_at(p.p_offset, min(available, budget)) if available else b""
            budget -= len(contents)
            notes.extend(islice(parse_notes(contents), NOTE_COUNT_LIMIT - len(notes)))
    return Vmcore(headers, tuple(notes), source.size, cut)


def audit_vmcore(vmcore: Vmcore) -> Comparison:
    """Check the vmcore by itself: its headers, its notes, its length."""
    result = Comparison()
    result.findings.extend(_malformed(vmcore))
    result.findings.extend(overlap_findings(vmcore.headers.ram_headers))
    result.findings.extend(_misplaced(vmcore))
    if vmcore.notes_cut:
        sentence = f"{human_size(vmcore.notes_cut)} of notes are missing: the file ends before them"
        result.findings.append(Finding(Kind.TRUNCATED, sentence))
    elif vmcore.saved_cpus == 0:
        result.findings.append(Finding(Kind.CPU_MISSING, "it contains no CPU's registers, so it has no stack to show"))
    if not vmcore.notes_cut:
        result.findings.extend(_note_findings(vmcore))
    if vmcore.headers.kernel_text is None and vmcore.headers.architecture.maps_kernel_text:
        sentence = "the kernel text is not described: debuggers cannot find the kernel's code and data"
        result.findings.append(Finding(Kind.WRONG_KERNEL_TEXT, sentence))
    missing = vmcore.announced_size - vmcore.file_size
    if missing > 0 and vmcore.is_beginning:
        result.unchecked.append(
            f"the contents: only the first {human_size(vmcore.file_size)} of {human_size(vmcore.announced_size)} "
            "are here, so neither their presence nor the file's length was checked"
        )
    elif missing > 0:
        sentence = (
            f"the file ends {human_size(missing)} early: it has {human_size(vmcore.file_size)} of "
            f"{human_size(vmcore.announced_size)}"
        )
        result.findings.append(Finding(Kind.TRUNCATED, sentence))
    return result


def _note_findings(vmcore: Vmcore) -> Iterator[Finding]:
    """Yield what is wrong with the notes of a vmcore that has all of them."""
    if not any(note.name == b"VMCOREINFO" for note in vmcore.notes):
        yield Finding(Kind.WRONG_VMCOREINFO, "it contains no vmcoreinfo: tools cannot read the dump")
    registers = [note for note in vmcore.notes if note.type == NT_PRSTATUS and note.name == b"CORE"]
    twice = len(registers) - len(set(registers))
    if twice:  # no two CPUs have the same stack pointer
        sentence = f"{count(twice, 'CPU has', 'CPUs have')} the registers of another one: the header described it twice"
        yield Finding(Kind.DESCRIBED_TWICE, sentence)


def _malformed(vmcore: Vmcore) -> Iterator[Finding]:
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


def _misplaced(vmcore: Vmcore) -> Iterator[Finding]:
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


def compare_vmcore(
    vmcore: Vmcore,
    machine: Machine,
    loaded: ElfCoreHeader | None,
    loader: Loader,
    result: Comparison,
) -> None:
    """Compare the vmcore with the machine shortly before the panic, and add the losses to *result*.

    :param loaded: the header that was loaded then; its addresses show which CPU is missing
    :raise InputError: the dump is of another kernel
    """
    release = vmcore.vmcoreinfo.kernel_release
    if release is not None and machine.kernel_release is not None and release != machine.kernel_release:
        raise InputError(f"{WHAT} is of kernel {release}, the machine ran {machine.kernel_release}")
    _compare_saved_cpus(vmcore, machine, loaded, result)
    compare_memory(machine, vmcore.headers.ram, result, IN_DUMP)
    low = machine.dumpable_ram.intersect(RangeList([machine.architecture.backup_region_source]))
    compare_backup_region(machine, low.exclude(vmcore.headers.ram), loader, result)
    if vmcore.headers.kernel_text is not None:  # else audit_vmcore() has reported it
        compare_kernel_text(machine, vmcore.headers.kernel_text, result)
    compare_direct_map(machine, vmcore.headers.ram_headers, result)


def _compare_saved_cpus(vmcore: Vmcore, machine: Machine, loaded: ElfCoreHeader | None, result: Comparison) -> None:
    online = machine.online_cpus
    short = len(online) - vmcore.saved_cpus
    if short <= 0 or vmcore.notes_cut:
        return
    if loaded is None:
        sentence = (
            f"{count(vmcore.saved_cpus, 'CPU')} saved registers, {len(online)} were online: only the "
            "elfcorehdr that was loaded can show which ones are missing"
        )
        result.findings.append(Finding(Kind.CPU_MISSING, sentence))
        return
    described = {note.phys: note.size for note in sorted(loaded.notes)}  # of two descriptions the larger one counts
    for cpu in online:
        if cpu.crash_notes is None:
            continue
        size = described.get(cpu.crash_notes.phys)
        if size is None:
            sentence = f"CPU {cpu.number} was not described: the dump lacks its registers and so its stack"
            result.findings.append(Finding(Kind.CPU_MISSING, sentence, cpu=cpu.number))
            short -= 1
        elif size < cpu.crash_notes.size:
            sentence = f"CPU {cpu.number} saves {cpu.crash_notes.size} bytes, but only {size} were described"
            result.findings.append(Finding(Kind.CPU_NOTES_TOO_SMALL, sentence, cpu=cpu.number))
            short -= 1
    if short > 0:
        sentence = f"{count(short, 'CPU')} described and online saved no registers (hung, or stopped too late)"
        result.notes.append(Finding(Kind.CPU_SAVED_NOTHING, sentence))
