# SPDX-License-Identifier: MIT
"""Audit of compressed dumps in memory: whole, cut, incomplete, split, malformed, hostile."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.dump import page_descriptors
from crash_hotplug.core.dump.diskdump import DiskdumpVmcore
from crash_hotplug.core.dump.formats import join_split_dumps, parse_vmcore
from crash_hotplug.core.dump.vmcore import Vmcore, audit_vmcore, compare_vmcore
from crash_hotplug.core.elf import NT_PRSTATUS, Note
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Comparison, Kind, Verdict
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from tests.core.dump.saved_dumps import Forward, InMemory, SavedDump, info_of, registers, saved_dump
from tests.core.dump.test_vmcore import vmcore_of
from tests.machines import GIB, LOW_RAM, MIB, machine

WITH_DIMM = machine(online=(0, 1, 2), ram=[LOW_RAM, (MIB, GIB), (4 * GIB, 5 * GIB)])
SMALL = SavedDump(
    [(1, 60), (200, 260)], [(1, 9), (200, 204)], [*registers(2), Note(b"VMCOREINFO", 0, b"OSRELEASE=6\n")]
)


def parsed(dump: SavedDump) -> DiskdumpVmcore:
    vmcore = parse_vmcore(InMemory(dump.to_bytes()))
    assert isinstance(vmcore, DiskdumpVmcore)
    return vmcore


def compared(vmcore: Vmcore, before: Machine, loaded_for: Machine | None = None) -> Comparison:
    result = audit_vmcore(vmcore)
    loaded = None if loaded_for is None else expected_elfcorehdr(loaded_for, Loader.KERNEL)
    compare_vmcore(vmcore, before, loaded, Loader.KERNEL, result)
    return result


def sentences(result: Comparison) -> list[str]:
    return [finding.sentence for finding in result.findings]


def joined(*dumps: SavedDump) -> Vmcore:
    ((vmcore, positions),) = join_split_dumps(parsed(dump) for dump in dumps)
    assert positions == [*range(len(dumps))]
    return vmcore


def test_whole_dump_is_accurate_and_its_contents_are_shown() -> None:
    vmcore = parsed(saved_dump(machine(), 2))
    assert compared(vmcore, machine(), machine()).verdict is Verdict.ACCURATE
    assert (vmcore.saved_cpus, vmcore.kernel_release) == (2, "6.1.0-test")
    assert str(vmcore.vmcoreinfo.panic_time) == "2026-11-22 17:21:52+00:00"
    assert list(vmcore.ram) == [(MIB, 512 * MIB), (768 * MIB, GIB)]
    assert list(vmcore.holes) == [(512 * MIB, 768 * MIB)]
    assert (vmcore.dump_level, vmcore.compression, vmcore.page_size) == (31, "lzo", 4096)
    assert (vmcore.saved_size, vmcore.left_out_size) == (10 * 4096, 767 * MIB - 10 * 4096)
    assert vmcore.file_size == vmcore.announced_size


@pytest.mark.parametrize(
    ("crashed", "cpus", "now"),
    [
        (machine(), 2, machine()),
        (machine(), 2, WITH_DIMM),
        (machine(), 1, machine()),
        (WITH_DIMM, 3, machine()),
        (machine(), 0, machine()),
        (machine(), 2, machine(ram=[LOW_RAM, (MIB, 256 * MIB), (300 * MIB, GIB)])),
    ],
)
def test_compressed_dump_and_elf_dump_of_a_machine_have_the_same_findings(
    crashed: Machine, cpus: int, now: Machine
) -> None:
    elf = compared(parse_vmcore(vmcore_of(crashed, cpus)), now, machine())
    compressed = compared(parsed(saved_dump(crashed, cpus)), now, machine())
    assert (compressed.findings, compressed.notes) == (elf.findings, elf.notes)


def test_page_that_is_ram_in_part_may_be_described_or_not() -> None:
    crashed = machine(ram=[(MIB, 400 * MIB + 100), (400 * MIB + 0x5800, GIB)])
    dump = saved_dump(crashed, 2)
    assert compared(parsed(dump), crashed, crashed).findings == []
    inner = [(start, end - (end == 0x19001)) for start, end in dump.described]
    assert inner != dump.described
    assert compared(parsed(replace(dump, described=inner)), crashed, crashed).findings == []
    beyond = [(start, end + (end == 0x19001)) for start, end in dump.described]
    assert [f.kind for f in compared(parsed(replace(dump, described=beyond)), crashed, crashed).findings] == [
        Kind.MEMORY_GONE
    ]


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("name", [b"x86_64", b"aarch64"])
def test_page_sizes_and_architectures_are_those_of_the_header(page_size: int, name: bytes) -> None:
    vmcore = parsed(replace(SMALL, page_size=page_size, utsname_machine=name))
    assert vmcore.architecture.name == name.decode()
    assert list(vmcore.ram) == [(page_size, 60 * page_size), (200 * page_size, 260 * page_size)]
    assert audit_vmcore(vmcore).verdict is Verdict.ACCURATE


@pytest.mark.parametrize(("size", "name"), [(336, "x86_64"), (392, "aarch64")])
def test_architecture_of_a_dump_that_qemu_wrote_is_that_of_its_registers(size: int, name: str) -> None:
    """QEMU's dump-guest-memory has "Unknown" for the machine."""
    notes = [*(Note(b"CORE", NT_PRSTATUS, bytes([cpu]) * size) for cpu in range(2)), SMALL.notes[-1]]
    dump = replace(SMALL, utsname_machine=b"Unknown", release=b"", notes=notes)
    assert parsed(dump).architecture.name == name
    for other in (
        [],
        [SMALL.notes[-1]],
        [Note(b"CORE", NT_PRSTATUS, bytes(144))],
        [*notes, Note(b"CORE", NT_PRSTATUS, b"")],
    ):
        with pytest.raises(InputError, match="does not tell its architecture"):
            parsed(replace(dump, notes=other))


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5, 6])
def test_header_versions_have_the_fields_that_came_with_them(version: int) -> None:
    info = b"OSRELEASE=6.1.0-info\n"
    notes = registers(3) if version >= 4 else ()
    dump = replace(SMALL, version=version, notes=notes, own_info=info if version >= 3 else b"")
    vmcore = parsed(dump)
    assert vmcore.kernel_release == ("6.1.0-info" if version >= 3 else "6.1.0-test")
    assert vmcore.saved_cpus == (3 if version >= 4 else 0)
    result = audit_vmcore(vmcore)
    assert result.findings == []
    reason = f"the registers of CPUs: version {version} of the compressed format has no notes"
    assert result.unchecked == ([] if version >= 4 else [reason])


