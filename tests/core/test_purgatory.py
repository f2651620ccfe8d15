# SPDX-License-Identifier: MIT
"""Purgatory's digest and the backup region, on an invented image."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.purgatory import (
    digest_covers,
    digest_of,
    digest_regions,
    find_backup_region,
    find_digest_table,
    purgatory_phys,
    read_purgatory,
    verify_digest,
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


def regions_of(data: bytes, kimage: Kimage = SMALL, reserved: RangeList = SMALL_RESERVED) -> list[int] | None:
    regions = digest_regions(data, kimage, reserved)
    return None if regions is None else [s.phys for s in regions]


def with_table(*entries: tuple[int, int], at: int = 0x400) -> bytes:
    """Return purgatory with these regions in its table."""
    data = bytearray(purgatory())
    data[at : at + 256] = b"".join(struct.pack("<QQ", *entry) for entry in entries).ljust(256, b"\0")
    return bytes(data)


ALL = [0x1000, 0x3000, 0x5000]


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE)], ALL),
        ([(0x1000, PAGE), (0x3000, 0), (0x5000, PAGE)], ALL),
        ([(0x1000, PAGE), (0x5000, PAGE)], [0x1000, 0x5000]),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE), (0x20000 - PAGE, PAGE)], [*ALL, 0x20000 - PAGE]),
        ([(0x1000, PAGE), (0x9000, PAGE)], None),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE), (0x5000, 0)], None),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE - 1)], None),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE), (0x7001, PAGE)], None),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE), (0x20000, 0)], None),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE), (0x10000, 0x11000)], None),
        ([(0x1000, PAGE), (0x3000, PAGE), (0x5000, PAGE), (0x9000, 4 * PAGE), (0xB000, PAGE)], None),
    ],
    ids=["whole", "excluded", "one missing", "more", "two missing", "twice", "length", "start", "outside",
         "reaches out", "overlap"],
)  # fmt: skip
def test_digest_regions_are_whole_pages_of_the_image_apart(
    entries: list[tuple[int, int]], found: list[int] | None
) -> None:
    assert regions_of(with_table(*entries)) == found


@pytest.mark.parametrize("wrong", [[(0x1000, PAGE), (0x9000, PAGE)], [(0x1000, PAGE), (0x3000, PAGE), (0x5000, 1)]])
def test_digest_regions_are_sought_on_behind_a_table_that_is_none(wrong: list[tuple[int, int]]) -> None:
    data = bytearray(with_table(*wrong, at=0x800))
    data[0x400:0x500], data[0x800:0x900] = data[0x800:0x900], data[0x400:0x500]
    assert regions_of(bytes(data)) == ALL


@pytest.mark.parametrize(("size", "found"), [(0x500, ALL), (0x4FF, None)])
def test_digest_table_may_be_the_last_thing_in_purgatory(size: int, found: list[int] | None) -> None:
    assert regions_of(purgatory()[:size]) == found


def test_digest_covers_a_region_with_a_length_only() -> None:
    regions = (Segment(0x1000, PAGE, PAGE), Segment(0x3000, 0, 0))
    assert [digest_covers(regions, at) for at in (0x1000, 0x1800, 0x3000, 0x5000)] == [True, False, False, False]


def test_digest_table_of_two_regions_is_the_smallest() -> None:
    two = purgatory(places=(0x1000, 0x3000))
    assert find_digest_table(two, SMALL, read).regions[:3] == ((0x1000, PAGE), (0x3000, PAGE), (0, 0))
    assert regions_of(two) == [0x1000, 0x3000]
    with pytest.raises(CannotTellError):
        find_digest_table(purgatory(places=(0x1000,)), SMALL, read)


def test_digest_table_has_two_regions_at_least_whatever_is_listed() -> None:
    few = Kimage(0x8000, (Segment(0x3000, PAGE, PAGE), Segment(0x8000, 0x2000, 0x2000)))
    assert regions_of(with_table((0x1000, PAGE)), few) is None
    assert regions_of(with_table((0x1000, PAGE), (0x5000, PAGE)), few) == [0x1000, 0x5000]


@pytest.mark.parametrize("wrong", [(0x1000, 1 << 40), (0x1000, PAGE)], ids=["too long", "single"])
def test_digest_table_is_sought_on_behind_words_that_are_none(wrong: tuple[int, int]) -> None:
    data = bytearray(purgatory())
    data[:16] = struct.pack("<QQ", *wrong)
    assert find_digest_table(bytes(data), SMALL, read).at == 0x400


def test_region_of_no_segment_is_not_read() -> None:
    data = bytearray(with_table((0x1000, PAGE), (0x9000, 1)))
    data[0x600:0x620] = hashlib.sha256(MEMORY[0x1000] + b"x").digest()
    with pytest.raises(CannotTellError):
        find_digest_table(bytes(data), SMALL, lambda phys, length: b"x" if phys == 0x9000 else read(phys, length))


def test_digest_at_the_start_of_purgatory_is_found() -> None:
    data = bytearray(purgatory())
    data[:32], data[0x600:0x620] = data[0x600:0x620], bytes(32)
    table = find_digest_table(bytes(data), SMALL, read)
    assert (table.at, table.digest_at) == (0x400, 0)


def test_regions_are_hashed_in_order_and_in_parts_of_a_mib() -> None:
    lengths: list[int] = []

    def counted(phys: int, length: int) -> bytes:
        lengths.append(length)
        return phys.to_bytes(8, "little") * (length // 8)

    whole = (0).to_bytes(8, "little") * (1 << 17) + (1 << 20).to_bytes(8, "little") * 512
    whole += (1 << 30).to_bytes(8, "little") * 512
    assert digest_of([(0, (1 << 20) + PAGE), (1 << 30, PAGE), (5, 0)], counted) == hashlib.sha256(whole).digest()
    assert lengths == [1 << 20, PAGE, PAGE]


def test_purgatory_is_the_segment_of_the_entry_point() -> None:
    inside = SMALL._replace(entry_phys=0x9730)
    assert purgatory_phys(inside) == 0x8000
    assert read_purgatory(inside, lambda phys, length: b"%x %x" % (phys, length)) == b"8000 2000"
    outside = SMALL._replace(entry_phys=0x10_0730)
    assert purgatory_phys(outside) == 0x10_0730
    assert read_purgatory(outside, read) == b""


def verified(data: bytes, kimage: Kimage | None = SMALL) -> None:
    memory = {**MEMORY, 0x8000: data}
    verify_digest(
        CrashImage(b"", kimage=kimage), SMALL_RESERVED, lambda phys, length: memory.get(phys, bytes(length))[:length]
    )


def test_verify_digest_passes_the_whole_image_and_names_what_is_wrong() -> None:
    verified(purgatory())
    broken = bytearray(purgatory())
    broken[0x600] ^= 1
    with pytest.raises(CrashHotplugError, match="a panic now would leave no dump") as caught:
        verified(bytes(broken))
    assert not isinstance(caught.value, CannotTellError)
    with pytest.raises(CannotTellError, match=r"digest table was not found: the image may be of an unknown kind$"):
        verified(bytes(0x2000))
    with pytest.raises(CannotTellError, match="struct kimage of the loaded image could not be read"):
        verified(purgatory(), None)


def test_backup_region_wants_address_and_size_in_purgatorys_variables() -> None:
    regions = (Segment(0x3000, 2 * PAGE, PAGE), Segment(0x5000, PAGE, PAGE), Segment(0x7000, PAGE, PAGE))
    source = Range(0x100, PAGE)

    def found(*words: int, regions: tuple[Segment, ...] = regions) -> int | None:
        return find_backup_region(struct.pack(f"<{len(words)}Q", *words) + b"rest", regions, source)

    assert found(9, 0x5000, 0x100, source.size) == 0x5000
    assert found(9, 0x7000, 0x100, source.size) == 0x7000
    assert found(source.size, 9, 0x7000) == 0x7000  # in any order, in the last word too
    assert found(0x3000, source.size) is None
    assert found(0x5000, source.size + 1) is None
    assert found(0x5000, PAGE, source.size) is None  # an entry of the digest table
    assert found(0x5000, PAGE, 0x5000, 0x100, source.size) == 0x5000
    assert found(0x9000, source.size) is None


@given(st.binary(max_size=2048))
def test_purgatory_parsers_survive_any_bytes(data: bytes) -> None:
    regions = digest_regions(data, SMALL, SMALL_RESERVED)
    assert regions is None or SMALL_RESERVED.covers(RangeList(region.range for region in regions))
    backup = find_backup_region(data, SMALL.segments, Range(0, 100))
    assert backup is None or SMALL.segment_at(backup) is not None
