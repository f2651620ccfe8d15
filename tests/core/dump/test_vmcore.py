# SPDX-License-Identifier: MIT
"""Audit of vmcores in memory: whole, cut, malformed, hostile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.dump import elf_vmcore
from crash_hotplug.core.dump.elf_vmcore import ElfVmcore, parse_elf_vmcore
from crash_hotplug.core.dump.formats import parse_vmcore
from crash_hotplug.core.dump.vmcore import audit_vmcore, compare_vmcore
from crash_hotplug.core.elf import (
    NT_PRSTATUS,
    PT_LOAD,
    PT_NOTE,
    Note,
    ProgramHeader,
    core_header,
    pack_notes,
    pack_program_headers,
    parse_notes,
)
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Comparison, Kind, Verdict
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from tests.machines import DIRECT_MAP, GIB, LOW_RAM, MIB, machine
from tests.trees import NAMES, vmcore_head

INFO = b"OSRELEASE=6.1.0-test\nCRASHTIME=1795368112\n"


@dataclass(frozen=True)
class InMemory:
    """A vmcore whose contents are zeros, made when they are read."""

    head: bytes
    size: int

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        return self.head[offset : offset + length].ljust(length, b"\0")


def vmcore_of(crashed: Machine, saved: int, cut: int = 0) -> InMemory:
    """Return the vmcore of a machine, in which so many CPUs saved registers, *cut* bytes too short."""
    header = expected_elfcorehdr(crashed, Loader.KERNEL)
    registers = [Note(b"CORE", NT_PRSTATUS, bytes([number]) * 336) for number in range(saved)]
    notes = pack_notes([*registers, Note(b"VMCOREINFO", 0, INFO)])
    loads = [p for p in header.program_headers if p.p_type == PT_LOAD]
    at = 0x2000
    entries = [ProgramHeader(PT_NOTE, 0, 0x1000, 0, 0, len(notes), len(notes), 0)]
    for p in loads:
        entries.append(p._replace(p_offset=at))
        at += p.p_memsz
    head = core_header(62, len(entries)).to_bytes() + pack_program_headers(entries)
    return InMemory(head.ljust(0x1000, b"\0") + notes, at - cut)


def audited(source: InMemory, before: Machine | None = None, loaded_for: Machine | None = None) -> Comparison:
    vmcore = parse_elf_vmcore(source)
    result = audit_vmcore(vmcore)
    if before is not None:
        loaded = None if loaded_for is None else expected_elfcorehdr(loaded_for, Loader.KERNEL)
        compare_vmcore(vmcore, before, loaded, Loader.KERNEL, result)
    return result


def kinds(result: Comparison) -> list[Kind]:
    return [finding.kind for finding in result.findings]


def test_whole_vmcore_is_accurate_and_its_contents_are_shown() -> None:
    vmcore = parse_elf_vmcore(vmcore_of(machine(), 2))
    assert audited(vmcore_of(machine(), 2), machine(), machine()).verdict is Verdict.ACCURATE
    assert vmcore.saved_cpus == 2
    assert vmcore.vmcoreinfo.kernel_release == "6.1.0-test"
    assert str(vmcore.vmcoreinfo.panic_time) == "2026-11-22 17:21:52+00:00"
    assert [tuple(r) for r in vmcore.holes] == [(512 * MIB, 768 * MIB)]


def test_cpu_and_memory_added_after_the_load_are_missing() -> None:
    now = machine(online=(0, 1, 2), ram=[LOW_RAM, (MIB, GIB), (4 * GIB, 5 * GIB)])
    result = audited(vmcore_of(machine(), 2), now, machine())
    assert kinds(result) == [Kind.CPU_MISSING, Kind.MEMORY_MISSING]
    assert result.findings[0].cpu == 2
    assert result.findings[1].sentence == "1 GiB at 0x100000000 is not described: the dump lacks that memory"


def test_missing_cpu_has_no_number_without_the_loaded_header() -> None:
    result = audited(vmcore_of(machine(), 2), machine(online=(0, 1, 2)))
    assert kinds(result) == [Kind.CPU_MISSING]
    assert "2 CPUs saved registers, 3 were online: only the elfcorehdr that was loaded" in result.findings[0].sentence


def test_cpu_described_that_saved_nothing_is_a_note() -> None:
    result = audited(vmcore_of(machine(), 1), machine(), machine())
    assert (result.findings, [note.kind for note in result.notes]) == ([], [Kind.CPU_SAVED_NOTHING])


def test_header_updated_after_the_snapshot_is_no_finding() -> None:
    assert audited(vmcore_of(machine(), 3), machine(online=(0, 1, 2)), machine()).findings == []


def test_memory_removed_was_described_but_gone() -> None:
    with_dimm = machine(ram=[LOW_RAM, (MIB, GIB), (4 * GIB, 5 * GIB)])
    assert kinds(audited(vmcore_of(with_dimm, 2), machine(), machine())) == [Kind.MEMORY_GONE]


def test_dump_of_another_kernel_is_refused() -> None:
    with pytest.raises(InputError, match=r"is of kernel 6.1.0-test, the machine ran 5.10.0"):
        audited(vmcore_of(machine(), 2), machine(release="5.10.0"))


def test_dump_that_ends_early_is_truncated() -> None:
    result = audited(vmcore_of(machine(), 2, cut=300 * MIB))
    assert kinds(result) == [Kind.TRUNCATED]
    assert "the file ends 300 MiB early" in result.findings[0].sentence


def test_beginning_of_a_dump_names_the_checks_that_were_not_made() -> None:
    whole = vmcore_of(machine(), 2)
    vmcore = parse_elf_vmcore(replace(whole, size=32 << 10))
    result = audit_vmcore(vmcore)
    assert vmcore.is_beginning
    assert result.findings == []
    assert "only the first 32 KiB of 799.0 MiB" in result.unchecked[0]
    # Negative control: a file this large is no beginning of a vmcore, so it counts as truncated.
    assert kinds(audited(replace(whole, size=2 * MIB))) == [Kind.TRUNCATED]


def real(name: str, **changes: ProgramHeader) -> InMemory:
    """Return a captured vmcore at its full size; *changes* replace entries, by number: ``_2=...``."""
    data = vmcore_head(name).read_bytes()
    headers = parse_elf_vmcore(InMemory(data, len(data))).headers
    entries = list(headers.program_headers)
    for number, entry in changes.items():
        entries[int(number[1:])] = entry
    changed = headers._replace(program_headers=tuple(entries)).to_bytes()
    size = max(p.p_offset + p.p_filesz for p in headers.program_headers)
    return InMemory(changed + data[len(changed) :], size)


@pytest.mark.parametrize("name", NAMES)
def test_every_moved_segment_of_a_captured_vmcore_is_a_finding(name: str) -> None:
    assert audited(real(name)).findings == []  # negative control
    for number, p in enumerate(parse_elf_vmcore(real(name)).headers.program_headers):
        for difference in (1, -1, 16, 0x800, PAGE, -PAGE, MIB, -MIB, GIB, 1 << 40):
            if p.p_offset + difference >= 0:
                moved = p._replace(p_offset=p.p_offset + difference)
                assert audited(real(name, **{f"_{number}": moved})).findings, (number, hex(difference))


def test_segments_that_share_bytes_of_the_file_are_a_finding() -> None:
    text, ram, *_ = (p for p in parse_elf_vmcore(real("6.1-s")).headers.program_headers if p.p_type == PT_LOAD)
    result = audited(real("6.1-s", _2=ram._replace(p_offset=text.p_offset)))
    assert Kind.FILE_OVERLAP in kinds(result)
    assert any("where the file has other memory" in finding.sentence for finding in result.findings)
    for at, there in ((0, "the headers"), (0x1000, "the notes")):
        result = audited(real("6.1-s", _2=ram._replace(p_offset=at)))
        assert f"would be read from file offset {at:#x}, where the file has {there}" in result.findings[0].sentence


def test_one_byte_of_the_file_in_two_segments_is_a_finding() -> None:
    first = load(0, 0x1000)
    for offset, found in ((0x1FFF, [Kind.FILE_OVERLAP]), (0x2000, [])):
        other = load(1 << 32, 0x1000, offset=offset)
        assert [kind for kind in kinds(audit_vmcore(vmcore_with(first, other))) if kind is Kind.FILE_OVERLAP] == found


def test_notes_are_not_memory_although_their_offsets_agree() -> None:
    note = ProgramHeader(PT_NOTE, 0, 0x1000, 0, 0, 0x100, 0x100, 0)
    assert Kind.FILE_OVERLAP in kinds(audit_vmcore(vmcore_with(note, load(0, 0x1000))))


def test_memory_described_twice_at_two_places_of_the_file_is_a_finding() -> None:
    twice = vmcore_with(load(0, 0x1000), load(0, 0x1000, offset=0x2000))
    assert Kind.OVERLAP in kinds(audit_vmcore(twice))


def test_dump_that_lacks_its_last_byte_is_truncated() -> None:
    assert kinds(audited(vmcore_of(machine(), 2, cut=1))) == [Kind.TRUNCATED]


def test_notes_end_at_a_note_of_zeros() -> None:
    notes = [Note(b"CORE", NT_PRSTATUS, b"abc")]
    assert list(parse_notes(pack_notes(notes) + bytes(64))) == notes
    assert list(parse_notes(bytes(64) + pack_notes(notes))) == []


def test_gap_before_a_segment_is_a_finding() -> None:
    whole = vmcore_of(machine(), 2)
    *others, last = parse_elf_vmcore(whole).headers.program_headers
    moved = last._replace(p_offset=last.p_offset + 2 * PAGE)
    head = core_header(62, len(others) + 1).to_bytes() + pack_program_headers([*others, moved])
    result = audited(InMemory(head + whole.head[len(head) :], whole.size + 2 * PAGE))
    assert kinds(result) == [Kind.MISPLACED]
    assert f"file offset {moved.p_offset:#x}; a dump has it at {last.p_offset:#x}" in result.findings[0].sentence


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_segment_without_bytes_takes_the_page_in_which_it_begins(pages: int) -> None:
    """As /proc/vmcore has it: the segment behind it begins on the next page."""
    whole = vmcore_of(machine(), 2)
    *others, last = parse_elf_vmcore(whole).headers.program_headers
    empty = last._replace(p_offset=last.p_offset + 0x234, p_paddr=0x5234, p_filesz=0, p_memsz=0)
    moved = last._replace(p_offset=last.p_offset + pages * PAGE)
    head = core_header(62, len(others) + 2).to_bytes() + pack_program_headers([*others, empty, moved])
    result = audited(InMemory(head + whole.head[len(head) :], whole.size + pages * PAGE))
    assert kinds(result) == {0: [], 1: [], 2: [Kind.MISPLACED]}[pages]


def test_file_without_page_alignment_and_without_zero_pages_is_accurate() -> None:
    """As makedumpfile -E writes it: no gaps, and a p_filesz without the pages of zeros that were left out."""
    whole = vmcore_of(machine(), 2)
    note, text, *rams = parse_elf_vmcore(whole).headers.program_headers
    at, entries = 0x1234, [note]
    for p in (text, *rams):
        parts = [(0, p.p_memsz)] if p is text else [(0, MIB), (MIB, MIB), (2 * MIB, p.p_memsz - 2 * MIB)]
        for number, (start, size) in enumerate(parts):
            filesz = 0 if number == 1 else size - PAGE * (number == 2)
            part = {"p_paddr": p.p_paddr + start, "p_vaddr": p.p_vaddr + start, "p_memsz": size}
            entries.append(p._replace(**part, p_filesz=filesz, p_offset=at))
            at += filesz
    notes = whole.head[0x1000:]
    entries[0] = note._replace(p_offset=0x1234 - len(notes))
    head = core_header(62, len(entries)).to_bytes() + pack_program_headers(entries)
    source = InMemory(head.ljust(entries[0].p_offset, b"\0") + notes, at)
    assert audited(source, machine(), machine()).verdict is Verdict.ACCURATE


def test_two_mappings_of_the_same_memory_may_share_their_bytes() -> None:
    """As QEMU's dump-guest-memory -p writes them."""
    whole = vmcore_of(machine(), 2)
    note, text, *rams = parse_elf_vmcore(whole).headers.program_headers
    home = next(p for p in rams if p.p_paddr <= text.p_paddr < p.p_paddr + p.p_memsz)
    shared = text._replace(p_offset=home.p_offset + text.p_paddr - home.p_paddr)
    moved = [p._replace(p_offset=p.p_offset - text.p_filesz) for p in rams]
    shared = shared._replace(p_offset=shared.p_offset - text.p_filesz)
    entries = [note, shared, *moved]
    head = core_header(62, len(entries)).to_bytes() + pack_program_headers(entries)
    assert audited(InMemory(head + whole.head[len(head) :], whole.size - text.p_filesz)).findings == []