def test_versions_before_6_have_32_bits_for_the_number_of_pages() -> None:
    dump = replace(SMALL, version=5)
    assert parsed(replace(dump, changes={dump.page_size + 80: b"\xff" * 24})).header.pages == 260
    assert parsed(replace(SMALL, changes={440: b"\1\0\0\0"})).header.pages == 260


@pytest.mark.parametrize("version", [-1, 0, 7, 6 << 24])
def test_other_versions_are_refused(version: int) -> None:
    with pytest.raises(InputError, match=rf"a compressed dump of version {version}; known are 1 to 6"):
        parsed(replace(SMALL, changes={8: struct.pack("<i", version)}))


def test_dump_without_vmcoreinfo_is_a_finding() -> None:
    assert sentences(audit_vmcore(parsed(replace(SMALL, notes=registers(2))))) == [
        "it contains no vmcoreinfo: tools cannot read the dump"
    ]


def test_every_cut_is_a_sentence_or_a_finding() -> None:
    """At each edge of the headers and around it; a file that is hardly more than its headers is a beginning."""
    whole = SMALL.to_bytes()
    edges = {0, 8, 12, 402, 464, 4096, SMALL.notes_offset, SMALL.bitmaps_offset, SMALL.descriptors_offset}
    edges |= {SMALL.bitmaps_offset + 4096, SMALL.data_offset, len(whole)}
    for size in sorted({edge + near for edge in edges for near in (-1, 0, 1) if 0 <= edge + near < len(whole)}):
        try:
            vmcore = parse_vmcore(InMemory(whole[:size]))
        except InputError as error:
            assert size < SMALL.notes_offset, size
            assert "is truncated: " in str(error) or size < 8, (size, error)
        else:
            result = audit_vmcore(vmcore)
            assert result.verdict is not Verdict.ACCURATE, size
            is_known = size >= SMALL.bitmaps_offset + bitmap_bytes(SMALL)
            assert (vmcore.why_ram_unknown is None) == is_known, size
            assert bool(vmcore.ram) == is_known
    assert audit_vmcore(parse_vmcore(InMemory(whole))).verdict is Verdict.ACCURATE  # negative control


