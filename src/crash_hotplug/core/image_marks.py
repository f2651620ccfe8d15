"""Marks of segments that an update does not list: do they still hold what they held when it was planned?

Between the last look at the pointer and the kernel's own lock somebody without our lock may load another image.  No
system call says "replace it only if it is still that image", so the update then writes a part of the former image into
the new one.  That is seen afterwards, by what the other loader wrote over segments that were to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from crash_hotplug.core.handler import MixedImageError
from crash_hotplug.core.image import PAGE
from crash_hotplug.core.in_place import ReadPhys
from crash_hotplug.core.ranges import Range

PAGES = 64
"""Pages that are looked at of each segment, evenly spread; all of a small one, such as the zero page.  Another image
would have to differ between these only: its kernel and initrd have many times the distance."""


def places(segment: Range) -> Iterator[Range]:
    """Return the physical ranges of a segment that are looked at: all of it, or pages, its last one among them."""
    pages = segment.size // PAGE
    if pages <= PAGES:
        yield segment
        return
    for number in range(PAGES):
        start = segment.start + number * (pages - 1) // (PAGES - 1) * PAGE
        yield Range(start, start + PAGE)


def marks_of(segments: Iterable[Range], read_phys: ReadPhys) -> dict[Range, bytes]:
    """Return what is looked at of each segment."""
    return {segment: b"".join(read_phys(place.start, place.size) for place in places(segment)) for segment in segments}


def check_marks(before: Mapping[Range, bytes], read_phys: ReadPhys) -> None:
    """Check that segments still hold what they held.

    :param before: what :func:`marks_of` returned
    :raise MixedImageError: one does not
    """
    now = marks_of(before, read_phys)
    changed = [segment for segment in before if now[segment] != before[segment]]
    if changed:
        raise MixedImageError(
            f"another crash image was loaded at the very moment of the update (the segment at {changed[0].start:#x} is "
            "not what it was): what is loaded now is a mix of two and would leave no dump"
        )
