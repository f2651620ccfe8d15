# SPDX-License-Identifier: MIT
"""The flattened format: a dump as a stream of records, each with its offset in the dump.

``makedumpfile -F`` writes it to a pipe, QEMU's ``dump-guest-memory -z`` and ``virsh dump`` to a file.  A header of 4096
bytes is followed by records: offset, size (both 64 bits, big-endian) and data.  A later record replaces the bytes of an
earlier one; one with -1 for both ends the stream (makedumpfile's IMPLEMENTATION, "The flattened format").
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from crash_hotplug.core.dump.vmcore import WHAT, ByteSource, Flattening
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.ranges import RangeList

SIGNATURE = b"makedumpfile\0"
_HEADER_SIZE = 4096
_HEADER = struct.Struct(">16sqq")
_RECORD = struct.Struct(">qq")
_END = (-1, -1)
_BLOCK = 4096
_EMPTY = bytes(_BLOCK)
_FULL = b"\xff" * _BLOCK
_UNIFORM = {_EMPTY: _EMPTY, _FULL: _FULL}
"""Blocks that bitmaps have many of: one copy of each is kept."""
_PART = 1 << 20
"""Bytes that are read at a time."""
HEAD_SIZE = 8 << 20
"""Bytes of the dump that are kept before its own header says how many: an ELF dump's headers and notes."""
_RECORDS_LIMIT = 1 << 20
"""Pieces that are kept: one of 64 KiB for each 2 GiB of memory is usual."""
_BLOCKS_LIMIT = 1 << 20
"""Kept blocks, most of them uniform."""
_KEPT_LIMIT = 256 << 20
"""Kept bytes in blocks that are not uniform: more than the bitmaps of 8 TiB have."""


class FlattenedDump:
    """The first part of the dump that a flattened stream has: headers, notes and bitmaps, no pages."""

    def __init__(self, source: ByteSource, kept_size: Callable[[FlattenedDump], int]) -> None:
        """Read a stream to its end.

        :param kept_size: returns how many bytes of the dump have to be kept; it is given what has been read so far
        :raise InputError: it is malformed
        :raise CannotTellError: more would have to be kept than is reasonable, or its header comes too late
        """
        self._blocks: dict[int, bytes | bytearray] = {}
        self._own_blocks = 0
        self._written: list[tuple[int, int]] = []
        self._first_end = 0
        self._size = 0
        self._kept = HEAD_SIZE
        self._first_dropped = 1 << 64
        self.flattening = self._read(source, kept_size)
        if self._first_dropped < self._kept:
            raise CannotTellError(f"{WHAT} is flattened, and its header comes behind the pages: they have passed")
        written = RangeList(self._written)
        self._present = RangeList([(0, self._size)]) if self.flattening.has_end else written

    @property
    def size(self) -> int:
        """Bytes of the dump, once rearranged."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes of the dump at *offset*, fewer at its end.

        Bytes that no record has are zeros, as in a file with holes; where the stream has no end, they are the end.

        :raise CannotTellError: they were not kept
        """
        present = next((end for start, end in self._present if start <= offset < end), offset)
        length = max(0, min(length, present - offset))
        if length and offset + length > self._kept:
            raise CannotTellError(f"{WHAT} is flattened, and its byte {offset + length:#x} was not kept")
        return self._contents(offset, length)

    def _contents(self, offset: int, length: int) -> bytes:
        first, end = offset // _BLOCK, -(-(offset + length) // _BLOCK)
        joined = b"".join(self._blocks.get(number, _EMPTY) for number in range(first, end))
        return joined[offset - first * _BLOCK :][:length]

    def _read(self, source: ByteSource, kept_size: Callable[[FlattenedDump], int]) -> Flattening:
        start = source.read_at(0, _HEADER_SIZE)
        if len(start) < _HEADER_SIZE:
            has = f"{len(start)} bytes, the header of a flattened one has {_HEADER_SIZE}"
            raise InputError(f"{WHAT} is truncated: {has}")
        _signature, kind, version = _HEADER.unpack_from(start)
        if (kind, version) != (1, 1):
            raise InputError(f"{WHAT} is flattened with type {kind} and version {version}; known is 1 for both")
        at = _HEADER_SIZE
        end = 0
        while True:
            record = source.read_at(at, _RECORD.size)
            if len(record) < _RECORD.size:
                total = source.size
                self._size = max(self._size, end - max(0, at - total))
                return Flattening(total, False)
            self._size = max(self._size, end)
            offset, size = _RECORD.unpack(record)
            if (offset, size) == _END:
                return Flattening(at + _RECORD.size, True)
            if offset < 0 or size <= 0 or offset + size >= 1 << 63:
                where = f"at byte {at:#x} of the stream"
                raise InputError(f"{WHAT} is malformed: {where}, a record has {size} bytes at {offset}")
            at += _RECORD.size
            end = offset + size
            wanted = max(0, min(end, self._kept) - offset)
            if wanted < size:
                self._first_dropped = min(self._first_dropped, offset + wanted)
            for part in range(0, wanted, _PART):
                self._store(offset + part, source.read_at(at + part, min(_PART, wanted - part)))
            at += size
            if offset < _BLOCK:
                self._kept = kept_size(self)

    def first_bytes(self, length: int) -> bytes:
        """Return the first *length* bytes as they are while the stream is read, fewer where they have not come."""
        return self._contents(0, min(length, self._first_end))

    def _store(self, offset: int, data: bytes) -> None:
        if offset <= self._first_end:
            self._first_end = max(self._first_end, offset + len(data))
        if self._written and self._written[-1][1] == offset:
            self._written[-1] = self._written[-1][0], offset + len(data)
        elif data:
            self._written.append((offset, offset + len(data)))
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, _BLOCK)
            piece = data[at : at + _BLOCK - start]
            at += len(piece)
            block = self._blocks.get(number)
            if block is None and piece == _EMPTY[: len(piece)]:
                continue  # bytes without a block are zeros
            if len(piece) == _BLOCK:
                changed: bytes | bytearray = _UNIFORM.get(piece, piece)
            else:
                changed = block if isinstance(block, bytearray) else bytearray(block or _EMPTY)
                changed[start : start + len(piece)] = piece
            self._own_blocks += (id(changed) not in _SHARED) - (block is not None and id(block) not in _SHARED)
            self._blocks[number] = changed
        too_many = len(self._written) > _RECORDS_LIMIT or len(self._blocks) > _BLOCKS_LIMIT
        if too_many or self._own_blocks * _BLOCK > _KEPT_LIMIT:
            raise CannotTellError(f"{WHAT} is flattened, and has too much before its pages to be kept")


_SHARED = frozenset(map(id, _UNIFORM.values()))