def bitmap_bytes(dump: SavedDump) -> int:
    return -(-dump.max_mapnr // 8)


def test_beginning_of_a_dump_names_the_checks_that_were_not_made() -> None:
    vmcore = parse_vmcore(InMemory(SMALL.to_bytes()[: SMALL.descriptors_offset + 3]))
    result = audit_vmcore(vmcore)
    assert (vmcore.is_beginning, result.findings) == (True, [])
    assert "the contents: only the first 16.0 KiB of at least 16.3 KiB are here" in result.unchecked[0]


def test_dump_that_ends_early_is_truncated() -> None:
    whole = SMALL.to_bytes()
    assert audit_vmcore(parse_vmcore(InMemory(whole))).findings == []
    result = audit_vmcore(parse_vmcore(InMemory(whole[:-1])))
    assert sentences(result) == ["the file ends 1 bytes early: it has 20.5 KiB of 20.5 KiB"]
    assert not parse_vmcore(InMemory(whole[:-1])).is_beginning


def test_large_dump_that_ends_within_its_descriptors_is_truncated() -> None:
    dump = replace(SMALL, described=[(0, 60_000)], saved=[(0, 50_000)])
    result = audit_vmcore(parse_vmcore(InMemory(dump.to_bytes()[: 1100 << 10])))
    assert [finding.kind for finding in result.findings] == [Kind.TRUNCATED]
    assert "the file ends at least " in result.findings[0].sentence


def test_marked_incomplete_dump_names_the_memory_that_was_lost() -> None:
    for lost in (1, 5, 12):
        result = audit_vmcore(parsed(replace(SMALL, status=2 | 8, lost=lost)))
        sentence = f"{lost * 4} KiB of 48 KiB to be saved are not in the file: makedumpfile ran out of space"
        assert (sentences(result), result.unchecked) == ([sentence], [])
    unmarked = audit_vmcore(parsed(replace(SMALL, lost=3)))
    assert sentences(unmarked) == ["12 KiB of 48 KiB to be saved are not in the file"]
    marked = audit_vmcore(parsed(replace(SMALL, status=2 | 8)))
    assert sentences(marked) == ["makedumpfile marked the file as incomplete: it ran out of space"]


def test_pages_of_zeros_at_the_end_do_not_hide_that_the_file_ends_early() -> None:
    dump = replace(SMALL, zero_pages=range(3, 300))
    whole = dump.to_bytes()
    assert audit_vmcore(parse_vmcore(InMemory(whole))).verdict is Verdict.ACCURATE
    assert Kind.TRUNCATED in [f.kind for f in audit_vmcore(parse_vmcore(InMemory(whole[:-1]))).findings]
    only_zeros = replace(SMALL, zero_pages=range(300)).to_bytes()
    assert audit_vmcore(parse_vmcore(InMemory(only_zeros))).verdict is Verdict.ACCURATE
    assert Kind.TRUNCATED in [f.kind for f in audit_vmcore(parse_vmcore(InMemory(only_zeros[:-1]))).findings]


def test_descriptors_are_read_backwards_until_a_page_that_is_not_of_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_descriptors, "_PART", 2)
    for zeros in (range(3, 300), range(2, 300), range(300)):
        whole = replace(SMALL, zero_pages=zeros).to_bytes()
        assert audit_vmcore(parse_vmcore(InMemory(whole))).verdict is Verdict.ACCURATE
        assert Kind.TRUNCATED in [f.kind for f in audit_vmcore(parse_vmcore(InMemory(whole[:-1]))).findings]
    monkeypatch.setattr(page_descriptors, "_PARTS_LIMIT", 4)
    result = audit_vmcore(parsed(replace(SMALL, zero_pages=range(3, 300))))
    sentence = "the end of the file: more pages of zeros come last than are looked through"
    assert (result.verdict, result.unchecked) == (Verdict.CANNOT_TELL, [sentence])


