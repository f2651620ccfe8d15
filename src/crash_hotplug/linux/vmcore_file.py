"""A vmcore as a file: /proc/vmcore, a full one, or only its beginning."""

from __future__ import annotations

import os

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.regular_file import open_given


class VmcoreFile:
    """A :class:`~crash_hotplug.core.vmcore.ByteSource` over a file."""

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
