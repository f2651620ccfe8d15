"""Reading files of a machine: the live one, or a tree that ``snapshot`` saved.

Every file is read through here, bounded, and only if it is a regular file: a saved tree comes from somebody else.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.regular_file import NotRegularFileError, open_regular, read_all

SMALL = 64 << 10
"""More than any sysfs attribute has."""
LARGE = 64 << 20
"""More than /proc/iomem or /proc/kallsyms have."""


class Sysroot:
    """A machine's file tree."""

    def __init__(self, directory: str | None = None) -> None:
        """Take the directory of a saved tree, or None for the live machine.

        :raise InputError: the directory is none, or has neither /proc nor /sys below it
        """
        self.directory = None if directory is None else os.path.realpath(directory)
        if directory is not None and self.directory is not None:
            if not os.path.isdir(self.directory):
                raise InputError(f"{directory} is not a directory")
            if not any(os.path.isdir(os.path.join(self.directory, name)) for name in ("proc", "sys")):
                raise InputError(f"{directory} is not a saved tree: it has neither proc/ nor sys/")

    @property
    def is_live(self) -> bool:
        """Whether this is the running machine itself."""
        return self.directory is None

    def locate(self, path: str) -> str:
        """Return where the file with the absolute *path* of the machine lies.

        :raise InputError: a link in the saved tree leads out of it
        """
        if self.directory is None:
            return path
        located = os.path.join(self.directory, path.lstrip("/"))
        real = os.path.realpath(located)
        if os.path.commonpath([real, self.directory]) != self.directory:
            raise InputError(f"{located} is a link that leads out of the saved tree")
        return located

    def open(self, path: str) -> BinaryIO | None:
        """Open a regular file for reading, unbuffered; None where it does not exist.

        :raise CannotTellError: it may not be read, or is hidden
        :raise InputError: it is not a regular file
        """
        located = self.locate(path)
        try:
            return open_regular(located)
        except NotRegularFileError as error:
            if self.is_live:  # container runtimes mount /dev/null over /proc/kcore and its kind
                hidden = f"{located} is hidden: a container or a service's sandbox has put a device there"
                raise CannotTellError(hidden) from error
            raise

    def read(self, path: str, limit: int = SMALL) -> bytes | None:
        """Return a file's contents; None where it does not exist.

        :raise CannotTellError: it may not be read
        :raise InputError: it has more than *limit* bytes, or is not a regular file
        """
        opened = self.open(path)
        if opened is None:
            return None
        with opened as file:
            return read_all(file, limit, self.locate(path))

    def read_text(self, path: str, limit: int = SMALL) -> str | None:
        """Return a file's contents as text without white space at its ends; None where it does not exist.

        :raise CannotTellError: it may not be read
        :raise InputError: it has more than *limit* bytes, or is not ASCII text
        """
        data = self.read(path, limit)
        if data is None:
            return None
        try:
            return data.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.locate(path)} is not text: byte {error.start} is {data[error.start]:#x}"
            ) from error

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; none where it does not exist or may not be read."""
        try:
            return sorted(os.listdir(self.locate(path)))
        except OSError:
            return []
