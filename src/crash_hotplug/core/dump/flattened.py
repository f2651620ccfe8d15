# SPDX-License-Identifier: MIT
"""The flattened format: a dump as a stream of records, each with its offset in the dump.

``makedumpfile -F`` writes it to a pipe, QEMU's ``dump-guest-memory -z`` and ``virsh dump`` to a file.  A header of 4096
bytes is followed by records: offset, size (both 64 bits, big-endian) and data.  A later record replaces the bytes of an
earlier one; one with -1 for both ends the stream (makedumpfile's IMPLEMENTATION, "The flattened format").
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from crash_hotplug.core.dump.byte_source import ByteSource
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.records import NamedTuple

SIGNATURE = b"makedumpfile\0"
_HEADER_SIZE = 4096
_HEADER = struct.Struct(">16sqq")
_RECORD = struct.Struct(">qq")
_END = (-1, -1)
_BLOCK = 4096
_UNIFORM = {bytes(_BLOCK): bytes(_BLOCK), b"\xff" * _BLOCK: b"\xff" * _BLOCK}
"""Blocks that bitmaps have many of: one copy of each is kept."""
HEAD_SIZE = 8 << 20
"""Bytes of the dump that are kept before its own header says how many: an ELF dump's headers and notes."""
_KEPT_LIMIT = 256 << 20
"""Kept bytes in blocks that are not uniform: more than the bitmaps of 8 TiB have."""


class Flattening(NamedTuple):
    """How the stream of a flattened dump ends."""

    stream_size: int
    """Bytes in the stream."""
    has_end: bool
    """Whether the record that ends it is there."""


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
        self._size = 0
        self._first_dropped = 1 << 64
        self._kept_size = kept_size
        self.flattening = self._read(source)
        if self._first_dropped < self._kept:
            raise CannotTellError("the header of this flattened vmcore comes behind the pages: they have passed")

    @property
    def size(self) -> int:
        """Bytes of the dump, once rearranged."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes of the dump at *offset*; bytes that no record has are zeros, as in a file with holes.

        :raise CannotTellError: they were not kept
        """
        length = max(0, min(length, self._size - offset))
        if length and offset + length > self._kept:
            raise CannotTellError(f"byte {offset + length:#x} of this flattened vmcore was not kept")
        first, end = offset // _BLOCK, -(-(offset + length) // _BLOCK)
        empty = bytes(_BLOCK)
        joined = b"".join(self._blocks.get(number, empty) for number in range(first, end))
        return joined[offset - first * _BLOCK :][:length]

    def _read(self, source: ByteSource) -> Flattening:
        start = source.read_at(0, _HEADER_SIZE)
        if len(start) < _HEADER_SIZE:
            raise InputError(f"this flattened vmcore is truncated: {len(start)} bytes, its header has {_HEADER_SIZE}")
        _signature, kind, version = _HEADER.unpack_from(start)
        if (kind, version) != (1, 1):
            raise InputError(
                f"this flattened vmcore has type {kind} and version {version}; known are type 1, version 1"
            )
        self._kept = HEAD_SIZE
        at = _HEADER_SIZE
        while True:
            record = source.read_at(at, _RECORD.size)
            if len(record) < _RECORD.size:
                return Flattening(source.size, False)
            offset, size = _RECORD.unpack(record)
            if (offset, size) == _END:
                return Flattening(at + _RECORD.size, True)
            if offset < 0 or size <= 0 or offset + size >= 1 << 63:
                where = f"at byte {at:#x} of the stream"
                raise InputError(f"this flattened vmcore is malformed: {where}, a record has {size} bytes at {offset}")
            at += _RECORD.size
            wanted = max(0, min(offset + size, self._kept) - offset)
            if wanted < size:
                self._first_dropped = min(self._first_dropped, offset + wanted)
            data = source.read_at(at, wanted) if wanted else b""
            self._store(offset, data)
            at += size
            end = offset + size
            if len(data) < wanted or source.read_at(at - 1, 1) == b"":
                end = offset + max(0, source.size - (at - size))
                self._size = max(self._size, end)
                return Flattening(source.size, False)
            self._size = max(self._size, end)
            if offset < _BLOCK:
                self._kept = self._kept_size(self)

    def _store(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, start = divmod(offset + at, _BLOCK)
            piece = data[at : at + _BLOCK - start]
            at += len(piece)
            block = self._blocks.get(number)
            if len(piece) == _BLOCK:
                changed: bytes | bytearray = _UNIFORM.get(piece, piece)
            else:
                changed = block if isinstance(block, bytearray) else bytearray(block or bytes(_BLOCK))
                changed[start : start + len(piece)] = piece
            self._own_blocks += (id(changed) not in _SHARED) - (block is not None and id(block) not in _SHARED)
            self._blocks[number] = changed
            if self._own_blocks * _BLOCK > _KEPT_LIMIT:
                raise CannotTellError("the bitmaps of this flattened vmcore have more than 256 MiB: too many to keep")


_SHARED = frozenset(map(id, _UNIFORM.values()))
