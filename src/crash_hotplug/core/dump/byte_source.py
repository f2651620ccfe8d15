# SPDX-License-Identifier: MIT
"""The bytes of a dump, wherever they come from."""

from __future__ import annotations

from crash_hotplug.core.records import Protocol

WHAT = "this vmcore"
"""The dump in sentences."""


class ByteSource(Protocol):
    """The bytes of a dump.

    They may come from a pipe.  Readers therefore go from the beginning to the end, and ask for the size last; what they
    read again lies in the first MiB.
    """

    @property
    def size(self) -> int:
        """Bytes in the file."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Return *length* bytes at file *offset*, fewer at the end of the file.

        :raise CannotTellError: they cannot be read, or have passed in a pipe
        """