def test_pages_that_the_dump_level_does_not_leave_out_are_cannot_tell() -> None:
    for level, saved, lacks in ((31, 8, False), (1, 8, True), (0, 8, True), (2, 8, False), (0, 60, False)):
        dump = replace(SMALL, level=level, described=[(0, 60)], saved=[(0, saved)])
        assert bool(audit_vmcore(parsed(dump)).unchecked) is lacks, (level, saved)
    assert (
        "whether 208 KiB are lost, which are described and not saved"
        in audit_vmcore(parsed(replace(SMALL, level=0, described=[(0, 60)], saved=[(0, 8)]))).unchecked[0]
    )
    at_the_edges = replace(SMALL, level=0, described=[(0, 60)], saved=[(0, 58)])
    assert audit_vmcore(parsed(at_the_edges)).verdict is Verdict.ACCURATE


def test_saved_page_that_is_not_described_is_malformed() -> None:
    result = audit_vmcore(parsed(replace(SMALL, saved=[(0, 9), (200, 204)])))
    assert sentences(result) == ["1 page is saved that the first bitmap does not have"]


def test_dump_in_which_no_page_was_saved_is_a_finding() -> None:
    for level in (31, 0):
        result = audit_vmcore(parsed(replace(SMALL, saved=[], level=level)))
        assert sentences(result) == ["no page was saved: the dump has no memory"]


def test_dump_without_memory_is_malformed() -> None:
    assert "no memory is described" in sentences(audit_vmcore(parsed(replace(SMALL, described=[], saved=[], pages=80))))


@pytest.mark.parametrize("descriptor", [(1 << 62, 20), (1, 20), (0x7000, 0), (0x7000, 4097), (0x6138 + 13 * 4096, 4)])
def test_impossible_descriptor_of_the_last_page_is_malformed(descriptor: tuple[int, int]) -> None:
    at = SMALL.data_offset - 24
    dump = replace(SMALL, changes={at: struct.pack("<QI", *descriptor)})
    assert "the descriptor of the last page in the file is malformed" in sentences(audit_vmcore(parsed(dump)))[0]


def test_erased_data_is_a_note_and_belongs_to_the_file() -> None:
    whole = replace(SMALL, erased=b"erase secret size 8\n").to_bytes()
    result = audit_vmcore(parse_vmcore(InMemory(whole)))
    assert ([note.kind for note in result.notes], result.findings) == ([Kind.LEFT_OUT], [])
    assert Kind.TRUNCATED in [f.kind for f in audit_vmcore(parse_vmcore(InMemory(whole[:-1]))).findings]


def test_dump_is_judged_by_the_place_of_the_kernel_text() -> None:
    text = machine().kernel_text
    assert text is not None
    moved = machine(kernel_text=text._replace(phys=text.phys + MIB))
    result = compared(parsed(saved_dump(machine(), 2)), moved, machine())
    assert [finding.kind for finding in result.findings] == [Kind.WRONG_KERNEL_TEXT]
    assert "the kernel text is described as 0xffffffff80000000 above its physical address" in sentences(result)[0]
    masked = compared(parsed(saved_dump(machine(), 2)), machine(kernel_text=None), machine())
    assert "the addresses of the kernel text: /proc/kallsyms" in masked.unchecked[0]
    unknown = replace(
        saved_dump(machine(), 2), notes=[*registers(2), Note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0-test\n")]
    )
    assert "neither phys_base nor kimage_voffset" in compared(parsed(unknown), machine(), machine()).unchecked[0]


def test_dump_of_another_kernel_is_refused_by_vmcoreinfo_or_utsname() -> None:
    old = saved_dump(machine(), 2, version=1, notes=(), release=b"5.10.0")
    with pytest.raises(InputError, match=r"is of kernel 5.10.0, the machine ran 6.1.0-test"):
        compared(parsed(old), machine())


def test_dump_without_its_first_bitmap_is_not_compared() -> None:
    dump = saved_dump(machine(), 2)
    cut = parse_vmcore(InMemory(dump.to_bytes()[: dump.bitmaps_offset + 9]))
    result = compared(cut, WITH_DIMM, machine())
    assert [finding.kind for finding in result.findings] == [Kind.CPU_MISSING]
    assert "memory: the file ends before its first bitmap does" in result.unchecked


def test_versions_without_notes_do_not_tell_which_cpus_saved_registers() -> None:
    old = saved_dump(machine(), 2, version=3, notes=(), own_info=info_of(machine()))
    result = compared(parsed(old), WITH_DIMM, machine())
    assert [finding.kind for finding in result.findings] == [Kind.MEMORY_MISSING]


PARTS = [replace(SMALL, part=part) for part in ((0, 5), (5, 202), (202, 260))]


def test_parts_of_a_split_dump_are_one_dump_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 0, 1)):
        vmcore = joined(*(PARTS[number] for number in order))
        assert audit_vmcore(vmcore).verdict is Verdict.ACCURATE
        assert (vmcore.saved_size, vmcore.left_out_size) == (12 * 4096, (119 - 12) * 4096)
        assert len(vmcore.files) == 3


