# SPDX-License-Identifier: MIT
"""Audit a vmcore: its contents, its defects, and its losses compared with a machine.

The audit is the same for every format; :class:`Vmcore` is what a format's reader gives it.
"""

from __future__ import annotations

from collections.abc import Iterator

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.elf import Note
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.finding import Comparison, Finding, Kind
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple, Protocol
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.core.verdict import IN_DUMP, compare_backup_region, compare_memory
from crash_hotplug.core.vmcoreinfo import Vmcoreinfo, parse_vmcoreinfo

WHAT = "this vmcore"
HEAD_LIMIT = 1 << 20
"""A file of at most this many bytes that ends before its first page is taken for the beginning of a vmcore."""
NOTES_LIMIT = 64 << 20
"""Notes beyond this many bytes are not read: 1,024 CPUs' take less than 1 MiB."""
NOTE_COUNT_LIMIT = 1 << 17
"""Notes beyond this number are not read: a hostile file could contain millions of small ones."""


class ByteSource(Protocol):
    """The bytes of a dump.

    They may come from a pipe.  Readers therefore go from the beginning to the end, and ask for the size last; what they
    read again lies in the first MiB.
    """

    @property
    def size(self) -> int:
        """Bytes in the file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at file *offset*, fewer at the end of the file.

        :raise CannotTellError: they cannot be read, or have passed in a pipe
        """


class Flattening(NamedTuple):
    """How the stream of a flattened dump ends."""

    stream_size: int
    """Bytes in the stream."""
    has_end: bool
    """Whether the record that ends it is there."""

    @property
    def is_beginning(self) -> bool:
        """Whether this is only the beginning of a stream: the dump's headers, hardly more."""
        return not self.has_end and self.stream_size <= HEAD_LIMIT


class DumpFile(NamedTuple):
    """One file of a dump: there are several where it was saved with ``makedumpfile --split``."""

    size: int
    """Bytes in the file; of a flattened one, once it is rearranged."""
    announced_size: int
    """Bytes the file should have."""
    is_beginning: bool
    """Whether this is only the beginning of a file: its headers, hardly more."""
    is_least: bool = False
    """Whether :attr:`announced_size` is the least that it can be."""
    name: str = "the file"
    flattening: Flattening | None = None
    """How the stream ended, where the file is a flattened one."""


class Vmcore(Protocol):
    """The headers and notes of a dump."""

    format_name: str
    """Name of the format, for JSON."""

    @property
    def architecture(self) -> Architecture:
        """The architecture of the kernel that crashed."""

    @property
    def notes(self) -> tuple[Note, ...]:
        """The notes in their order."""

    @property
    def notes_cut(self) -> int:
        """Bytes of notes that the headers announce and the file does not have."""

    @property
    def ram(self) -> RangeList:
        """Physical ranges that are described."""

    @property
    def range_count(self) -> int:
        """How many ranges are described; they may touch."""
        return len(self.ram)

    @property
    def saved_size(self) -> int | None:
        """Bytes of RAM that were to be saved in the given files; None where they do not tell."""

    @property
    def left_out_size(self) -> int | None:
        """Bytes of RAM that are described and were left out on purpose; None where the file does not tell."""

    @property
    def dump_level(self) -> int | None:
        """The ``-d`` with which makedumpfile saved it; None where the format does not tell."""

    @property
    def compression(self) -> str | None:
        """The method by which pages are compressed; None where they are not, or the format does not tell."""

    @property
    def files(self) -> tuple[DumpFile, ...]:
        """The files of the dump."""

    @property
    def vmcoreinfo_text(self) -> bytes:
        """The text of vmcoreinfo; empty where there is none."""
        return next((n.descriptor for n in self.notes if n.name == b"VMCOREINFO"), b"")

    @property
    def vmcoreinfo(self) -> Vmcoreinfo:
        """The crashed kernel's description of itself."""
        return parse_vmcoreinfo(self.vmcoreinfo_text)

    @property
    def kernel_release(self) -> str | None:
        """The release of the kernel that crashed."""
        return self.vmcoreinfo.kernel_release

    @property
    def why_no_notes(self) -> str | None:
        """Why the format has no notes; None where it has."""
        return None

    @property
    def why_ram_unknown(self) -> str | None:
        """Why :attr:`ram` is not known; None where it is."""
        return None

    @property
    def page_size(self) -> int:
        """Bytes to a multiple of which :attr:`ram` was rounded."""
        return 1

    @property
    def saved_cpus(self) -> int:
        """How many CPUs saved registers.  Notes are positional: they do not name the CPU."""
        return sum(note.has_registers for note in self.notes)

    @property
    def holes(self) -> RangeList:
        """Physical ranges between the described ones."""
        ram = self.ram
        return RangeList([(ram[0].start, ram[-1].end)]).exclude(ram) if ram else ram

    @property
    def file_size(self) -> int:
        """Bytes in the files."""
        return sum(file.size for file in self.files)

    @property
    def announced_size(self) -> int:
        """Bytes the files should have."""
        return sum(file.announced_size for file in self.files)

    @property
    def is_beginning(self) -> bool:
        """Whether a file is only the beginning of one."""
        return any(file.is_beginning for file in self.files)

    def add_layout(self, result: Comparison) -> None:
        """Add what is wrong with the headers."""

    def add_addresses(self, _result: Comparison) -> None:
        """Add what is wrong with the virtual addresses, where the format has them."""
        return

    def compare_addresses(self, machine: Machine, result: Comparison) -> None:
        """Compare virtual addresses with the machine's."""


