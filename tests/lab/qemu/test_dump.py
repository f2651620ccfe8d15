# SPDX-License-Identifier: MIT
"""The contents of a range of a vmcore."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import dump

START, SIZE = 0x1000000, 3 << 20


@pytest.mark.parametrize(
    ("start", "end", "held"),
    [
        (START, START + (2 << 20), dump.ZEROS),
        (START, START + SIZE, "2 bytes are not 0"),
        (START + SIZE - 4096, START + SIZE, "2 bytes are not 0"),
        (START - 4096, START, dump.NOT_DESCRIBED),
        (START + SIZE - 4096, START + SIZE + 4096, dump.NOT_DESCRIBED),
    ],
)
def test_contents_of_a_range_are_zeros_or_counted(tmp_path: Path, start: int, end: int, held: str) -> None:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 7, 4096, 0, START, SIZE, SIZE, 0)
    data = bytes(SIZE - 2) + b"\x01\xff"
    vmcore = tmp_path / "vmcore"
    vmcore.write_bytes((header + load).ljust(4096, b"\0") + data)
    assert dump.contents(vmcore, start, end) == held
