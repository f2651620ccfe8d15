"""Which segments an update lists, and purgatory's digest: the numbers of two real images, and invented ones."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.architecture import PAGE
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.plan import control_pages_bound, lowest_hole, segments_to_list
from crash_hotplug.core.purgatory import find_digest_table, without_elfcorehdr
from crash_hotplug.core.purgatory import digest_covers, digest_regions, find_backup_region
from crash_hotplug.core.ranges import Range, RangeList

RESERVED = Range(0x3300_0000, 0x3F00_0000)
# 6.12 -ch, as `kexec -d` printed it: one page at the bottom, all else at the top.
TOOLS = (
    Segment(0x3300_0000, 0x1000, 0x30),
    Segment(0x3B4E_D000, 0x11_3000, 0x11_2B8D),
    Segment(0x3B60_0000, 0x37D_D000, 0xB2_57C0),
    Segment(0x3EE7_1000, 0x6000, 0x509A),
    Segment(0x3EE7_7000, 0x9000, 0x70E0),
    Segment(0x3EE8_0000, 0xE_1000, 0x800),
    Segment(0x3EF6_1000, 0x9_F000, 0x9_EC00),
)
KIMAGE = Kimage(0x3EE7_7730, TOOLS)


def listed(kimage: Kimage, size: int, *changed: int) -> list[int]:
    return [s.phys for s in segments_to_list(kimage, changed, RESERVED, size)]


def test_what_lies_below_the_hole_is_listed_for_its_place() -> None:
    assert listed(KIMAGE, 31 * PAGE, 0x3EE7_7000, 0x3EE8_0000) == [0x3300_0000, 0x3EE7_7000, 0x3EE8_0000]


def test_a_need_larger_than_the_hole_lists_more_until_it_fits_elsewhere() -> None:
    between = Kimage(0x3EE7_7730, (*TOOLS, Segment(0x3300_9000, PAGE, PAGE)))
    assert 0x3300_9000 not in listed(between, 8 * PAGE, 0x3EE8_0000)
    assert 0x3300_9000 in listed(between, 9 * PAGE, 0x3EE8_0000)
    assert 0x3300_9000 in listed(between, 31 * PAGE, 0x3EE8_0000)


def test_no_hole_is_cannot_tell() -> None:
    with pytest.raises(CannotTellError, match="no hole of"):
        listed(KIMAGE, RESERVED.size, 0x3EE8_0000)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=10),
    st.integers(1, 60),
    st.data(),
)
def test_control_pages_never_meet_a_segment_that_is_not_listed(
    drawn: list[tuple[int, int]], pages: int, data: st.DataObject
) -> None:
    """Whatever single pages the kernel takes from the lowest holes, up to the bound."""
    segments: list[Segment] = []
    for start, length in sorted(drawn):
        at = max(start * PAGE, segments[-1].range.end if segments else 0)
        segments.append(Segment(at, length * PAGE, length * PAGE))
    reserved = Range(0, segments[-1].range.end + 300 * PAGE)
    changed = data.draw(st.sampled_from(segments)).phys
    chosen = segments_to_list(Kimage(0, tuple(segments)), [changed], reserved, pages * PAGE)
    taken = RangeList(s.range for s in chosen)
    free = [page for page in range(0, reserved.end, PAGE) if not taken.contains(page)][:pages]
    unlisted = RangeList(s.range for s in segments if s not in chosen)
    assert not any(unlisted.contains(page) for page in free)


def test_the_lowest_hole() -> None:
    assert lowest_hole(Range(0, 100), [Range(0, 10), Range(15, 50)], 5) == Range(10, 15)
    assert lowest_hole(Range(0, 100), [Range(0, 10), Range(15, 50)], 6) == Range(50, 56)
    assert lowest_hole(Range(0, 100), [Range(0, 99)], 2) is None


def test_the_bound_grows_with_memory_and_covers_what_was_seen() -> None:
    """6 to 8 pages were in use with 1 GiB of RAM."""
    assert control_pages_bound(RangeList([(0, 1 << 30)])) >= 8 * PAGE
    assert control_pages_bound(RangeList([(0, 1 << 40)])) > 1024 * PAGE
    assert control_pages_bound(RangeList()) > 0


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


def test_the_header_leaves_the_digest_and_the_rest_stays_in_it() -> None:
    table = find_digest_table(purgatory(), SMALL, read)
    changed = without_elfcorehdr(purgatory(), table, 0x3000, read)
    assert changed is not None
    assert changed[0x600:0x620] == hashlib.sha256(MEMORY[0x1000] + MEMORY[0x5000]).digest()
    regions = digest_regions(changed, SMALL, SMALL_RESERVED)
    assert regions is not None
    assert [digest_covers(regions, at) for at in MEMORY] == [True, False, True]
    again = find_digest_table(changed, SMALL, read)
    assert without_elfcorehdr(changed, again, 0x3000, read) is None


def test_a_digest_that_does_not_fit_is_no_table() -> None:
    broken = bytearray(purgatory())
    broken[0x600] ^= 1
    with pytest.raises(CannotTellError, match="was not found"):
        find_digest_table(bytes(broken), SMALL, read)


@pytest.mark.parametrize("data", [b"", bytes(0x2000), purgatory(places=(0x1000,))])
def test_without_a_table_the_image_is_not_known(data: bytes) -> None:
    assert digest_regions(data, SMALL, SMALL_RESERVED) is None


def test_the_table_names_what_an_update_did_not_list() -> None:
    after = Kimage(0x8000, (Segment(0x3000, PAGE, PAGE), Segment(0x8000, 0x2000, 0x2000)))
    regions = digest_regions(purgatory(), after, SMALL_RESERVED)
    assert [s.phys for s in regions or ()] == [0x1000, 0x3000, 0x5000]


def test_the_backup_region_is_told_by_purgatorys_variables() -> None:
    data = bytearray(purgatory())
    regions = (Segment(0x5000, PAGE, PAGE),)
    source = Range(0x100, 0x100 + PAGE - 16)
    assert find_backup_region(bytes(data), regions, source) is None
    data[0x700:0x718] = struct.pack("<QQQ", 0x5000, source.start, source.size)
    assert find_backup_region(bytes(data), regions, source) == 0x5000
    assert find_backup_region(bytes(data), regions, Range(0, 5 * PAGE)) is None


@given(st.binary(max_size=2048))
def test_any_bytes(data: bytes) -> None:
    digest_regions(data, SMALL, SMALL_RESERVED)
    find_backup_region(data, SMALL.segments, Range(0, 100))
