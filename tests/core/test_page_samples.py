# SPDX-License-Identifier: MIT
"""Page samples of the kept segments: a change is detected, no change is not."""

from __future__ import annotations

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.page_samples import _SAMPLED_PAGES, check_samples, sample_pages, sampled_ranges
from crash_hotplug.core.plan import TornImageError
from crash_hotplug.core.ranges import Range

SMALL = Range(0x1000, 0xA000)
LARGE = Range(0x10_0000, 0x410_0000)


class Memory:
    def __init__(self) -> None:
        self.data = bytearray(LARGE.end)

    def read(self, phys: int, length: int) -> bytes:
        return bytes(self.data[phys : phys + length])


def test_samples_of_unchanged_segments_pass() -> None:
    memory = Memory()
    check_samples(sample_pages([SMALL, LARGE], memory.read), sample_pages([SMALL, LARGE], memory.read))


@pytest.mark.parametrize(
    ("at", "length"),
    [(SMALL.start, 1), (SMALL.end - 1, 1), (LARGE.start, 1), (LARGE.end - 1, 1), (LARGE.start + 0x12345, 2 << 20)],
)
def test_samples_detect_a_change(at: int, length: int) -> None:
    memory = Memory()
    before = sample_pages([SMALL, LARGE], memory.read)
    memory.data[at : at + length] = b"x" * length
    with pytest.raises(TornImageError, match="another crash image was loaded at the very moment"):
        check_samples(before, sample_pages(before, memory.read))


@pytest.mark.parametrize("pages", [1, _SAMPLED_PAGES - 1, _SAMPLED_PAGES, _SAMPLED_PAGES + 1, 159, 100_000])
def test_samples_hold_first_and_last_page_and_few_between(pages: int) -> None:
    segment = Range(0x1000, 0x1000 + pages * PAGE)
    looked = list(sampled_ranges(segment))
    assert (looked[0].start, looked[-1].end) == (segment.start, segment.end)
    assert sum(place.size for place in looked) == min(pages, _SAMPLED_PAGES) * PAGE
    assert all(place.start % PAGE == 0 for place in looked)