def audit_vmcore(vmcore: Vmcore) -> Comparison:
    """Check the vmcore by itself: its headers, its notes, its length."""
    result = Comparison()
    vmcore.add_layout(result)
    if vmcore.why_no_notes is not None:
        result.unchecked.append(f"the registers of CPUs: {vmcore.why_no_notes}")
    elif vmcore.notes_cut:
        sentence = f"{human_size(vmcore.notes_cut)} of notes are missing: the file ends before them"
        result.findings.append(Finding(Kind.TRUNCATED, sentence))
    elif vmcore.saved_cpus == 0:
        result.findings.append(Finding(Kind.CPU_MISSING, "it contains no CPU's registers, so it has no stack to show"))
    if not vmcore.notes_cut:
        result.findings.extend(_note_findings(vmcore))
    vmcore.add_addresses(result)
    for file in vmcore.files:
        _add_length(file, result)
    return result


def _add_length(file: DumpFile, result: Comparison) -> None:
    """Add what is wrong with the length of a file."""
    missing = file.announced_size - file.size
    least = "at least " if file.is_least else ""
    stream = file.flattening
    if stream is not None and not stream.has_end:
        if file.is_beginning:
            result.unchecked.append(
                f"the contents: only the first {human_size(stream.stream_size)} of a flattened dump are here, so "
                "neither their presence nor the file's length was checked"
            )
            return
        sentence = f"{file.name} ends early: after {human_size(stream.stream_size)}, without the record that ends it"
        result.findings.append(Finding(Kind.TRUNCATED, sentence))
    elif missing > 0 and file.is_beginning:
        result.unchecked.append(
            f"the contents: only the first {human_size(file.size)} of {least}{human_size(file.announced_size)} "
            "are here, so neither their presence nor the file's length was checked"
        )
    elif missing > 0:
        sentence = (
            f"{file.name} ends {least}{human_size(missing)} early: it has {human_size(file.size)} of "
            f"{least}{human_size(file.announced_size)}"
        )
        result.findings.append(Finding(Kind.TRUNCATED, sentence))


def _note_findings(vmcore: Vmcore) -> Iterator[Finding]:
    """Yield what is wrong with the notes of a vmcore that has all of them."""
    if not vmcore.vmcoreinfo_text and vmcore.why_no_notes is None:
        yield Finding(Kind.WRONG_VMCOREINFO, "it contains no vmcoreinfo: tools cannot read the dump")
    registers = [note for note in vmcore.notes if note.has_registers]
    twice = len(registers) - len(set(registers))
    if twice:  # no two CPUs have the same stack pointer
        sentence = f"{count(twice, 'CPU has', 'CPUs have')} the registers of another one: the header described it twice"
        yield Finding(Kind.DESCRIBED_TWICE, sentence)


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
    release = vmcore.kernel_release
    if release is not None and machine.kernel_release is not None and release != machine.kernel_release:
        raise InputError(f"{WHAT} is of kernel {release}, the machine ran {machine.kernel_release}")
    if vmcore.why_no_notes is None:
        _compare_saved_cpus(vmcore, machine, loaded, result)
    if vmcore.why_ram_unknown is not None:
        result.unchecked.append(f"memory: {vmcore.why_ram_unknown}")
    else:
        described = _in_whole_pages(vmcore, machine)
        compare_memory(machine, described, result, IN_DUMP)
        low = machine.dumpable_ram.intersect(RangeList([machine.architecture.backup_region_source]))
        compare_backup_region(machine, low.exclude(described), loader, result)
    vmcore.compare_addresses(machine, result)


def _in_whole_pages(vmcore: Vmcore, machine: Machine) -> RangeList:
    """Return the described ranges, and of each page that is RAM only in part exactly that part.

    makedumpfile describes such a page as a whole (``create_1st_bitmap_file()``) or not at all
    (``create_bitmap_from_memhole()``); the kernel does not use it.
    """
    size = vmcore.page_size
    edges = {address - address % size for r in machine.dumpable_ram for address in r if address % size}
    partial = RangeList((start, start + size) for start in edges)
    return vmcore.ram.exclude(partial).union(machine.dumpable_ram.intersect(partial))


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
