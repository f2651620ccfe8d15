"""Marks of segments: what is written over them is seen, what is not is not."""

from __future__ import annotations

import pytest

from crash_hotplug.core.UNKNOWN import MixedImageError
from crash_hotplug.core.architecture import PAGE
from crash_hotplug.core.image_marks import PAGES, check_marks, marks_of, places
from crash_hotplug.core.ranges import Range

SMALL = Range(0x1000, 0xA000)
LARGE = Range(0x10_0000, 0x410_0000)


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(LARGE.end)

    def read(self, phys: int, length: int) -> bytes:
        return bytes(self.data[phys : phys + length])


def test_what_did_not_change_passes() -> None:
    memory = Memory()
    check_marks(marks_of([SMALL, LARGE], memory.read), memory.read)


@pytest.mark.parametrize(
    ("at", "length"),
    [(SMALL.start, 1), (SMALL.end - 1, 1), (LARGE.start, 1), (LARGE.end - 1, 1), (LARGE.start + 0x12345, 2 << 20)],
)
def test_what_changed_is_seen(at: int, length: int) -> None:
    memory = Memory()
    before = marks_of([SMALL, LARGE], memory.read)
    memory.data[at : at + length] = b"x" * length
    with pytest.raises(MixedImageError, match="another crash image was loaded at the very moment"):
        check_marks(before, memory.read)


@pytest.mark.parametrize("pages", [1, PAGES - 1, PAGES, PAGES + 1, 159, 100_000])
def test_first_and_last_page_are_looked_at_and_few_between(pages: int) -> None:
    segment = Range(0x1000, 0x1000 + pages * PAGE)
    looked = list(places(segment))
    assert (looked[0].start, looked[-1].end) == (segment.start, segment.end)
    assert sum(place.size for place in looked) == min(pages, PAGES) * PAGE
    assert all(place.start % PAGE == 0 for place in looked)
