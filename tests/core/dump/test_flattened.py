# SPDX-License-Identifier: MIT
"""Flattened dumps: rearranged, cut, in any order, hostile."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.dump import flattened as module
from crash_hotplug.core.dump.flattened import FlattenedDump
from crash_hotplug.core.dump.formats import parse_vmcore
from crash_hotplug.core.dump.vmcore import audit_vmcore
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.finding import Kind, Verdict
from tests.core.dump.saved_dumps import FLAT_END, FLAT_HEADER, Forward, InMemory, flattened, record, saved_dump
from tests.core.dump.test_diskdump import SMALL
from tests.core.dump.test_vmcore import vmcore_of
from tests.machines import LOW_RAM, MIB, machine


def everything(_dump: FlattenedDump) -> int:
    return 1 << 40


def rearranged(pieces: list[tuple[int, bytes]]) -> bytes:
    made = bytearray(max((offset + len(piece) for offset, piece in pieces), default=0))
    for offset, piece in pieces:
        made[offset : offset + len(piece)] = piece
    return bytes(made)


@given(st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=9000)), max_size=12))
def test_records_are_put_in_their_places_and_later_ones_replace_earlier_ones(pieces: list[tuple[int, bytes]]) -> None:
    dump = FlattenedDump(InMemory(flattened(pieces)), everything)
    whole = rearranged(pieces)
    assert dump.size == len(whole)
    assert dump.read_at(0, 1 << 20) == whole
    assert dump.read_at(4000, 300) == whole[4000:4300]
    assert dump.flattening == (len(flattened(pieces)), True)


@given(st.lists(st.tuples(st.integers(0, 3).map(lambda n: 4096 * n), st.sampled_from([0, 255])), max_size=12))
def test_uniform_blocks_are_kept_once(records: list[tuple[int, int]]) -> None:
    pieces = [(offset, bytes([value]) * 4096) for offset, value in records]
    dump = FlattenedDump(InMemory(flattened([*pieces, (1, b"own")])), everything)
    assert dump.read_at(0, 1 << 20) == rearranged([*pieces, (1, b"own")])
    assert dump._own_blocks == 1


def test_flattened_dump_has_the_result_of_the_dump_itself() -> None:
    for dump in (SMALL, saved_dump(machine(), 2)):
        plain = parse_vmcore(InMemory(dump.to_bytes()))
        for source in (InMemory(flattened(dump.pieces())), Forward(flattened(dump.pieces()))):
            vmcore = parse_vmcore(source)
            assert audit_vmcore(vmcore).verdict is Verdict.ACCURATE
            assert (vmcore.ram, vmcore.notes, vmcore.saved_size) == (plain.ram, plain.notes, plain.saved_size)
            assert vmcore.file_size == plain.file_size


def test_flattened_elf_dump_may_have_its_header_behind_its_program_headers() -> None:
    whole = vmcore_of(machine(ram=[LOW_RAM, (MIB, 64 * MIB)], crashkernel=[]), 2)
    data = whole.read_at(0, whole.size)
    pages = (0x2000, data[0x2000 : 0x2000 + (9 << 20)])
    rest = (0x2000 + (9 << 20), data[0x2000 + (9 << 20) :])
    stream = flattened(
        [(64, bytes(500)), (0, data[:64]), (0x1000, data[0x1000:0x2000]), pages, (64, data[64:0x1000]), rest]
    )
    vmcore = parse_vmcore(Forward(stream))
    assert (vmcore.ram, vmcore.saved_cpus) == (parse_vmcore(whole).ram, 2)
    assert audit_vmcore(vmcore).verdict is Verdict.ACCURATE


def test_flattened_elf_dump_with_its_end_is_no_beginning() -> None:
    head = vmcore_of(machine(), 2).head
    for stream, is_beginning in ((flattened([(0, head)]), False), (flattened([(0, head)])[:-1], True)):
        assert parse_vmcore(InMemory(stream)).is_beginning is is_beginning


def test_size_of_a_dump_whose_stream_is_cut_is_that_of_the_bytes_that_came() -> None:
    stream = FLAT_HEADER + record(50, b"a" * 100) + record(20, b"b" * 10)
    for cut, size in ((0, 150), (9, 150), (26, 150), (27, 149), (26 + 99, 51)):
        for kind in (InMemory, Forward):
            dump = FlattenedDump(kind(stream[: len(stream) - cut]), everything)
            assert (dump.size, dump.flattening) == (size, (len(stream) - cut, False))
            assert dump.read_at(50, 100) == b"a" * (size - 50)
            assert dump.read_at(20, 100) == b"b" * max(0, 10 - cut)


def test_sub_header_that_comes_last_counts() -> None:
    vmcore = parse_vmcore(Forward(flattened(replace(SMALL, erased=b"erase secret size 8\n").pieces())))
    assert [note.kind for note in audit_vmcore(vmcore).notes] == [Kind.LEFT_OUT]


def test_every_cut_of_a_stream_is_a_sentence_or_cannot_tell() -> None:
    stream = flattened(SMALL.pieces())
    edges, at = {0, 16, 4096}, 4096
    for _offset, piece in SMALL.pieces():
        edges |= {at, at + 8, at + 16, at + 16 + len(piece)}
        at += 16 + len(piece)
    for size in sorted({edge + near for edge in edges for near in (-1, 0, 1) if 0 <= edge + near < len(stream)}):
        for kind in (InMemory, Forward):
            try:
                vmcore = parse_vmcore(kind(stream[:size]))
            except InputError as error:
                assert "truncated" in str(error) or size < 13, (size, error)
            else:
                result = audit_vmcore(vmcore)
                assert (result.verdict, vmcore.is_beginning) == (Verdict.CANNOT_TELL, True), size
                assert any("of a flattened dump are here" in sentence for sentence in result.unchecked)


def test_long_stream_without_its_end_is_truncated() -> None:
    pieces = [*SMALL.pieces(), (SMALL.data_offset, bytes(1 << 20))]
    result = audit_vmcore(parse_vmcore(InMemory(flattened(pieces)[: -len(FLAT_END)])))
    assert [finding.kind for finding in result.findings] == [Kind.TRUNCATED]
    assert result.findings[0].sentence == "the file ends early: after 1.0 MiB, without the record that ends it"
    assert audit_vmcore(parse_vmcore(InMemory(flattened(pieces)))).verdict is Verdict.ACCURATE  # negative control


def test_pages_are_not_kept() -> None:
    pieces = [*SMALL.pieces(), *((SMALL.data_offset + number * 4096, b"\x5a" * 4096) for number in range(100))]
    dump = FlattenedDump(InMemory(flattened(pieces)), lambda _dump: SMALL.descriptors_offset)
    assert dump._own_blocks <= SMALL.descriptors_offset // 4096
    with pytest.raises(CannotTellError, match="was not kept"):
        dump.read_at(SMALL.descriptors_offset, 1)


def test_kept_bytes_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_LIMIT", 10 * 4096)
    pieces = [(number * 4096, b"\x5a") for number in range(11)]
    FlattenedDump(InMemory(flattened(pieces[:10])), everything)
    with pytest.raises(CannotTellError, match="too much before its pages"):
        FlattenedDump(InMemory(flattened(pieces)), everything)


def test_record_of_any_size_is_read_in_parts_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Boundless:
        size = 1 << 62

        def __init__(self, fill: bytes) -> None:
            self.fill = fill

        def read_at(self, offset: int, length: int) -> bytes:
            assert length <= 1 << 20
            head = FLAT_HEADER + struct.pack(">qq", 0, 1 << 61)
            return head[offset : offset + length] if offset < len(head) else self.fill * length

    monkeypatch.setattr(module, "HEAD_SIZE", 1 << 40)
    monkeypatch.setattr(module, "_BLOCKS_LIMIT", 1000)
    for fill in (b"\xff", b"\x5a"):
        with pytest.raises(CannotTellError, match="too much before its pages"):
            FlattenedDump(Boundless(fill), everything)


def test_bitmaps_that_no_machine_has_are_not_kept() -> None:
    for at, blocks in ((436, 0x7FFFFFFF), (432, 0x7FFFFFFF)):
        dump = replace(SMALL, changes={at: struct.pack("<I", blocks)})
        pieces = [(0, dump.to_bytes()[:464]), *SMALL.pieces()[1:]]
        with pytest.raises(CannotTellError, match="more than are read from a stream"):
            parse_vmcore(InMemory(flattened(pieces)))


def test_header_that_comes_behind_dropped_bytes_is_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SIZE", 8192)
    pieces = SMALL.pieces()
    stream = flattened([*pieces[1:], pieces[0]])
    with pytest.raises(CannotTellError, match="comes behind the pages"):
        parse_vmcore(InMemory(stream))


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (FLAT_HEADER[:4095], "is truncated: 4095 bytes, the header of a flattened one has 4096"),
        (struct.pack(">16sqq", b"makedumpfile", 2, 1).ljust(4096, b"\0"), "with type 2 and version 1"),
        (struct.pack("<16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0"), "with type 72057594037927936"),
        (FLAT_HEADER + struct.pack(">qq", -2, 5), "at byte 0x1000 of the stream, a record has 5 bytes at -2"),
        (FLAT_HEADER + struct.pack(">qq", -1, 5), "a record has 5 bytes at -1"),
        (FLAT_HEADER + struct.pack(">qq", 7, -1), "a record has -1 bytes at 7"),
        (FLAT_HEADER + struct.pack(">qq", 7, 0), "a record has 0 bytes at 7"),
        (FLAT_HEADER + struct.pack(">qq", (1 << 63) - 1, 1), "a record has 1 bytes at 9223372036854775807"),
        (FLAT_HEADER + FLAT_END, "is truncated: 0 bytes"),
        (flattened([(0, b"makedumpfile\0\0\0\0" * 30)]), "is not an ELF file"),
        (flattened([(0, SMALL.main_header()[:463])]), "is truncated: 463 bytes"),
    ],
)
def test_hostile_streams_are_refused_with_a_sentence(stream: bytes, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_vmcore(InMemory(stream))


@given(st.integers(4096, 5500), st.binary(min_size=1, max_size=16), st.integers(0, 30_000))
def test_parser_accepts_or_refuses_any_change(at: int, change: bytes, size: int) -> None:
    data = bytearray(flattened(SMALL.pieces()))
    data[at : at + len(change)] = change
    for source in (InMemory(bytes(data)), InMemory(bytes(data[:size])), Forward(bytes(data))):
        try:
            audit_vmcore(parse_vmcore(source))
        except CrashHotplugError as error:
            assert "\n" not in str(error)


def test_record_names_its_place() -> None:
    assert record(1, b"ab") == bytes(7) + b"\1" + bytes(7) + b"\2ab"
