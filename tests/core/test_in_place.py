"""What has to be listed in an update, and purgatory's digest table."""

from __future__ import annotations

import pytest

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.in_place import (
    control_pages_bound,
    digest_of,
    find_digest_table,
    lowest_hole,
    segments_to_list,
    without_elfcorehdr,
)
from crash_hotplug.core.ranges import Range, RangeList

PAGE = 4096
RESERVED = Range(0x100000, 0x200000)


def segment(phys: int, pages: int) -> Segment:
    return Segment(phys, pages * PAGE, PAGE)


def test_lowest_hole_is_the_first_that_is_large_enough() -> None:
    taken = [Range(0x101000, 0x103000), Range(0x104000, 0x110000)]
    assert lowest_hole(RESERVED, taken, PAGE) == Range(0x100000, 0x101000)
    assert lowest_hole(RESERVED, taken, 2 * PAGE) == Range(0x110000, 0x112000)
    assert lowest_hole(RESERVED, [RESERVED], PAGE) is None


def test_segments_above_the_hole_need_not_be_listed() -> None:
    header, kernel = segment(0x1F0000, 4), segment(0x180000, 16)
    assert segments_to_list(Kimage(0x180000, (kernel, header)), [header.phys], RESERVED, 8 * PAGE) == (header,)


def test_segments_below_the_hole_are_listed_for_their_place() -> None:
    low, kernel, header = segment(0x100000, 1), segment(0x180000, 16), segment(0x1F0000, 4)
    image = Kimage(0x180000, (low, kernel, header))
    assert segments_to_list(image, [header.phys], RESERVED, 8 * PAGE) == (low, header)


def test_unlisted_segment_in_a_small_hole_below_the_large_one_is_listed() -> None:
    low, header, kernel = segment(0x100000, 1), segment(0x102000, 4), segment(0x180000, 16)
    image = Kimage(0x180000, (low, header, kernel))
    assert low in segments_to_list(image, [header.phys], RESERVED, 8 * PAGE)


def test_no_hole_is_an_answer() -> None:
    header, rest = segment(0x100000, 1), segment(0x101000, 255)
    with pytest.raises(CannotTellError, match="no hole of 8192 bytes"):
        segments_to_list(Kimage(0x101000, (header, rest)), [header.phys], RESERVED, 2 * PAGE)


def test_control_pages_grow_with_memory() -> None:
    assert control_pages_bound(RangeList([(0, 1 << 30)])) == 11 * PAGE
    assert control_pages_bound(RangeList([(0, 512 << 30)])) == (9 + 512 + 1) * PAGE


MEMORY = bytes(range(256)) * 64


def read(phys: int, length: int) -> bytes:
    return MEMORY[phys : phys + length]


def purgatory(regions: list[tuple[int, int]], damage: int = 0) -> bytes:
    table = b"".join(start.to_bytes(8, "little") + length.to_bytes(8, "little") for start, length in regions)
    digest = bytearray(digest_of(regions, read))
    digest[0] ^= damage
    return bytes(0x100) + bytes(digest) + table.ljust(256, b"\0") + bytes(64)


KIMAGE = Kimage(0, (Segment(0x1000, PAGE, PAGE), Segment(0x2000, PAGE, PAGE)))
REGIONS = [(0x1000, PAGE), (0x2000, PAGE)]


def test_table_is_found_and_proven_by_its_digest() -> None:
    table = find_digest_table(purgatory(REGIONS), KIMAGE, read)
    assert (table.digest_at, table.at) == (0x100, 0x120)


def test_table_with_a_digest_that_does_not_fit_is_not_taken() -> None:
    with pytest.raises(CannotTellError, match="digest table was not found"):
        find_digest_table(purgatory(REGIONS, damage=1), KIMAGE, read)


def test_elfcorehdr_is_left_out_once_and_the_digest_fits_again() -> None:
    data = purgatory(REGIONS)
    changed = without_elfcorehdr(data, find_digest_table(data, KIMAGE, read), 0x2000, read)
    assert changed is not None
    table = find_digest_table(changed, KIMAGE, read)
    assert table.regions[1] == (0x2000, 0)
    assert without_elfcorehdr(changed, table, 0x2000, read) is None
