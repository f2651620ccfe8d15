# SPDX-License-Identifier: MIT
"""Sparse memory against a plain bytearray."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.ranges import RangeList
from crash_hotplug_lab.model.memory import AbsentMemoryError, PhysicalMemory

SIZE = 5 * 4096
WRITES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(max_size=9000), st.booleans()), max_size=8)


@given(WRITES)
def test_memory_holds_what_was_written_last(writes: list[tuple[int, bytes, bool]]) -> None:
    memory = PhysicalMemory(RangeList([(0, SIZE)]))
    plain = bytearray(SIZE)
    for at, data, zeros in writes:
        part = data[: SIZE - at]
        if zeros:
            memory.zero(at, len(part))
            plain[at : at + len(part)] = bytes(len(part))
        else:
            memory.write(at, part)
            plain[at : at + len(part)] = part
    assert memory.read(0, SIZE) == plain
    assert all(plain[phys : phys + 4096] == page and any(page) for phys, page in memory.pages(0, SIZE))
    again = PhysicalMemory(RangeList([(0, SIZE)]))
    again.write(0, bytes(plain))
    assert again.key == memory.key


def test_memory_copies_are_independent() -> None:
    memory = PhysicalMemory(RangeList([(0, SIZE)]))
    copied = memory.copy()
    copied.write(0, b"x")
    assert memory.read(0, 1) == b"\0"
    assert memory.key != copied.key


def test_absent_memory_cannot_be_read_or_written() -> None:
    memory = PhysicalMemory(RangeList([(0, 4096), (8192, 12288)]))
    for phys, length in ((4096, 1), (4095, 2), (1 << 40, 1)):
        with pytest.raises(AbsentMemoryError):
            memory.read(phys, length)
        with pytest.raises(AbsentMemoryError):
            memory.write(phys, bytes(length))


def test_memory_forgets_its_contents_when_unplugged() -> None:
    memory = PhysicalMemory(RangeList([(0, SIZE)]))
    empty = memory.key
    memory.write(4096, b"x")
    memory.unplug(RangeList([(4096, 8192)]))
    memory.plug(RangeList([(4096, 8192)]))
    assert memory.read(4096, 1) == b"\0"
    assert memory.key == empty
