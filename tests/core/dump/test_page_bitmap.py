# SPDX-License-Identifier: MIT
"""Page bitmaps against a reader that looks at one bit after the other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.dump import page_bitmap
from crash_hotplug.core.dump.page_bitmap import BitmapCutError, SavedPages, count_saved, described_pages
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.ranges import Range, RangeList
from tests.core.dump.saved_dumps import InMemory


def bits_of(bitmap: bytes, pages: int) -> list[int]:
    return [page for page in range(pages) if bitmap[page // 8] >> page % 8 & 1]


def bitmaps(size: int) -> st.SearchStrategy[bytes]:
    runs = st.tuples(st.sampled_from([0, 0xFF, 0x0F, 0x80, 0x5A, 1]), st.integers(1, 9))
    return st.lists(runs, max_size=20).map(
        lambda made: b"".join(bytes([b]) * n for b, n in made)[:size].ljust(size, b"\xff")
    )


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> object:
    """Read few bytes at a time, so that runs cross the borders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page_bitmap, "_CHUNK", 7)
        yield


@given(bitmaps(40), st.integers(0, 320))
def test_described_ranges_are_those_of_the_single_bits(bitmap: bytes, pages: int) -> None:
    found = described_pages(InMemory(b"before" + bitmap), 6, pages)
    assert found == RangeList((page, page + 1) for page in bits_of(bitmap, pages))


@given(bitmaps(40), bitmaps(40), st.integers(0, 320), st.integers(0, 320), st.integers(0, 320))
def test_saved_pages_are_counted_as_single_bits(one: bytes, two: bytes, pages: int, start: int, end: int) -> None:
    own = Range(min(start, end), max(start, end))
    first, second = set(bits_of(one, pages)), set(bits_of(two, pages))
    described = RangeList((page, page + 1) for page in first)
    counted = count_saved(InMemory(two), 0, pages, described, own)
    assert counted == SavedPages(len(second), sum(own.start <= p < own.end for p in second), len(second - first))


def test_bits_behind_the_last_page_do_not_count() -> None:
    assert list(described_pages(InMemory(b"\xff\xff"), 0, 9)) == [(0, 9)]
    assert count_saved(InMemory(b"\xff\xff"), 0, 9, RangeList([(0, 9)]), Range(0, 9)) == (9, 9, 0)


@pytest.mark.parametrize("kept", range(16))
def test_bitmap_that_the_file_cuts_is_none(kept: int) -> None:
    with pytest.raises(BitmapCutError, match="this vmcore is truncated: a bitmap ends at byte 0x10"):
        described_pages(InMemory(bytes(kept)), 0, 128)


def test_more_ranges_than_a_header_has_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_bitmap, "_RANGES_LIMIT", 20)
    assert len(described_pages(InMemory(b"\x55" * 5), 0, 40)) == 20
    assert list(described_pages(InMemory(b"\xff" * 200), 0, 1600)) == [(0, 1600)]  # one range, found in 29 parts
    with pytest.raises(InputError, match="its first bitmap has more than 20 ranges"):
        described_pages(InMemory(b"\x55" * 6), 0, 48)
