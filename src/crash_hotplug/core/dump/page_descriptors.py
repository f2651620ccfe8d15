# SPDX-License-Identifier: MIT
"""The page descriptors of a compressed dump: one for each saved page, in the order of page frames.

makedumpfile writes pages one behind the other (``write_kdump_pages_cyclic()``), so the descriptor of the last page
tells where the file ends.  Pages of zeros share the first page of the data (``pd_zero``).  A page that found no space
has a descriptor of zeros, as all pages behind it (makedumpfile's IMPLEMENTATION, "The incomplete DUMPFILE").
"""

from __future__ import annotations

import struct

from crash_hotplug.core.dump.vmcore import ByteSource
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.records import NamedTuple

_DESCRIPTOR = struct.Struct("<QIIQ")
DESCRIPTOR_SIZE = _DESCRIPTOR.size
_PART = 1 << 15
"""Descriptors that are read at a time, from the last one backwards."""
_PARTS_LIMIT = 512
"""Parts that are read at most: 64 GiB of zeros behind the last other page of 4 KiB."""


class DescriptorTable(NamedTuple):
    """Where the page descriptors of a file are, and where the pages."""

    offset: int
    """File offset of the first descriptor."""
    number: int
    """Pages that the file has."""
    data_offset: int
    """File offset of the first page's data."""
    page_size: int

    @property
    def end(self) -> int:
        """File offset behind the last descriptor."""
        return self.offset + self.number * DESCRIPTOR_SIZE


class PageData(NamedTuple):
    """What the descriptors tell about the pages' data."""

    end: int
    """File offset behind the last page, as far as it is known."""
    is_end_known: bool
    """Whether no page lies behind :attr:`end`."""
    lost_pages: int = 0
    """Pages whose descriptors are zeros."""
    malformed: str | None = None
    """The last descriptor in words, where no page can have it."""


def read_page_data(source: ByteSource, table: DescriptorTable) -> PageData:
    """Read the last descriptors, as many as it takes to find the last page that is not one of zeros."""
    if table.number == 0:
        return PageData(table.data_offset, True)
    first = max(0, table.number - _PART)
    part = _read(source, table, first, table.number)
    if len(part) < (table.number - first) * DESCRIPTOR_SIZE:
        return PageData(table.data_offset, False)
    offset, size, _flags, _page_flags = _DESCRIPTOR.unpack(part[-DESCRIPTOR_SIZE:])
    if offset == 0:
        return _incomplete(source, table, part)
    if not _is_possible(table, offset, size):
        return PageData(table.data_offset, False, 0, f"file offset {offset:#x}, {size:#x} bytes")
    zeros_end = table.data_offset + table.page_size
    for _number in range(_PARTS_LIMIT):
        end = _last_end(part, table)
        if end > zeros_end or first == 0:
            return PageData(end, True)
        before = max(0, first - _PART)
        try:
            part = _read(source, table, before, first)
        except CannotTellError:  # it has passed in a pipe
            break
        first = before
    return PageData(zeros_end, False)


def _read(source: ByteSource, table: DescriptorTable, first: int, end: int) -> bytes:
    return source.read_at(table.offset + first * DESCRIPTOR_SIZE, (end - first) * DESCRIPTOR_SIZE)


def _is_possible(table: DescriptorTable, offset: int, size: int) -> bool:
    last = table.data_offset + table.number * table.page_size  # one page of zeros may come before the others
    return 0 < size <= table.page_size and table.data_offset <= offset <= last


def _last_end(part: bytes, table: DescriptorTable) -> int:
    """Return the file offset behind the last page that a part of the table describes."""
    last = part[-DESCRIPTOR_SIZE:]
    if part == last * (len(part) // DESCRIPTOR_SIZE):  # all pages are the one of zeros, or there is one
        offset, size, *_flags = _DESCRIPTOR.unpack(last)
        return int(offset + size)
    ends = (offset + size for offset, size, *_ in _DESCRIPTOR.iter_unpack(part) if _is_possible(table, offset, size))
    return max(ends, default=table.data_offset)


def _incomplete(source: ByteSource, table: DescriptorTable, part: bytes) -> PageData:
    """Look for the first descriptor of zeros: all behind it are zeros as well."""
    low, high = 0, table.number - 1
    try:
        while low < high:
            middle = (low + high) // 2
            if any(_read(source, table, middle, middle + 1)[:8]):
                low = middle + 1
            else:
                high = middle
    except CannotTellError:  # in a pipe only the last part is left
        high = table.number - sum(1 for offset, *_ in _DESCRIPTOR.iter_unpack(part) if offset == 0)
    return PageData(table.data_offset, False, table.number - high)
