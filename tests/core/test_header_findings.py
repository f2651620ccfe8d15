# SPDX-License-Identifier: MIT
"""The findings and notes about single parts of a header."""

from __future__ import annotations

import pytest

from crash_hotplug.core.elf import ProgramHeader
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, ram_header
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Kind, Verdict
from crash_hotplug.core.header_shape import overlap_findings
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.verdict import compare_header
from tests.core.test_verdict import changed, compared, kinds
from tests.machines import DIRECT_MAP, GIB, MIB, machine


def test_unreadable_notes_of_one_cpu_hide_no_other_cpu() -> None:
    now = machine(online=(0, 1, 2, 3))
    masked = now._replace(cpus=(now.cpus[0]._replace(crash_notes=None), *now.cpus[1:]))
    result = compare_header(masked, expected_elfcorehdr(machine(), Loader.KERNEL), Loader.KERNEL)
    assert [(finding.kind, finding.cpu) for finding in result.findings] == [
        (Kind.CPU_MISSING, 2),
        (Kind.CPU_MISSING, 3),
    ]
    assert result.unchecked == ["whether CPU 0 is described: crash_notes cannot be read"]


def test_findings_and_notes_name_their_cpu() -> None:
    offline = compared(machine(), machine(offline=(5,))).notes[0]
    assert (offline.kind, offline.cpu) == (Kind.CPU_OFFLINE_NOT_DESCRIBED, 5)
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    for size, small in ((0x170, False), (0x16F, True)):
        result = compare_header(machine(), changed(header, 1, p_filesz=size, p_memsz=size), Loader.KERNEL)
        assert [(f.kind, f.cpu) for f in result.findings] == [(Kind.CPU_NOTES_TOO_SMALL, 1)] * small


def test_possible_cpus_that_are_all_present_are_no_note() -> None:
    every = machine(online=range(8))
    assert compared(every, every).notes == []


@pytest.mark.parametrize(
    ("release", "verdict"),
    [("6.1.0", Verdict.ACCURATE), ("4.18.0", Verdict.NOT_ACCURATE), (None, Verdict.CANNOT_TELL)],
)
def test_low_memory_that_the_kernels_loader_leaves_out_is_judged_by_kernel(
    release: str | None, verdict: Verdict
) -> None:
    now = machine(release=release)
    result = compare_header(now, expected_elfcorehdr(now, Loader.KERNEL), Loader.KERNEL)
    assert (result.verdict, result.notes) == (verdict, [])
    said = [*(finding.sentence for finding in result.findings), *result.unchecked]
    assert all("the first 640 KiB are not described (635 KiB of RAM)" in sentence for sentence in said)
    assert len(said) == (verdict is not Verdict.ACCURATE)


def with_entries(header: ElfCoreHeader, *entries: ProgramHeader) -> ElfCoreHeader:
    return header._replace(elf_header=header.elf_header._replace(e_phnum=len(entries)), program_headers=tuple(entries))


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"p_filesz": 0x1000}, Kind.MALFORMED),
        ({"p_paddr": (1 << 64) - 0x1000, "p_filesz": 0x1001, "p_memsz": 0x1001}, Kind.MALFORMED),
        ({"p_offset": 0x5000}, Kind.WRONG_SOURCE),
    ],
)
def test_shape_of_each_load_is_checked(fields: dict[str, int], kind: Kind) -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    last = len(header.program_headers) - 1
    found = kinds(compare_header(machine(), changed(header, last, **fields), Loader.KERNEL))
    assert found.count(kind) == 1
    text = kinds(compare_header(machine(), changed(header, 3, **fields), Loader.KERNEL))
    assert kind in text


def test_last_byte_of_the_address_space_can_be_described() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    top = header.program_headers[-1]._replace(
        p_offset=(1 << 64) - 0x1000, p_paddr=(1 << 64) - 0x1000, p_filesz=0x1000, p_memsz=0x1000
    )
    result = compare_header(machine(), with_entries(header, *header.program_headers, top), Loader.KERNEL)
    assert Kind.MALFORMED not in kinds(result)
    assert Kind.MEMORY_GONE in kinds(result)


def loads(*ranges: tuple[int, int]) -> tuple[ProgramHeader, ...]:
    return tuple(ram_header(Range(start, end), DIRECT_MAP) for start, end in ranges)


