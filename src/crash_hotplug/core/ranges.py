# SPDX-License-Identifier: MIT
"""Physical address ranges: sorted, disjoint, half-open.

The whole project uses this convention: a range is ``[start, end)``, and *end* is the first byte behind it.
``/proc/iomem`` has inclusive ends; its reader converts them.  Ranges that touch are one range, as in the kernel's
``crash_mem`` lists (``kernel/crash_core.c``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from crash_hotplug.core.errors import NoRoomError
from crash_hotplug.core.records import NamedTuple


class Range(NamedTuple):
    """One physical range ``[start, end)`` in bytes."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """Length in bytes; never negative in a :class:`RangeList`."""
        return self.end - self.start

    def overlaps(self, other: Range) -> bool:
        """Whether at least one byte is in both."""
        return self.start < other.end and other.start < self.end


class RangeList:
    """An immutable list of sorted, disjoint, non-empty, non-touching physical ranges."""

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Take ``(start, end)`` pairs in any order, overlapping or touching; empty ones vanish.

        :raise ValueError: a pair ends before it starts, or starts below 0
        """
        merged: list[Range] = []
        for start, end in sorted(ranges):
            if start < 0 or end < start:
                raise ValueError(f"not a physical range: [{start:#x}, {end:#x})")
            if start == end:
                continue
            if merged and start <= merged[-1].end:
                if end > merged[-1].end:
                    merged[-1] = Range(merged[-1].start, end)
            else:
                merged.append(Range(start, end))
        self._ranges = tuple(merged)

    @classmethod
    def _trusted(cls, ranges: list[Range]) -> RangeList:
        """Wrap ranges that are already sorted, disjoint and apart."""
        made = cls.__new__(cls)
        made._ranges = tuple(ranges)
        return made

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __getitem__(self, index: int) -> Range:
        return self._ranges[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RangeList) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(self._ranges)

    def __repr__(self) -> str:
        return "RangeList([" + ", ".join(f"({r.start:#x}, {r.end:#x})" for r in self._ranges) + "])"

    @property
    def size(self) -> int:
        """Bytes covered by all ranges together."""
        return sum(end - start for start, end in self._ranges)

    def union(self, other: Iterable[tuple[int, int]]) -> RangeList:
        """Return the bytes that are in either list."""
        return RangeList([*self._ranges, *other])

    def intersect(self, other: RangeList) -> RangeList:
        """Return the bytes that are in both lists; linear in their lengths."""
        found: list[Range] = []
        mine, theirs = self._ranges, other._ranges
        i = j = 0
        while i < len(mine) and j < len(theirs):
            start = max(mine[i].start, theirs[j].start)
            end = min(mine[i].end, theirs[j].end)
            if start < end:
                found.append(Range(start, end))
            if mine[i].end <= theirs[j].end:
                i += 1
            else:
                j += 1
        return RangeList._trusted(found)

    def exclude(self, holes: RangeList, max_ranges: int | None = None) -> RangeList:
        """Return the bytes that are in this list and not in *holes*; linear in the lengths of both.

        A hole may span several ranges (kernel fix 6dff31597264), and one in the middle of a range splits it.

        :param max_ranges: how many ranges the result may have, as the kernel's ``crash_mem.max_nr_ranges``
        :raise NoRoomError: the result has more; this list stays as it is
        """
        kept: list[Range] = []
        hole_list = holes._ranges
        first, last = 0, len(hole_list)
        for number, whole in enumerate(self._ranges):
            start, end = whole
            while first < last and hole_list[first].end <= start:
                first += 1
            if first == last:  # often soon: a machine has many ranges, and few of them are reserved
                kept.extend(self._ranges[number:])
                break
            if hole_list[first].start >= end:
                kept.append(whole)
                continue
            at = first
            while at < last and hole_list[at].start < end:
                hole = hole_list[at]
                if hole.start > start:
                    kept.append(Range(start, hole.start))
                start = max(start, hole.end)
                at += 1
            if start < end:
                kept.append(Range(start, end))
        if max_ranges is not None and len(kept) > max_ranges:
            raise NoRoomError(f"{len(kept)} ranges do not fit into a list of {max_ranges}")
        return RangeList._trusted(kept)

    def covers(self, other: RangeList) -> bool:
        """Whether every byte of *other* is in this list."""
        return not other.exclude(self)

    def contains(self, address: int) -> bool:
        """Whether the byte at physical *address* is in one of the ranges."""
        return any(start <= address < end for start, end in self._ranges)


class RangeDifference(NamedTuple):
    """The difference between two range lists."""

    only_first: RangeList
    only_second: RangeList


def compare_ranges(first: RangeList, second: RangeList) -> RangeDifference:
    """Return the bytes that only *first* covers and those that only *second* covers; cuts do not count."""
    return RangeDifference(first.exclude(second), second.exclude(first))
