# SPDX-License-Identifier: MIT
"""Findings as a person reads them: one sentence for the CPUs, and for many ranges, that share a defect."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Comparison, Finding, Kind
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.summary import SEPARATE_RANGES, summarize
from crash_hotplug.core.verdict import IN_DUMP, compare_header, compare_memory
from tests.machines import GIB, LOW_RAM, MIB, cpus, machine

REGISTERS = "a dump would lack their registers and so their stacks"
FIVE = tuple((GIB * at, GIB * at + 256 * MIB) for at in range(4, 14, 2))


def missing_cpu(number: int) -> Finding:
    sentence = f"CPU {number} is not described: a dump would lack its registers and so its stack"
    return Finding(Kind.CPU_MISSING, sentence, cpu=number)


def small_cpu(number: int, size: int = 16) -> Finding:
    sentence = f"CPU {number} saves 368 bytes, but only {size} were described"
    return Finding(Kind.CPU_NOTES_TOO_SMALL, sentence, cpu=number)


def missing_memory(start: int, size: int = GIB) -> Finding:
    sentence = f"{size // GIB} GiB at {start:#x} is not described: a dump would lack that memory"
    return Finding(Kind.MEMORY_MISSING, sentence, (Range(start, start + size),))


def compared(loaded_for: Machine, now: Machine, **notes: int) -> Comparison:
    header = expected_elfcorehdr(loaded_for, Loader.KERNEL)
    small = tuple(p._replace(**notes) if p.p_type == 4 and p.p_memsz == 0x170 else p for p in header.program_headers)
    return compare_header(now, ElfCoreHeader(header.elf_header, small, header.architecture), Loader.KERNEL)


def of_kind(findings: Sequence[Finding], kind: Kind) -> list[str]:
    return summarize(finding for finding in findings if finding.kind is kind)


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([14, 15], "14-15"),
        (range(14, 4096), "14-4095"),
        ([2, 3, 5, 7, 8, 9], "2-3,5,7-9"),
        ([9, 3, 2], "2-3,9"),
        (range(1, 41, 2), "1,3,5,7,9,11,13,15 and 12 more"),
        ([*range(1, 15, 2), 20, 21, *range(30, 1030)], "1,3,5,7,9,11,13,20-21 and 1,000 more"),
    ],
)
def test_cpus_with_the_same_defect_are_one_sentence(numbers: Sequence[int], shown: str) -> None:
    assert summarize(map(missing_cpu, numbers)) == [f"CPUs {shown} are not described: {REGISTERS}"]


def test_single_cpu_keeps_its_sentence() -> None:
    assert summarize([missing_cpu(7)]) == [missing_cpu(7).sentence]
    assert summarize([]) == []


def test_interleaved_kinds_are_one_sentence_each_at_the_place_of_their_first() -> None:
    findings = [finding for number in range(2, 8, 2) for finding in (missing_cpu(number), small_cpu(number + 1))]
    assert summarize(findings) == [
        f"CPUs 2,4,6 are not described: {REGISTERS}",
        "CPUs 3,5,7 save 368 bytes, but only 16 were described",
    ]


def test_cpus_of_the_same_kind_with_other_values_stay_apart() -> None:
    found = summarize([small_cpu(2), small_cpu(3, 32), small_cpu(4), small_cpu(5, 64)])
    assert [sentence.split(" save")[0] for sentence in found] == ["CPUs 2,4", "CPU 3", "CPU 5"]


def test_offline_cpus_are_not_among_the_online_ones() -> None:
    result = compared(machine(), machine(online=(0, 1, 2, 4, 6), offline=(3, 5, 7)))
    assert summarize(result.findings) == [f"CPUs 2,4,6 are not described: {REGISTERS}"]
    assert summarize(result.notes) == [
        "CPUs 3,5,7 are plugged in but offline, and not described: their registers will be missing from a dump once "
        "they are online"
    ]


def test_few_ranges_keep_their_sentences_and_many_are_one_with_number_and_total() -> None:
    few = [missing_memory(number * 8 * GIB) for number in range(1, SEPARATE_RANGES + 1)]
    assert summarize(few) == [finding.sentence for finding in few]
    many = [missing_memory(number * 8 * GIB, 6 * GIB) for number in range(1, 8193)]
    assert summarize([missing_cpu(2), *many, missing_cpu(3)]) == [
        f"CPUs 2-3 are not described: {REGISTERS}",
        "8,192 ranges, 48 TiB in all, are not described: a dump would lack that memory "
        "(6 GiB at 0x200000000, 6 GiB at 0x400000000, 6 GiB at 0x600000000 and 8,189 more)",
    ]


def test_findings_about_no_single_cpu_or_range_keep_their_sentences() -> None:
    two = (Range(0, 4096), Range(8192, 12288))
    findings = [
        *[Finding(Kind.MALFORMED, "the notes at 0x1000 have 0 bytes")] * 2,
        *[Finding(Kind.MEMORY_GONE, "8 KiB at 0x0 is described but gone", two)] * 6,
        *[Finding(Kind.WRONG_SOURCE, "4 KiB at 0x0 would be read from 0x1000: the wrong memory", two[:1])] * 6,
        *[Finding(Kind.OVERLAP, "4 KiB at 0x2000 is described twice", two[:1])] * 6,
        Finding(Kind.CPU_MISSING, "CPU 1", cpu=1),
        *[Finding(Kind.CPU_MISSING, "CPU 12 is not described", cpu=1)] * 2,
    ]
    assert summarize(findings) == [finding.sentence for finding in findings]


def with_offline_memory(architecture: Architecture, ram: RangeList) -> Machine:
    now = machine(ram=(LOW_RAM, (MIB, GIB), *FIVE))
    assert now.memory_blocks is not None
    return now._replace(
        architecture=architecture._replace(describes_offline_blocks=False),
        memory_blocks=now.memory_blocks._replace(offline_ram=ram),
    )


def test_every_kind_of_memory_finding_is_one_sentence() -> None:
    """The sentences are those of core/verdict.py: one that no longer begins with its range is not summarised."""
    few, many = machine(), machine(ram=(LOW_RAM, (MIB, GIB), *FIVE))
    assert of_kind(compared(few, many).findings, Kind.MEMORY_MISSING) == [
        "5 ranges, 1.2 GiB in all, are not described: a dump would lack that memory "
        "(256 MiB at 0x100000000, 256 MiB at 0x180000000, 256 MiB at 0x200000000 and 2 more)"
    ]
    (gone,) = of_kind(compared(many, few).findings, Kind.MEMORY_GONE)
    assert "are described but gone: saving the dump would read memory that is not there" in gone
    (own,) = of_kind(compared(many, many._replace(crashkernel=RangeList(FIVE))).findings, Kind.CRASHKERNEL_DESCRIBED)
    assert "are described but reserved: a dump would hold" in own
    (offline,) = of_kind(
        compared(few, with_offline_memory(few.architecture, RangeList(FIVE))).notes, Kind.MEMORY_OFFLINE_NOT_DESCRIBED
    )
    assert "are offline and not described: offline memory has no contents to lose (256 MiB" in offline


def test_every_kind_of_memory_finding_of_a_dump_is_one_sentence() -> None:
    few, many, result = machine(), machine(ram=(LOW_RAM, (MIB, GIB), *FIVE)), Comparison()
    compare_memory(few, many.dumpable_ram, result, IN_DUMP)
    compare_memory(many, few.dumpable_ram, result, IN_DUMP)
    gone, missing = summarize(result.findings)
    assert "were described but gone: their bytes in the dump are not memory contents" in gone
    assert "are not described: the dump lacks that memory" in missing


def test_every_kind_of_cpu_finding_is_one_sentence() -> None:
    online = machine(online=range(6))
    (small,) = of_kind(compared(online, online, p_filesz=16, p_memsz=16).findings, Kind.CPU_NOTES_TOO_SMALL)
    assert small == (
        "CPUs 0-5 save 368 bytes, but only 16 are described: a dump would contain only a part of their registers"
    )


def test_cpus_whose_notes_cannot_be_read_are_one_list() -> None:
    now = machine(online=range(8))._replace(
        cpus=tuple(cpu._replace(crash_notes=None) if cpu.number in (1, 4, 5, 6) else cpu for cpu in cpus(range(8)))
    )
    assert compared(machine(), now).unchecked[0] == "whether CPUs 1,4-6 are described: crash_notes cannot be read"