@pytest.mark.parametrize(
    ("ranges", "overlaps"),
    [
        ([(0, 10), (10, 20)], []),
        ([(0, 10), (9, 20)], [(9, 10)]),
        ([(9, 20), (0, 10)], [(9, 10)]),
        ([(0, 100), (10, 20), (30, 40)], [(10, 20), (30, 40)]),
        ([(0, 100), (10, 10)], []),
        ([(0, 100), (0, 100)], [(0, 100)]),
    ],
)
def test_overlap_is_what_two_loads_describe(ranges: list[tuple[int, int]], overlaps: list[tuple[int, int]]) -> None:
    assert [tuple(finding.ranges[0]) for finding in overlap_findings(loads(*ranges))] == overlaps


def unusual(header: ElfCoreHeader, now: Machine = machine()) -> list[str]:
    notes = compare_header(now, header, Loader.KERNEL).notes
    return [note.sentence for note in notes if note.kind is Kind.UNUSUAL]


def test_parts_that_no_loader_writes_are_notes() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    entries = header.program_headers
    assert unusual(header) == []
    assert unusual(header._replace(elf_header=header.elf_header._replace(e_flags=2))) == [
        "the ELF header has e_flags 0x2 (a loader writes 0x0)"
    ]
    incomplete = header._replace(elf_header=header.elf_header._replace(e_flags=1))
    assert unusual(incomplete) == []
    assert [f.kind for f in compare_header(machine(), incomplete, Loader.KERNEL).findings] == [Kind.MALFORMED]
    ident = header.elf_header.e_ident
    assert unusual(header._replace(elf_header=header.elf_header._replace(e_ident=ident[:-1] + b"\1"))) == [
        f"the ELF header has e_ident {ident[:-1].hex(' ')} 01 (a loader writes {ident.hex(' ')})"
    ]
    assert unusual(changed(header, 0, p_flags=4)) == ["entry 0 has p_flags 0x4 (a loader writes 0x0)"]
    assert unusual(changed(header, 0, p_vaddr=4)) == ["entry 0 has p_vaddr 0x4 (a loader writes 0x0)"]
    assert unusual(changed(header, 4, p_flags=5)) == ["entry 4 has p_flags 0x5 (a loader writes 0x7)"]
    assert unusual(changed(header, 4, p_align=1)) == ["entry 4 has p_align 0x1 (a loader writes 0x0)"]
    both = unusual(changed(changed(header, 4, p_type=7), 5, p_flags=5))
    assert both[1:] == ["entry 5 has p_flags 0x5 (a loader writes 0x7)"]
    assert unusual(changed(header, 5, p_type=7)) == ["entry 5 is neither PT_NOTE nor PT_LOAD: its p_type is 0x7"]
    empty = entries[5]._replace(p_filesz=0, p_memsz=0)
    assert unusual(with_entries(header, *entries, empty)) == ["entry 6 describes nothing: its p_memsz is 0"]
    text = entries[3]
    assert unusual(with_entries(header, *entries, text)) == ["the kernel text is described 2 times"]
    assert unusual(with_entries(header, *entries, text, text)) == ["the kernel text is described 3 times"]


def test_every_wrong_direct_map_address_is_counted_and_its_range_named() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    offset = machine().page_offset
    assert offset is not None
    one = compare_header(machine(), changed(header, 5, p_vaddr=offset), Loader.KERNEL).findings[0]
    assert one.kind is Kind.WRONG_DIRECT_MAP
    assert one.sentence.startswith("1 memory range has the wrong virtual address, the first at 0x30000000")
    assert one.ranges == (Range(768 * MIB, GIB),)
    top = {"p_paddr": (1 << 64) - 0x1000, "p_filesz": 0x2000, "p_memsz": 0x2000}
    found = compare_header(machine(), changed(header, 5, **top), Loader.KERNEL).findings
    wrong = next(finding for finding in found if finding.kind is Kind.WRONG_DIRECT_MAP)
    assert wrong.ranges == (Range((1 << 64) - 0x1000, 1 << 64),)


def test_notes_described_twice_are_a_finding_for_each_time_too_many() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    first, second, *others = header.program_headers
    thrice = with_entries(header, first, second, first, second, first, *others)
    found = compare_header(machine(), thrice, Loader.KERNEL).findings
    assert [finding.kind for finding in found] == [Kind.DESCRIBED_TWICE] * 3
    twice = [finding.sentence.split(" are described")[0] for finding in found]
    assert sorted(twice) == ["the notes at 0x30000400"] * 2 + ["the notes at 0x30040400"]


def test_room_of_the_last_entry_is_room() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    full = compare_header(machine(), header, Loader.KERNEL, room=header.size).notes[-1]
    assert full.sentence.startswith("room left for 0 more CPUs or memory ranges (400 of 400 bytes used, 56 each)")
    small = compare_header(machine(), header, Loader.KERNEL, room=header.size - 1).notes[-1]
    assert small.sentence == "the header has 400 bytes and does not fit into its segment of 399"
