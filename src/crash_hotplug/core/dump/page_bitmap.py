# SPDX-License-Identifier: MIT
"""Page bitmaps of a compressed dump: bit N of byte M is page frame 8 * M + N.

A bitmap of 1 TiB has 32 MiB.  It is read once, from its beginning to its end and 1 MiB at a time, so that it may come
from a pipe.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from crash_hotplug.core.dump.vmcore import WHAT, ByteSource
from crash_hotplug.core.elf import PN_XNUM
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple

_CHUNK = 1 << 20
_FULL = b"\xff" * _CHUNK
_EMPTY = bytes(_CHUNK)
_RUNS = re.compile(rb"\xff+|[^\x00\xff]+")
"""The bytes with set bits; most bytes have all bits or none."""
_RANGES_LIMIT = PN_XNUM
"""More ranges than an elfcorehdr can have entries describe no machine."""


class BitmapCutError(InputError):
    """The file ends inside of a bitmap."""


class SavedPages(NamedTuple):
    """Numbers of pages that a bitmap says are saved."""

    total: int
    own: int
    """Those in the range of page frames that this file has."""
    stray: int
    """Those that are not described."""


def bitmap_size(pages: int) -> int:
    """Return how many bytes have bits for that many pages."""
    return (pages + 7) // 8


def described_pages(source: ByteSource, offset: int, pages: int) -> RangeList:
    """Return the ranges of page frames whose bits are set.

    :param offset: file offset of the bitmap
    :param pages: number of page frames that have a bit
    :raise BitmapCutError: the file ends before the bitmap does
    :raise InputError: there are more ranges than a header can describe
    """
    found: list[tuple[int, int]] = []
    for first, chunk in _chunks(source, offset, pages):
        for start, end in _set_bits(chunk, first):
            if found and found[-1][1] == start:
                found[-1] = found[-1][0], end
            elif len(found) == _RANGES_LIMIT:
                raise InputError(
                    f"{WHAT} is malformed: its first bitmap has more than {_RANGES_LIMIT:,} ranges, more than an "
                    "elfcorehdr can describe"
                )
            else:
                found.append((start, end))
    return RangeList(found)


def count_saved(source: ByteSource, offset: int, pages: int, described: RangeList, own: Range) -> SavedPages:
    """Count the pages whose bits are set; parameters and errors as :func:`described_pages`.

    :param described: the ranges of page frames that the first bitmap has
    :param own: the range of page frames whose pages this file has
    """
    total = mine = stray = at = 0
    for first, chunk in _chunks(source, offset, pages):
        last = first + 8 * len(chunk)
        while at < len(described) and described[at].end <= first:
            at += 1
        expected = _bits(described, at, first, len(chunk))
        total += _popcount(chunk)
        if chunk != expected:
            stray += _popcount_of(int.from_bytes(chunk, "little") & ~int.from_bytes(expected, "little"))
        if own.start <= first and last <= own.end:
            mine += _popcount(chunk)
        elif first < own.end and own.start < last:
            low, high = max(own.start, first) - first, min(own.end, last) - first
            mine += _popcount_of(int.from_bytes(chunk, "little") >> low & (1 << (high - low)) - 1)
    return SavedPages(total, mine, stray)


def _chunks(source: ByteSource, offset: int, pages: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of the first page frame and the bytes of each part; bits behind the last page are cleared."""
    size = bitmap_size(pages)
    for at in range(0, size, _CHUNK):
        wanted = min(_CHUNK, size - at)
        chunk = source.read_at(offset + at, wanted)
        if len(chunk) < wanted:
            raise BitmapCutError(f"{WHAT} is truncated: a bitmap ends at byte {offset + size:#x}")
        if at + wanted == size and pages % 8:
            chunk = chunk[:-1] + bytes([chunk[-1] & (1 << pages % 8) - 1])
        yield 8 * at, chunk


def _set_bits(chunk: bytes, first: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of set bits, in order; ranges of neighbouring bytes may touch."""
    if chunk == _EMPTY[: len(chunk)]:  # a comparison takes a thirtieth of a search
        return
    for run in _RUNS.finditer(chunk):
        if chunk[run.start()] == 0xFF:
            yield first + 8 * run.start(), first + 8 * run.end()
            continue
        for number, byte in enumerate(run.group(), run.start()):
            for start, end in _BYTES[byte]:
                yield first + 8 * number + start, first + 8 * number + end


def _ranges_of_byte(byte: int) -> tuple[tuple[int, int], ...]:
    edges = [bit for bit in range(9) if (byte << 1 >> bit & 1) != (byte >> bit & 1)]
    return tuple(zip(edges[::2], edges[1::2]))


_BYTES = tuple(map(_ranges_of_byte, range(256)))


def _bits(described: RangeList, at: int, first: int, size: int) -> bytes:
    """Return *size* bytes of the bitmap of *described* from page frame *first* on; *at* is its first range there."""
    last = first + 8 * size
    if at == len(described) or described[at].start >= last:
        return _EMPTY[:size]
    if described[at].start <= first and last <= described[at].end:
        return _FULL[:size]
    made = bytearray(size)
    while at < len(described) and described[at].start < last:
        start, end = max(described[at].start, first) - first, min(described[at].end, last) - first
        at += 1
        whole, whole_end = (start + 7) // 8, end // 8
        if whole > whole_end:  # within one byte
            made[whole_end] |= (1 << end % 8) - (1 << start % 8)
            continue
        made[whole:whole_end] = _FULL[: whole_end - whole]
        if start % 8:
            made[whole - 1] |= 0xFF << start % 8 & 0xFF
        if end % 8:
            made[whole_end] |= (1 << end % 8) - 1
    return bytes(made)


def _popcount(chunk: bytes) -> int:
    if chunk == _FULL[: len(chunk)]:
        return 8 * len(chunk)
    return 0 if chunk == _EMPTY[: len(chunk)] else _popcount_of(int.from_bytes(chunk, "little"))


def _popcount_of(bits: int) -> int:
    if sys.version_info < (3, 10):
        return bin(bits).count("1")
    return bits.bit_count()
