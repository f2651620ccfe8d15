# SPDX-License-Identifier: MIT
"""Which segments an update lists: the numbers of two real images, and invented ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.plan import (
    TornImageError,
    UpdatePlan,
    check_result,
)
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.reserved_region import lowest_hole, segments_to_list

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


def test_segments_below_the_hole_are_listed() -> None:
    assert listed(KIMAGE, 31 * PAGE, 0x3EE7_7000, 0x3EE8_0000) == [0x3300_0000, 0x3EE7_7000, 0x3EE8_0000]


def test_segments_are_listed_until_a_hole_is_large_enough() -> None:
    between = Kimage(0x3EE7_7730, (*TOOLS, Segment(0x3300_9000, PAGE, PAGE)))
    assert 0x3300_9000 not in listed(between, 8 * PAGE, 0x3EE8_0000)
    assert 0x3300_9000 in listed(between, 9 * PAGE, 0x3EE8_0000)
    assert 0x3300_9000 in listed(between, 31 * PAGE, 0x3EE8_0000)


def test_plan_without_a_hole_is_cannot_tell() -> None:
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


def test_lowest_hole_is_the_first_that_is_large_enough() -> None:
    assert lowest_hole(Range(0, 100), [Range(0, 10), Range(15, 50)], 5) == Range(10, 15)
    assert lowest_hole(Range(0, 100), [Range(0, 10), Range(15, 50)], 6) == Range(50, 56)
    assert lowest_hole(Range(0, 100), [Range(0, 99)], 2) is None


def test_control_pages_bound_grows_with_memory_and_covers_measured_use() -> None:
    """6 to 8 pages were in use with 1 GiB of RAM."""
    assert X86_64.control_bytes(RangeList([(0, 1 << 30)])) >= 8 * PAGE
    assert X86_64.control_bytes(RangeList([(0, 1 << 40)])) > 1024 * PAGE
    assert X86_64.control_bytes(RangeList()) > 0


@pytest.mark.parametrize(
    ("ram_bytes", "pages"),
    [(1 << 30, 30), ((1 << 30) + PAGE, 31), (512 << 30, 28 + 512 + 1), ((512 << 30) + PAGE, 28 + 513 + 2)],
)
def test_control_pages_bound_counts_a_page_for_each_started_gib_and_512_gib(ram_bytes: int, pages: int) -> None:
    assert X86_64.control_bytes(RangeList([(0, ram_bytes)])) == pages * PAGE


ENTRY = 0x3EE7_7730
KEPT = Range(0x3300_9000, 0x3301_0000)
PLAN = UpdatePlan(ENTRY, (), (KEPT,), Range(0x3300_0000, 0x3300_9000), False)


def loaded(control_page: int | None, entry: int = ENTRY) -> Kimage:
    return Kimage(entry, (), control_page)


@pytest.mark.parametrize("control_page", [0x3300_0001, 0x3300_9000])
def test_result_with_control_pages_below_what_was_kept_is_right(control_page: int) -> None:
    check_result(PLAN, loaded(control_page), b"header and room", b"header")


@pytest.mark.parametrize("control_page", [None, 0, 0x3300_9001, 0x3300_A000, 1 << 60])
def test_result_with_control_pages_elsewhere_is_torn(control_page: int | None) -> None:
    with pytest.raises(TornImageError, match="control pages may have overwritten"):
        check_result(PLAN, loaded(control_page), b"header", b"header")


def test_result_with_control_pages_behind_their_hole_is_torn_even_if_nothing_was_kept() -> None:
    with pytest.raises(TornImageError):
        check_result(PLAN._replace(kept=()), loaded(0x3300_9001), b"header", b"header")


@pytest.mark.parametrize(("entry", "there"), [(ENTRY + 1, b"header"), (ENTRY, b"head"), (ENTRY, b"another")])
def test_result_with_another_header_or_entry_point_is_not_what_was_meant(entry: int, there: bytes) -> None:
    with pytest.raises(CrashHotplugError, match="is not the one that is there"):
        check_result(PLAN, loaded(0x3300_1000, entry), there, b"header")
