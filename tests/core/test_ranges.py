# SPDX-License-Identifier: MIT
"""Ranges, with every rule that a bug in the kernel or in kexec-tools taught."""

from __future__ import annotations

import pytest
from hypothesis import given

from crash_hotplug.core.errors import NoRoomError
from crash_hotplug.core.ranges import Range, RangeList, compare_ranges
from tests.machines import range_lists


def points(ranges: RangeList) -> set[int]:
    """Return every byte address: the slow, obvious model."""
    return {byte for start, end in ranges for byte in range(start, end)}


def test_ranges_that_touch_or_overlap_are_one() -> None:
    assert list(RangeList([(0x2000, 0x3000), (0x1000, 0x2000), (0x2800, 0x4000)])) == [Range(0x1000, 0x4000)]


def test_empty_ranges_vanish_and_gaps_stay() -> None:
    assert list(RangeList([(5, 5), (1, 2), (3, 4)])) == [Range(1, 2), Range(3, 4)]


@pytest.mark.parametrize("bad", [(5, 4), (-1, 4)])
def test_impossible_ranges_are_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not a physical range"):
        RangeList([bad])


def test_exclusion_may_span_several_ranges() -> None:
    """Kernel fix 6dff31597264: the loop stopped after the first partial overlap."""
    ram = RangeList([(0x1000, 0x3000), (0x4000, 0x6000), (0x7000, 0x9000)])
    assert ram.exclude(RangeList([(0x2000, 0x8000)])) == RangeList([(0x1000, 0x2000), (0x8000, 0x9000)])


def test_exclusion_in_the_middle_splits_a_range() -> None:
    """Powerpc changed one end before it computed both sizes: FileSiz 0xffffffffc0000000."""
    left, right = RangeList([(0, 0x8000_0000)]).exclude(RangeList([(0x4000_0000, 0x5000_0000)]))
    assert (left.size, right.size) == (0x4000_0000, 0x3000_0000)


def test_exclusion_without_room_for_the_split_leaves_the_list_as_it_was() -> None:
    ram = RangeList([(0, 0x1000), (0x2000, 0x9000)])
    with pytest.raises(NoRoomError, match="3 ranges do not fit into a list of 2"):
        ram.exclude(RangeList([(0x4000, 0x5000)]), max_ranges=2)
    assert list(ram) == [Range(0, 0x1000), Range(0x2000, 0x9000)]
    assert len(ram.exclude(RangeList([(0x4000, 0x5000)]), max_ranges=3)) == 3


def test_low_memory_in_three_pieces_less_the_first_mib_is_empty() -> None:
    low = RangeList([(0, 0x3F000), (0x3F000, 0x40000), (0x40000, 0xA0000)])
    assert not low.exclude(RangeList([(0, 1 << 20)]))


def test_comparison_ignores_cuts_between_ranges() -> None:
    assert compare_ranges(RangeList([(0, 2), (2, 4)]), RangeList([(0, 4)])) == (RangeList(), RangeList())


def test_ranges_overlap_where_they_share_a_byte() -> None:
    middle = Range(10, 20)
    overlapping = [Range(0, 11), Range(19, 30), Range(12, 13), Range(0, 30), middle]
    assert [other for other in overlapping if middle.overlaps(other)] == overlapping
    apart = [Range(0, 10), Range(20, 30), Range(0, 5), Range(25, 30)]
    assert [other for other in apart if middle.overlaps(other)] == []


def test_empty_range_hides_no_later_one() -> None:
    assert list(RangeList([(1, 2), (3, 3), (5, 6)])) == [Range(1, 2), Range(5, 6)]


def test_range_list_equals_range_lists_only_and_shows_its_ranges() -> None:
    ranges = RangeList([(0x10, 0x20), (0x30, 0x40)])
    assert ranges == RangeList([(0x30, 0x40), (0x10, 0x20)])
    assert ranges != RangeList([(0x10, 0x20)])
    assert ranges != ((0x10, 0x20), (0x30, 0x40))
    assert repr(ranges) == "RangeList([(0x10, 0x20), (0x30, 0x40)])"


def test_contains_looks_into_every_range() -> None:
    ranges = RangeList([(10, 20), (30, 40)])
    assert [byte for byte in range(50) if ranges.contains(byte)] == [*range(10, 20), *range(30, 40)]


@given(range_lists(60), range_lists(60))
def test_operations_agree_with_sets_of_bytes(first: RangeList, second: RangeList) -> None:
    assert points(first.union(second)) == points(first) | points(second)
    assert points(first.intersect(second)) == points(first) & points(second)
    assert points(first.exclude(second)) == points(first) - points(second)
    assert first.covers(second) == (points(second) <= points(first))
    assert compare_ranges(first, second) == (first.exclude(second), second.exclude(first))


@given(range_lists(), range_lists())
def test_results_are_sorted_disjoint_and_apart(first: RangeList, second: RangeList) -> None:
    for result in (first, first.union(second), first.intersect(second), first.exclude(second)):
        assert all(r.start < r.end for r in result)
        assert all(a.end < b.start for a, b in zip(list(result)[:-1], list(result)[1:]))
        assert result == RangeList(result)


@given(range_lists(), range_lists())
def test_difference_and_intersection_lose_no_byte(first: RangeList, second: RangeList) -> None:
    assert first.intersect(second).size + first.exclude(second).size == first.size
