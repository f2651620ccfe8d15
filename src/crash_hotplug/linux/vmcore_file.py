"""A vmcore as a file: /proc/vmcore, a full one, or only its beginning."""

from __future__ import annotations

import os
import stat

from crash_hotplug.core.errors import CannotTellError, InputError


class VmcoreFile:
    """A :class:`~crash_hotplug.core.vmcore.ByteSource` over a file."""

    def __init__(self, path: str) -> None:
        """Open the file.

        :raise CannotTellError: it may not be read
        :raise InputError: it does not exist, or is no regular file
        """
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except PermissionError as error:
            raise CannotTellError(f"{path} cannot be read ({error.strerror}); run as root") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._descriptor)
            raise InputError(f"{path} is not a regular file")
        self._size = found.st_size

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
                part = os.pread(self._descriptor, min(length, 1 << 24), offset)
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
        os.close(self._descriptor)
