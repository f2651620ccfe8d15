# SPDX-License-Identifier: MIT
"""Reading dumps: files, and standard input."""

from __future__ import annotations

import os

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.sysroot import open_given

STDIN = 0
"""Descriptor of standard input."""
_HEAD = 4 << 20
"""Bytes at the beginning of a pipe that can be read again: more than 65,534 program headers have."""
_PART = 1 << 20


class VmcoreFile:
    """A :class:`~crash_hotplug.core.dump.vmcore.ByteSource` over a file."""

    def __init__(self, path: str) -> None:
        """Open the file.

        :raise CannotTellError: it may not be read
        :raise InputError: it does not exist, or is no regular file
        """
        self._path = path
        self._file = open_given(path)
        self._size = os.fstat(self._file.fileno()).st_size

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at file *offset*, fewer at the end of the file.

        :raise CannotTellError: reading fails
        """
        parts = []
        length = min(length, max(0, self._size - offset))
        try:
            while length > 0:
                part = os.pread(self._file.fileno(), min(length, 1 << 24), offset)
                if not part:
                    break
                parts.append(part)
                offset += len(part)
                length -= len(part)
        except OSError as error:
            raise CannotTellError(f"{self._path} cannot be read at byte {offset}: {error.strerror}") from error
        return b"".join(parts)

    def __enter__(self) -> VmcoreFile:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()


class VmcorePipe:
    """A :class:`~crash_hotplug.core.dump.vmcore.ByteSource` over a descriptor that cannot seek.

    Bytes that are passed over are dropped; only the first 4 MiB can be read again.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        """Read from an open descriptor.

        :param name: its name in messages
        """
        self._descriptor = descriptor
        self._name = name
        self._head = bytearray()
        self._position = 0

    @property
    def size(self) -> int:
        """Bytes until the end, to which this reads."""
        while self._next(_PART):
            pass
        return self._position

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at *offset*, fewer at the end.

        :raise CannotTellError: reading fails, or the bytes were dropped
        """
        parts = []
        if offset < len(self._head):
            parts.append(bytes(self._head[offset : offset + length]))
            offset += len(parts[0])
            length -= len(parts[0])
        if length > 0 and offset < self._position:
            raise CannotTellError(f"{self._name} cannot be read again at byte {offset}: it is no file")
        while self._position < offset and self._next(min(_PART, offset - self._position)):
            pass
        while length > 0 and self._position == offset:
            part = self._next(min(_PART, length))
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _next(self, length: int) -> bytes:
        """Read on, at most *length* bytes; none are left at the end."""
        try:
            part = os.read(self._descriptor, length)
        except OSError as error:
            raise CannotTellError(f"{self._name} cannot be read at byte {self._position}: {error.strerror}") from error
        if self._position < _HEAD:
            self._head += part[: _HEAD - self._position]
        self._position += len(part)
        return part
