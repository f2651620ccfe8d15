# SPDX-License-Identifier: MIT
"""The comparison of two elfcorehdrs."""

from __future__ import annotations

import struct

from crash_hotplug_lab.qemu import guest_run

DIRECT = 0xFFFF0000_00000000


def header(*ranges: tuple[int, int, int]) -> bytes:
    """Return a header that describes one CPU, and ranges of physical start, size and mapping."""
    entries = [(4, 0, 0x1000, 0, 0x1000, 0x1A8, 0x1A8, 0)]
    entries += [(1, 7, start, mapping + start, start, size, size, 0) for start, size, mapping in ranges]
    raw = bytearray(b"".join(struct.pack("<IIQQQQQQ", *entry) for entry in entries))
    return bytes(56) + struct.pack("<H", len(entries)) + bytes(6) + bytes(raw)


def test_ranges_that_touch_are_the_same_as_one_range() -> None:
    apart = header((0x40000000, 0x1000, DIRECT), (0x40001000, 0x2000, DIRECT))
    one = header((0x40000000, 0x3000, DIRECT))
    assert guest_run._header(apart) != guest_run._header(one)
    assert guest_run._entries(apart) == guest_run._entries(one)


def test_other_ranges_are_not_the_same() -> None:
    one = header((0x40000000, 0x3000, DIRECT))
    gap = header((0x40000000, 0x1000, DIRECT), (0x40002000, 0x1000, DIRECT))
    shorter = header((0x40000000, 0x1000, DIRECT), (0x40001000, 0x1000, DIRECT))
    mapped_elsewhere = header((0x40000000, 0x1000, DIRECT), (0x40001000, 0x2000, 0))
    for other in (gap, shorter, mapped_elsewhere):
        assert guest_run._entries(other) != guest_run._entries(one)
