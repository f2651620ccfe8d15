# SPDX-License-Identifier: MIT
"""Places in the reserved region: holes for control pages, and for parts of the image that move.

The facts are those of ``kimage_alloc_crash_control_pages()`` in kernel/kexec_core.c.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range, RangeList


def segments_to_list(kimage: Kimage, changed: Iterable[int], reserved: Range, control_size: int) -> tuple[Segment, ...]:
    """Return which segments a kexec_load must list so that its control pages overwrite none that it does not list.

    :param changed: physical addresses of segments with new contents
    :param control_size: bytes of control pages this machine needs, at most
    :raise CannotTellError: no hole is large enough even with every segment listed
    """
    listed = {segment for segment in kimage.segments if segment.phys in set(changed)}
    while True:
        hole = lowest_hole(reserved, (s.range for s in listed), control_size)
        if hole is None:
            raise CannotTellError(f"the reserved region has no hole of {control_size} bytes for control pages")
        # Not only what overlaps this hole: single control pages go into smaller holes below it.
        hit = [s for s in kimage.segments if s not in listed and s.phys < hole.end]
        if not hit:
            return tuple(sorted(listed, key=lambda s: s.phys))
        listed.update(hit)


def lowest_hole(reserved: Range, listed: Iterable[Range], size: int) -> Range | None:
    """Return the lowest page-aligned hole of *size* bytes in the reserved range that no listed segment covers.

    The kernel takes control pages from it.
    """
    at = reserved.start
    for taken in sorted(listed):
        if taken.start - at >= size:
            break
        at = max(at, taken.end)
    return Range(at, at + size) if at + size <= reserved.end else None


def find_place(kimage: Kimage, capture_ram: RangeList, machine: Machine, reserved: Range, size: int) -> int:
    """Return the physical address of a free place: as high as possible, below the segments at the region's end.

    Control pages come from the lowest holes, so they stay apart.

    :param capture_ram: physical ranges that the capture kernel uses as RAM
    :raise CannotTellError: there is none
    """
    page = machine.architecture.page_size
    for hole in _holes(kimage, capture_ram, reserved):
        place = (hole.end - size) // page * page
        if hole.size >= size + machine.control_bytes + page:
            return place
    raise CannotTellError(f"the reserved region has no free place of {size} bytes")


def find_place_at_distance(
    kimage: Kimage, capture_ram: RangeList, machine: Machine, segment: Segment, alignment: int
) -> int | None:
    """Return the highest free physical address for a segment that moves by a multiple of *alignment*; None: no place.

    The present place of *segment* is not free.
    """
    for hole in _holes(kimage, capture_ram, reservation_of(machine, segment.phys)):
        place = hole.end - segment.memsz
        place -= (place - segment.phys) % alignment
        if place >= hole.start:
            return place
    return None


def _holes(kimage: Kimage, capture_ram: RangeList, reserved: Range) -> Iterator[Range]:
    """Yield the physical ranges of a reserved range that no segment has, the highest first."""
    free = RangeList([reserved]).intersect(capture_ram).exclude(RangeList(s.range for s in kimage.segments))
    yield from reversed(list(free))


def reservation_of(machine: Machine, phys: int) -> Range:
    """Return the reserved range that holds *phys*: the kernel takes segments and control pages from one only."""
    for reserved in machine.crashkernel:
        if reserved.start <= phys < reserved.end:
            return reserved
    raise CannotTellError(f"{phys:#x} does not lie in the memory reserved for the capture kernel")