def test_missing_part_is_named_by_its_pages() -> None:
    for given_parts, lost in (((0, 2), "0x5 to 0xca"), ((0, 1), "0xca to 0x104"), ((1, 2), "0x0 to 0x5")):
        result = audit_vmcore(joined(*(PARTS[number] for number in given_parts)))
        assert [f.kind for f in result.findings] == [Kind.PART_MISSING]
        assert sentences(result) == [f"the part with the pages from {lost} of this split dump is not given"]
    assert [r for f in audit_vmcore(joined(PARTS[0], PARTS[2])).findings for r in f.ranges] == [(5 * 4096, 202 * 4096)]


def test_part_given_twice_is_a_finding() -> None:
    vmcore = joined(*PARTS, PARTS[1])
    result = audit_vmcore(vmcore)
    assert [f.kind for f in result.findings] == [Kind.PART_GIVEN_TWICE]
    assert "the pages from 0x5 to 0xca are in two of the given parts" in sentences(result)[0]
    assert vmcore.saved_size == 12 * 4096


def test_part_that_ends_early_is_named() -> None:
    cut = parse_vmcore(InMemory(PARTS[1].to_bytes()[:-1]))
    ((vmcore, _positions),) = join_split_dumps([parsed(PARTS[0]), cut, parsed(PARTS[2])])
    assert "the part with the pages from 0x5 to 0xca ends 1 bytes early" in sentences(audit_vmcore(vmcore))[0]


def test_part_with_another_first_bitmap_is_malformed() -> None:
    other = replace(PARTS[2], described=[(1, 60), (200, 259)], pages=260)
    assert "the parts of this split dump describe different memory" in sentences(
        audit_vmcore(joined(PARTS[0], PARTS[1], other))
    )


def test_parts_of_other_dumps_are_other_dumps() -> None:
    other_info = [*registers(2), Note(b"VMCOREINFO", 0, b"OSRELEASE=7\n")]
    for other in (
        replace(PARTS[2], notes=other_info),
        replace(PARTS[2], notes=[*registers(3), SMALL.notes[-1]]),
        replace(PARTS[2], pages=261),
        replace(PARTS[2], part=None),
    ):
        dumps = join_split_dumps(parsed(dump) for dump in (PARTS[0], other, PARTS[1]))
        assert [positions for _vmcore, positions in dumps] == [[0, 2], [1]]
    whole = join_split_dumps([parsed(SMALL), parsed(SMALL)])
    assert [positions for _vmcore, positions in whole] == [[0], [1]]


@pytest.mark.parametrize("machine", [b"64", b"h64", b"\xff\x1b[31m", b"Unknown"])
def test_architecture_is_that_of_the_registers_where_utsname_names_none(machine: bytes) -> None:
    """Makedumpfile 1.6.8 (Debian 11) copies the utsname of Linux 5.11 and newer from 4 bytes too far."""
    assert parsed(replace(SMALL, utsname_machine=machine)).architecture is X86_64


def changed(offset: int, form: str, *values: int) -> SavedDump:
    return replace(SMALL, changes={offset: struct.pack(form, *values)})


