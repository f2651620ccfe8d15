# SPDX-License-Identifier: MIT
"""The lab's reader of compressed dumps, on dumps made in memory."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import dump
from crash_hotplug_lab.qemu.compressed_dump import CompressedDump, is_compressed
from crash_hotplug_lab.qemu.errors import LabError
from tests.core.dump.saved_dumps import SavedDump

PAGE = 4096
ZLIB, LZO, STORED = 1, 2, 0


def saved(directory: Path, flags: int = ZLIB) -> Path:
    """Return a dump that describes the pages 3 to 5 and 16 to 24, and has 4, 5 and 17 of them."""
    made = SavedDump([(3, 6), (16, 25)], [(4, 6), (17, 18)], level=0)
    pages = [bytes([number]) * PAGE for number in (4, 5, 17)]
    packed = [zlib.compress(page) if flags == ZLIB else page for page in pages]
    offset, descriptors = made.data_offset, b""
    for data in packed:
        descriptors += struct.pack("<QIIQ", offset, len(data), flags, 0)
        offset += len(data)
    content = made.to_bytes()[: made.descriptors_offset] + descriptors + b"".join(packed)
    path = directory / "vmcore"
    path.write_bytes(content)
    return path


def test_ranges_are_those_of_the_first_bitmap(tmp_path: Path) -> None:
    assert dump.ranges(saved(tmp_path)) == [(3 * PAGE, 6 * PAGE), (16 * PAGE, 25 * PAGE)]


@pytest.mark.parametrize("flags", [ZLIB, STORED])
@pytest.mark.parametrize("number", [4, 5, 17])
def test_word_is_read_from_its_page(tmp_path: Path, flags: int, number: int) -> None:
    assert dump.word_at(saved(tmp_path, flags), number * PAGE + 16) == int.from_bytes(bytes([number]) * 8, "little")


@pytest.mark.parametrize("number", [3, 16, 100_000_000])
def test_word_of_a_page_that_was_not_saved_is_none(tmp_path: Path, number: int) -> None:
    assert dump.word_at(saved(tmp_path), number * PAGE) is None


def test_page_compressed_by_another_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="compressed by a method that the lab does not read"):
        dump.word_at(saved(tmp_path, LZO), 4 * PAGE)


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vmcore"
    path.write_bytes(bytes(PAGE))
    assert not is_compressed(path)
    with pytest.raises(LabError, match="vmcore is no dump in makedumpfile's compressed format"):
        CompressedDump(path)
