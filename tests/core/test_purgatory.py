# SPDX-License-Identifier: MIT
"""Purgatory's digest and the backup region, on an invented image."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.architecture import PAGE
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.purgatory import (
    digest_covers,
    digest_regions,
    find_backup_region,
    find_digest_table,
    without_elfcorehdr,
)
from crash_hotplug.core.ranges import Range, RangeList

MEMORY = {
    0x1000: b"kernel".ljust(PAGE, b"\0"),
    0x3000: b"header".ljust(PAGE, b"\0"),
    0x5000: b"zero".ljust(PAGE, b"\0"),
}
SMALL = Kimage(0x8000, (*(Segment(at, PAGE, PAGE) for at in MEMORY), Segment(0x8000, 0x2000, 0x2000)))
SMALL_RESERVED = RangeList([(0x1000, 0x20000)])


def read(phys: int, length: int) -> bytes:
    return MEMORY[phys][:length]


def purgatory(at: int = 0x400, places: tuple[int, ...] = tuple(MEMORY)) -> bytes:
    data = bytearray(b"\x90" * 0x300).ljust(0x2000, b"\0")
    data[at : at + 256] = b"".join(struct.pack("<QQ", place, PAGE) for place in places).ljust(256, b"\0")
    data[0x600:0x620] = hashlib.sha256(b"".join(MEMORY[place] for place in places)).digest()
    return bytes(data)


def test_without_elfcorehdr_excludes_only_the_header_from_the_digest() -> None:
    changed = without_elfcorehdr(purgatory(), SMALL, 0x3000, read)
    assert changed[0x600:0x620] == hashlib.sha256(MEMORY[0x1000] + MEMORY[0x5000]).digest()
    regions = digest_regions(changed, SMALL, SMALL_RESERVED)
    assert regions is not None
    assert [digest_covers(regions, at) for at in MEMORY] == [True, False, True]
    assert without_elfcorehdr(changed, SMALL, 0x3000, read) == changed


def test_table_with_a_wrong_digest_is_not_found() -> None:
    broken = bytearray(purgatory())
    broken[0x600] ^= 1
    with pytest.raises(CannotTellError, match="was not found"):
        find_digest_table(bytes(broken), SMALL, read)


@pytest.mark.parametrize("data", [b"", bytes(0x2000), purgatory(places=(0x1000,))])
def test_digest_regions_without_a_table_are_none(data: bytes) -> None:
    assert digest_regions(data, SMALL, SMALL_RESERVED) is None


def test_digest_table_names_segments_that_an_update_did_not_list() -> None:
    after = Kimage(0x8000, (Segment(0x3000, PAGE, PAGE), Segment(0x8000, 0x2000, 0x2000)))
    regions = digest_regions(purgatory(), after, SMALL_RESERVED)
    assert [s.phys for s in regions or ()] == [0x1000, 0x3000, 0x5000]


def test_backup_region_is_found_in_purgatorys_variables() -> None:
    data = bytearray(purgatory())
    regions = (Segment(0x5000, PAGE, PAGE),)
    source = Range(0x100, 0x100 + PAGE - 16)
    assert find_backup_region(bytes(data), regions, source) is None
    data[0x700:0x718] = struct.pack("<QQQ", 0x5000, source.start, source.size)
    assert find_backup_region(bytes(data), regions, source) == 0x5000
    assert find_backup_region(bytes(data), regions, Range(0, 5 * PAGE)) is None


def test_region_longer_than_its_segment_is_not_read() -> None:
    """The length may be any 64-bit number."""
    data = bytearray(purgatory())
    at = data.index((0x1000).to_bytes(8, "little")) + 8
    assert int.from_bytes(data[at : at + 8], "little") == PAGE
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    read_ranges: list[tuple[int, int]] = []

    def recorded(phys: int, length: int) -> bytes:
        read_ranges.append((phys, length))
        return bytes(length)

    with pytest.raises(CannotTellError):
        find_digest_table(bytes(data), SMALL, recorded)
    assert all(phys in MEMORY and length <= PAGE for phys, length in read_ranges)


@given(st.binary(max_size=2048))
def test_purgatory_parsers_survive_any_bytes(data: bytes) -> None:
    regions = digest_regions(data, SMALL, SMALL_RESERVED)
    assert regions is None or SMALL_RESERVED.covers(RangeList(region.range for region in regions))
    backup = find_backup_region(data, SMALL.segments, Range(0, 100))
    assert backup is None or SMALL.segment_at(backup) is not None