@pytest.mark.parametrize(
    ("dump", "sentence"),
    [
        (replace(SMALL, utsname_machine=b"i686"), r"is for i686; supported are x86_64, aarch64"),
        (replace(SMALL, utsname_machine=b"s390x"), "is for s390x"),
        (replace(SMALL, utsname_machine=b"\xff\x1b[31m", notes=[]), "does not tell its architecture"),
        (changed(428, "<i", 0), "its blocks have 0 bytes"),
        (changed(428, "<i", -4096), "its blocks have -4096 bytes"),
        (changed(428, "<i", 512), "its blocks have 512 bytes"),
        (changed(428, "<i", 1 << 30), "its blocks have 1073741824 bytes"),
        (changed(432, "<i", 0), "its sub-header has 0 blocks"),
        (changed(432, "<i", -1), "its sub-header has -1 blocks"),
        (changed(436, "<I", 0), "its bitmaps have 0 bits each, for 260 pages"),
        (changed(4096 + 96, "<Q", (1 << 64) - 1), "its bitmaps have 32,768 bits each, for 18,446,744,073,709,551,615"),
        (changed(4096 + 96, "<Q", 8 * 4096 + 1), "its bitmaps have 32,768 bits each, for 32,769 pages"),
        (changed(4096 + 48, "<qQ", 0, 64), "its notes at 0x0 to 0x40, the sub-header ends at 0x2000"),
        (changed(4096 + 48, "<qQ", 0x1FFF, 2), "its notes at 0x1fff to 0x2001"),
        (changed(4096 + 48, "<qQ", -1, 2), "its notes at -0x1 to 0x1"),
        (changed(4096 + 56, "<Q", (1 << 64) - 1), "its notes at 0x1068 to 0x"),
        (changed(4096 + 32, "<qQ", 1 << 62, 1), "its vmcoreinfo at 0x4000000000000000"),
        (changed(4096 + 64, "<qQ", 5, 1), "its list of erased data at 0x5"),
        (replace(SMALL, part=(9, 8)), "it has the pages 0x9 to 0x8 of 0x104"),
        (replace(SMALL, part=(0, 261)), "it has the pages 0x0 to 0x105 of 0x104"),
    ],
)
def test_hostile_headers_are_refused_with_a_sentence(dump: SavedDump, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parsed(dump)


class Boundless:
    """A file of 2^62 bytes that has only zeros behind its headers."""

    size = 1 << 62

    def __init__(self, head: bytes) -> None:
        self.head = head

    def read_at(self, offset: int, length: int) -> bytes:
        assert length <= 1 << 26, "too much at once"
        return self.head[offset : offset + length].ljust(length, b"\0")


def test_bitmaps_of_more_than_64_tib_are_not_read() -> None:
    pages = 8 * (2 << 30) + 8
    dump = replace(SMALL, changes={436: struct.pack("<I", 0x7FFFFFFF), 4096 + 96: struct.pack("<Q", pages)})
    with pytest.raises(CannotTellError, match=r"has bitmaps of 2,147,483,649 bytes; only 2,147,483,648 bytes are read"):
        parse_vmcore(Boundless(dump.to_bytes()))


def test_dump_out_of_a_pipe_has_the_same_result_as_out_of_a_file() -> None:
    dump = saved_dump(WITH_DIMM, 3)
    for whole in (dump.to_bytes(), dump.to_bytes()[:-1], replace(dump, lost=3).to_bytes()):
        piped, read = (audit_vmcore(parse_vmcore(kind(whole))) for kind in (Forward, InMemory))
        assert (sentences(piped), piped.unchecked) == (sentences(read), read.unchecked)


@given(st.integers(0, 5000), st.binary(min_size=1, max_size=16), st.integers(0, 30_000))
def test_parser_accepts_or_refuses_any_change(at: int, change: bytes, size: int) -> None:
    data = bytearray(SMALL.to_bytes())
    data[at : at + len(change)] = change
    for source in (InMemory(bytes(data)), InMemory(bytes(data[:size]))):
        try:
            compared(parse_vmcore(source), machine(release=None))
        except CrashHotplugError as error:
            assert str(error).startswith("this ")
            assert "\n" not in str(error)