def test_notes_cut_off_are_a_finding_and_cpus_are_not_counted() -> None:
    result = audited(replace(vmcore_of(machine(), 2), size=0x1080), machine(), machine())
    assert Kind.TRUNCATED in kinds(result)
    assert Kind.CPU_MISSING not in kinds(result)
    assert result.notes == []


def test_dump_without_any_registers_is_a_finding() -> None:
    assert kinds(audited(vmcore_of(machine(), 0))) == [Kind.CPU_MISSING]


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"KDUMP   rest", "is truncated: 12 bytes, the header of a compressed dump has 464"),
        (b"makedumpfile\0\0\0\0", "is truncated: 16 bytes, the header of a flattened one has 4096"),
        (b"DISKDUMP", "in the format of diskdump, which came before kdump"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip; .*decompress it first"),
        (b"", "is truncated: 0 bytes"),
        (b"hello, this is no dump of any kind at all, whatever the length is it may have", "is not an ELF file"),
    ],
)
def test_other_formats_are_named(start: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_vmcore(InMemory(start, len(start)))


def with_notes(*notes: Note) -> InMemory:
    """Return the vmcore of a machine with these notes in the place of its own."""
    whole = vmcore_of(machine(), 2)
    packed = pack_notes(notes)
    entries = list(parse_elf_vmcore(whole).headers.program_headers)
    entries[0] = entries[0]._replace(p_filesz=len(packed), p_memsz=len(packed))
    head = whole.head[:64] + pack_program_headers(entries)
    return replace(whole, head=head.ljust(0x1000, b"\0") + packed)


CPU0, CPU1 = (Note(b"CORE", NT_PRSTATUS, bytes([number]) * 336) for number in (1, 2))
VMCOREINFO = Note(b"VMCOREINFO", 0, INFO)


def test_dump_without_vmcoreinfo_is_a_finding() -> None:
    assert kinds(audited(with_notes(CPU0, CPU1, VMCOREINFO))) == []  # negative control
    assert kinds(audited(with_notes(CPU0, CPU1))) == [Kind.WRONG_VMCOREINFO]


def test_registers_that_two_notes_have_are_a_finding() -> None:
    result = audited(with_notes(CPU0, CPU1, CPU0, VMCOREINFO, VMCOREINFO))
    assert kinds(result) == [Kind.DESCRIBED_TWICE]
    assert "1 CPU has the registers of another one" in result.findings[0].sentence


def test_notes_described_too_small_are_a_finding() -> None:
    loaded = expected_elfcorehdr(machine(), Loader.KERNEL)
    first, *others = loaded.program_headers
    small = loaded._replace(program_headers=(first._replace(p_filesz=16, p_memsz=16), *others))
    vmcore = parse_elf_vmcore(vmcore_of(machine(), 1))
    result = audit_vmcore(vmcore)
    compare_vmcore(vmcore, machine(), small, Loader.KERNEL, result)
    assert kinds(result) == [Kind.CPU_NOTES_TOO_SMALL]
    assert (result.findings[0].cpu, result.notes) == (0, [])


def test_entry_that_is_no_segment_does_not_make_a_dump_longer() -> None:
    whole = vmcore_of(machine(), 2)
    entries = [*parse_elf_vmcore(whole).headers.program_headers, ProgramHeader(0, 0, 1 << 40, 0, 0, 16, 16, 0)]
    head = core_header(62, len(entries)).to_bytes() + pack_program_headers(entries)
    assert kinds(audited(replace(whole, head=head.ljust(0x1000, b"\0") + whole.head[0x1000:]))) == []


def hostile(*entries: ProgramHeader, size: int = 4096) -> InMemory:
    return InMemory(core_header(62, len(entries)).to_bytes() + pack_program_headers(list(entries)), size)


@pytest.mark.parametrize(
    "entry",
    [
        ProgramHeader(PT_NOTE, 0, 0, 0, 0, 1 << 63, 1 << 63, 0),
        ProgramHeader(PT_NOTE, 0, (1 << 64) - 1, 0, 0, (1 << 64) - 1, 0, 0),
        ProgramHeader(PT_LOAD, 7, (1 << 64) - 1, 0, (1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1, 0),
        ProgramHeader(PT_LOAD, 7, 0, 0, 0, 4096, 16, 0),
    ],
)
def test_hostile_sizes_are_findings(entry: ProgramHeader) -> None:
    assert audited(hostile(entry)).verdict is Verdict.NOT_ACCURATE


def test_note_segments_over_the_same_bytes_are_read_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = pack_notes([Note(b"", 0, b"")])
    entries = [ProgramHeader(PT_NOTE, 0, 0x100, 0, 0, 1 << 20, 1 << 20, 0)] * 60_000
    head = core_header(62, len(entries)).to_bytes() + pack_program_headers(entries)
    source = InMemory((head + smallest * 60_000)[: 4 << 20], 4 << 20)
    lengths: list[int] = []
    parsed_sizes: list[int] = []

    def counted_notes(data: bytes) -> Iterator[Note]:
        parsed_sizes.append(len(data))
        return parse_notes(data)

    monkeypatch.setattr(elf_vmcore, "parse_notes", counted_notes)

    class Counted:
        size = source.size

        def read_at(self, offset: int, length: int) -> bytes:
            lengths.append(length)
            return source.read_at(offset, length)

    vmcore = parse_elf_vmcore(Counted())
    assert len(vmcore.notes) <= 1 << 17
    assert sum(parsed_sizes) <= 64 << 20
    assert sum(lengths) <= 64 + len(head) + source.size


@given(st.lists(st.builds(Note, st.binary(max_size=9).map(lambda b: b.rstrip(b"\0")), st.integers(0, 9), st.binary())))
def test_notes_survive_packing(notes: list[Note]) -> None:
    assert list(parse_notes(pack_notes(notes))) == notes


@given(st.binary(max_size=600))
def test_parser_accepts_or_refuses_any_bytes(data: bytes) -> None:
    for start in (b"", core_header(62, 3).to_bytes()):
        source = InMemory(start + data, len(start + data))
        try:
            audit_vmcore(parse_vmcore(source))
        except InputError as error:
            assert str(error).startswith("this vmcore ")


def vmcore_with(*entries: ProgramHeader, size: int = 1 << 20, notes: tuple[Note, ...] = ()) -> ElfVmcore:
    headers = ElfCoreHeader(core_header(62, len(entries)), entries, X86_64)
    return ElfVmcore(headers, notes, size, 0)


def load(start: int, memsz: int, offset: int = 0x1000, filesz: int | None = None) -> ProgramHeader:
    return ProgramHeader(PT_LOAD, 7, offset, start, start, memsz if filesz is None else filesz, memsz, 0)


@pytest.mark.parametrize(
    ("entry", "is_malformed"),
    [
        (load(0, 0x1000), False),
        (load(0, 0x1000, filesz=0x1001), True),
        (load(0, 0x1000, filesz=0xFFF), False),
        (ProgramHeader(PT_NOTE, 0, 0x1000, 0, 0, 0x1000, 0, 0), False),
        (load((1 << 64) - 0x1000, 0x1000), False),
        (load((1 << 64) - 0x1000, 0x1001), True),
        (load(0, 0x1000, offset=(1 << 63) - 0x1001), False),
        (load(0, 0x1000, offset=(1 << 63) - 0x1000), True),
    ],
)
def test_malformed_entry_is_one_that_no_file_or_memory_can_have(entry: ProgramHeader, is_malformed: bool) -> None:
    findings = audit_vmcore(vmcore_with(entry, load(1 << 32, 0x1000, offset=0))).findings
    assert any(f.kind is Kind.MALFORMED for f in findings) is is_malformed


def test_dump_without_memory_is_malformed() -> None:
    notes = ProgramHeader(PT_NOTE, 0, 0x1000, 0, 0, 16, 16, 0)
    sentences = [finding.sentence for finding in audit_vmcore(vmcore_with(notes)).findings]
    assert "no memory is described" in sentences


def test_saved_cpus_are_the_prstatus_notes_of_the_kernel() -> None:
    notes = (Note(b"CORE", 1, b""), Note(b"CORE", 4, b""), Note(b"LINUX", 1, b""), Note(b"CORE", 1, b""))
    assert vmcore_with(load(0, 16), notes=notes).saved_cpus == 2


def test_holes_lie_between_the_described_ranges() -> None:
    assert list(vmcore_with(load(0x1000, 0x1000), load(0x4000, 0x1000)).holes) == [(0x2000, 0x4000)]
    assert list(vmcore_with(ProgramHeader(PT_NOTE, 0, 0, 0, 0, 1, 1, 0)).holes) == []


def test_announced_size_is_the_end_of_the_last_entry_in_the_file() -> None:
    vmcore = vmcore_with(load(0, 0x1000, offset=0x9000), load(0x5000, 0x2000, offset=0x1000))
    assert vmcore.announced_size == 0xA000
    assert ElfVmcore(vmcore.headers._replace(program_headers=()), (), 0, 0).announced_size == 0


@pytest.mark.parametrize(
    ("size", "filesz", "is_beginning"),
    [
        (0x5000, 0x4001, True),
        (0x5000, 0x4000, False),
        (1 << 20, 1 << 21, True),
        ((1 << 20) + 1, 1 << 21, False),
        (0x5000, 0, False),
    ],
)
def test_beginning_of_a_dump_ends_within_its_first_segment(size: int, filesz: int, is_beginning: bool) -> None:
    assert vmcore_with(load(0, 1 << 22, filesz=filesz), size=size).is_beginning is is_beginning


def test_beginning_of_a_dump_does_not_end_in_a_segment_without_contents() -> None:
    empty, later = load(0, 1 << 22, filesz=0), load(1 << 30, 1 << 22, offset=1 << 22)
    assert vmcore_with(empty, later, size=0x5000).is_beginning


def test_notes_are_read_within_the_file_and_the_budget() -> None:
    one = pack_notes([Note(b"CORE", NT_PRSTATUS, bytes(8))])
    at = 64 + 2 * 56
    entries = [ProgramHeader(PT_NOTE, 0, at, 0, 0, len(one), len(one), 0)] * 2
    head = core_header(62, 2).to_bytes() + pack_program_headers(entries) + one
    whole = parse_elf_vmcore(InMemory(head, len(head)))
    assert (whole.saved_cpus, whole.notes_cut, whole.file_size) == (2, 0, len(head))
    cut = parse_elf_vmcore(InMemory(head[:-1], len(head) - 1))
    assert (cut.saved_cpus, cut.notes_cut) == (0, 2)
    without = parse_elf_vmcore(InMemory(head[:at], at))
    assert (without.saved_cpus, without.notes_cut) == (0, 2 * len(one))
    beyond = pack_program_headers([entries[0], entries[0]._replace(p_offset=1 << 20)])
    assert parse_elf_vmcore(InMemory(head[:64] + beyond + one, len(head))).notes_cut == len(one)


def test_dump_without_kernel_text_is_a_finding_once() -> None:
    whole = vmcore_of(machine(), 2)
    headers = parse_elf_vmcore(whole).headers
    entries = [p for p in headers.program_headers if p not in headers.ram_headers or p.p_paddr >= MIB]
    loads = [p for p in entries if p.p_type == PT_NOTE or p in headers.ram_headers]
    text = next(p for p in entries if p not in loads)
    moved = [p if p.p_type == PT_NOTE else p._replace(p_offset=p.p_offset - text.p_filesz) for p in loads]
    head = core_header(62, len(moved)).to_bytes() + pack_program_headers(moved)
    source = InMemory(head.ljust(0x1000, b"\0") + whole.head[0x1000:], whole.size - text.p_filesz)
    assert kinds(audited(source, machine(), machine())) == [Kind.WRONG_KERNEL_TEXT]


def test_dump_or_machine_of_an_unknown_release_is_compared() -> None:
    assert audited(vmcore_of(machine(), 2), machine(release=None), machine()).findings == []
    source = vmcore_of(machine(), 2)
    unnamed = InMemory(source.head.replace(b"OSRELEASE", b"ANRELEASE"), source.size)
    assert audited(unnamed, machine(), machine()).findings == []


def test_dump_is_judged_by_direct_map_and_kernel_text() -> None:
    elsewhere = machine(page_offset=DIRECT_MAP + GIB)
    assert kinds(audited(vmcore_of(machine(), 2), elsewhere, machine())) == [Kind.WRONG_DIRECT_MAP]
    text = machine().kernel_text
    assert text is not None
    moved = machine(kernel_text=text._replace(phys=text.phys + MIB))
    assert kinds(audited(vmcore_of(machine(), 2), moved, machine())) == [Kind.WRONG_KERNEL_TEXT]


def test_low_memory_that_an_old_kernel_uses_is_missing_in_a_dump() -> None:
    old = machine(release="4.18.0")
    source = vmcore_of(old, 2)
    source = InMemory(source.head.replace(b"6.1.0-test", b"4.18.0\n\0\0\0"), source.size)
    assert kinds(audited(source, old, old)) == [Kind.BACKUP_REGION_DROPPED]


def test_cpus_that_saved_nothing_are_those_described_beyond_the_missing() -> None:
    """Of five online CPUs two saved their registers, and one was not described: two saved nothing."""
    now = machine(online=range(5))
    result = audited(vmcore_of(machine(), 2), now, machine(online=range(4)))
    assert [(f.kind, f.cpu) for f in result.findings] == [(Kind.CPU_MISSING, 4)]
    assert [note.sentence.split(" described")[0] for note in result.notes] == ["2 CPUs"]
    exact = audited(vmcore_of(machine(), 2), now, machine())
    assert ([f.cpu for f in exact.findings], exact.notes) == ([2, 3, 4], [])
    masked = now._replace(cpus=tuple(cpu._replace(crash_notes=None) for cpu in now.cpus))
    assert [f.kind for f in audited(vmcore_of(machine(), 2), masked, machine()).notes] == [Kind.CPU_SAVED_NOTHING]


@pytest.mark.parametrize(("e_flags", "found"), [(1, [Kind.TRUNCATED]), (2, [])])
def test_dump_that_makedumpfile_marked_as_incomplete_is_truncated(e_flags: int, found: list[Kind]) -> None:
    whole = vmcore_of(machine(), 2)
    headers = parse_elf_vmcore(whole).headers
    marked = headers.elf_header._replace(e_flags=e_flags).to_bytes()
    assert kinds(audited(InMemory(marked + whole.head[len(marked) :], whole.size))) == found
