# SPDX-License-Identifier: MIT
"""Samples of the segments that an update keeps: they show afterwards whether another image was loaded meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.plan import TornImageError
from crash_hotplug.core.purgatory import ReadPhys
from crash_hotplug.core.ranges import Range

_SAMPLED_PAGES = 64
"""Pages that are sampled of each segment, evenly spread; a small one, such as the zero page, is compared whole.
Another image would have to differ between these only: its kernel and initrd have many times the distance."""


def sampled_ranges(segment: Range) -> Iterator[Range]:
    """Return the physical ranges of a segment that are sampled: all of it, or single pages, its last one among them."""
    pages = segment.size // PAGE
    if pages <= _SAMPLED_PAGES:
        yield segment
        return
    for number in range(_SAMPLED_PAGES):
        start = segment.start + number * (pages - 1) // (_SAMPLED_PAGES - 1) * PAGE
        yield Range(start, start + PAGE)


def sample_pages(segments: Iterable[Range], read_phys: ReadPhys) -> dict[Range, bytes]:
    """Return the sampled contents of each segment.

    Between the comparison of the identity and the kernel's own lock a loader that ignores our lock may load another
    image.  No system call says "replace it only if it is still that image", so the update then writes a part of the
    previous image into the new one.  The samples detect it afterwards: that loader overwrote segments that were to
    be kept.
    """
    return {
        segment: b"".join(read_phys(part.start, part.size) for part in sampled_ranges(segment)) for segment in segments
    }


def check_samples(before: Mapping[Range, bytes], now: Mapping[Range, bytes]) -> None:
    """Check that segments still hold what they held.

    :param before: what :func:`sample_pages` returned, as *now* later
    :raise TornImageError: one does not
    """
    changed = [segment for segment in before if now[segment] != before[segment]]
    if changed:
        raise TornImageError(
            f"another crash image was loaded at the very moment of the update (the segment at {changed[0].start:#x} "
            "changed): the loaded image is torn and would leave no dump"
        )
