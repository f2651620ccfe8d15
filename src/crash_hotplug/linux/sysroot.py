# SPDX-License-Identifier: MIT
"""Reading files of a machine: the live one, or a tree that ``snapshot`` saved (archive.py has packed ones).

A saved tree comes from another person.  Every file is therefore read by this module: only if it is a regular file,
only up to a limit, and without waiting for a writer.
"""

from __future__ import annotations

import os
import stat
from functools import lru_cache

from crash_hotplug.core.errors import CannotTellError, InputError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

SMALL = 64 << 10
"""More than any sysfs attribute has."""
LARGE = 64 << 20
"""More than /proc/iomem or /proc/kallsyms have."""
MOST_LINKS = 40
"""MAXSYMLINKS of the kernel."""
SOS_SNAPSHOT = "sos_commands/crash_hotplug/snapshot"
"""Where the plugin of packaging/sos puts the tree of ``snapshot`` in a sosreport."""
_PART = 1 << 20
_LINE = 256
"""Bytes; more than a number, an address or a state has."""
_READ_ONLY = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""O_NONBLOCK: opening a named pipe must not wait for a writer."""


class Sysroot:
    """The file tree of a machine."""

    def __init__(self, directory: str | None = None) -> None:
        """Take the directory of a saved tree, or None for the live machine.

        :raise InputError: it is not a directory, or has neither proc/ nor sys/
        """
        self.directory = None if directory is None else os.path.realpath(directory)
        if directory is not None and self.directory is not None:
            if not os.path.isdir(self.directory):
                raise InputError(f"{directory} is not a directory")
            if not any(os.path.isdir(os.path.join(self.directory, name)) for name in ("proc", "sys")):
                raise InputError(f"{directory} is not a saved tree: it has neither proc/ nor sys/")
        # Thousands of files lie in few directories: resolving each path as a whole took most of the time of status.
        self._real = lru_cache(maxsize=64)(self._resolve)

    @property
    def is_live(self) -> bool:
        """Whether this is the running machine itself."""
        return self.directory is None

    def locate(self, path: str) -> str:
        """Return where the file with the absolute *path* of the machine lies, for messages."""
        return path if self.directory is None else os.path.join(self.directory, path.lstrip("/"))

    def root_for_writing(self) -> str:
        """Return the directory below which files of the machine may be changed.

        :raise InputError: the tree is in an archive
        """
        return self.directory or "/"

    def read_link(self, path: str) -> str | None:
        """Return where a link leads; None for anything else.  No directory on the way to it is a link."""
        try:
            return os.readlink(f"{self.directory or ''}{path}")
        except (OSError, ValueError):  # not a link, or nothing there
            return None

    def has_name(self, path: str) -> bool:
        """Whether a directory has this name, whatever it is.  No directory on the way to it is a link."""
        return os.path.lexists(f"{self.directory or ''}{path}")

    def _inside(self, path: str) -> str:
        """Return the place of a file, after a check that it lies in the tree.

        :raise InputError: a link in the saved tree leads out of it
        """
        located = self.locate(path)
        if self.directory is not None:
            real = self._real(located)
            if real != self.directory and not real.startswith(self.directory.rstrip("/") + "/"):
                raise InputError(f"{located} is a link that leads out of the saved tree")
        return located

    def _resolve(self, located: str) -> str:
        """Return a path of the saved tree without links, as ``os.path.realpath()``."""
        parent, _, name = located.rpartition("/")
        if located == self.directory or name in ("", ".", ".."):
            return os.path.realpath(located)
        real = f"{self._real(parent)}/{name}"
        return os.path.realpath(located) if os.path.islink(real) else real

    def open(self, path: str) -> BinaryIO | None:
        """Open a regular file for reading, unbuffered; None where it does not exist.

        :raise CannotTellError: it may not be read, or is hidden
        :raise InputError: it is not a regular file
        """
        located = self._inside(path)
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

        :raise CannotTellError: it may not be read, or a file of the running kernel ends within a line
        :raise InputError: it has more than *limit* bytes, or is not ASCII text
        """
        data = self.read(path, limit)
        return None if data is None else self._decode(path, data)

    def _decode(self, path: str, data: bytes) -> str:
        if self.is_live and data and not data.endswith(b"\n"):
            # A number or a list that was cut would be taken for another one: the kernel ends each line.
            raise CannotTellError(f"{self.locate(path)} is truncated: its last line has no end")
        try:
            return data.decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.locate(path)} is not text: byte {error.start} is {data[error.start]:#x}"
            ) from error

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted; none where it does not exist or may not be read."""
        return self.directory_of_many(path).names

    def directory_of_many(self, path: str) -> DirectoryOfMany:
        """List a directory; it has no names where it does not exist or may not be read."""
        located = self._inside(path)
        try:
            with os.scandir(located) as entries:
                found = {entry.name: entry.is_symlink() for entry in entries}
        except OSError:
            found = {}
        return DirectoryOfMany(self, path, located, found)


def open_sysroot(name: str | None) -> Sysroot:
    """Return the live machine for None, otherwise the saved tree in a directory or tar archive.

    In a sosreport, the tree that the sos plugin saved is preferred to the files that sos itself collected.

    :raise CannotTellError: it may not be read
    :raise InputError: it is neither, has no saved tree, or exceeds a bound of archive.py
    """
    if name is None:
        return Sysroot()
    try:
        is_directory = stat.S_ISDIR(os.stat(name).st_mode)
    except OSError as error:
        raise InputError(f"{name} cannot be opened: {error.strerror}") from error
    if not is_directory:
        from crash_hotplug.linux.archive import ArchiveSysroot  # noqa: PLC0415 (tarfile takes 10 ms to import)

        return ArchiveSysroot(name)
    real = os.path.realpath(os.path.join(name, SOS_SNAPSHOT))
    is_sosreport = os.path.isdir(real) and real.startswith(os.path.realpath(name).rstrip("/") + "/")
    return Sysroot(real if is_sosreport else name)


class DirectoryOfMany:
    """The directory of the CPUs or of the memory blocks: thousands of subdirectories with the same small files.

    A file takes four system calls.  :meth:`Sysroot.read_text` takes nine, and checks every link of the path.
    """

    def __init__(self, sysroot: Sysroot, path: str, located: str, is_link: Mapping[str, bool]) -> None:
        """Take the directory's place in the machine and in the file system, and whether each of its names is a link."""
        self._sysroot, self._path, self._located, self._is_link = sysroot, path, located, is_link

    @property
    def names(self) -> list[str]:
        """The names in it, sorted."""
        return sorted(self._is_link)

    def __contains__(self, name: str) -> bool:
        return name in self._is_link

    def locate(self, name: str, file: str) -> str:
        """Return where a *file* of the subdirectory *name* lies, for messages."""
        return f"{self._located}/{name}/{file}"

    def read_text(self, name: str, file: str) -> str | None:
        """Return the text of a *file* of the subdirectory *name*; None and errors as :meth:`Sysroot.read_text`."""
        path = f"{self._path}/{name}/{file}"
        if self._is_link.get(name, True):
            return self._sysroot.read_text(path)
        line = _read_line(self.locate(name, file))
        return self._sysroot.read_text(path) if line is None else self._sysroot._decode(path, line)


def _read_line(path: str) -> bytes | None:
    """Return the contents of a regular file that is one short line, as sysfs writes it; None for any other file."""
    try:
        descriptor = os.open(path, _READ_ONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        data = os.read(descriptor, _LINE) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return data if len(data) < _LINE and data.endswith(b"\n") else None


class NotRegularFileError(InputError):
    """The path leads to a directory, a device, a pipe or a socket."""


def open_regular(path: str, name: str | None = None) -> BinaryIO | None:
    """Open a regular file for reading, unbuffered; None where it does not exist.

    :param name: its name in messages; its path if None
    :raise CannotTellError: it may not be read
    :raise NotRegularFileError: it is not a regular file
    :raise InputError: its name cannot be a file's
    """
    name = name or path
    try:
        descriptor = os.open(path, _READ_ONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise CannotTellError(f"{name} cannot be read ({error.strerror}); {_what_is_needed()}") from error
    except OSError as error:
        raise CannotTellError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte in the path
        raise InputError(f"{name} cannot be opened: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegularFileError(f"{name} is not a regular file")
    return os.fdopen(descriptor, "rb", buffering=0)


def open_given(path: str, name: str | None = None) -> BinaryIO:
    """Open a regular file that the user named; as :func:`open_regular`, but it has to exist.

    :raise CannotTellError: it may not be read
    :raise InputError: it does not exist, or is not a regular file
    """
    opened = open_regular(path, name)
    if opened is None:
        raise InputError(f"{name or path} cannot be opened: there is no such file")
    return opened


def read_all(file: BinaryIO, limit: int, name: str) -> bytes:
    """Read an unbuffered file to its end.

    :raise CannotTellError: reading fails
    :raise InputError: there are more than *limit* bytes
    """
    return b"".join(read_parts(file, limit, name))


def read_parts(file: BinaryIO, limit: int, name: str) -> Iterator[bytes]:
    """Read an unbuffered file to its end in parts of 1 MiB; errors as :func:`read_all`."""
    left = limit + 1
    while left > 0:
        size = min(left, _PART)
        part = _read_exactly(file, size, name)
        yield part
        if len(part) < size:
            return
        left -= size
    raise InputError(f"{name} has more than {limit} bytes: it cannot be the expected file")


def _read_exactly(file: BinaryIO, size: int, name: str) -> bytes:
    """Read *size* bytes, fewer at the end only; a file below /proc gives a page at a time."""
    pieces = []
    try:
        while size > 0:
            piece = file.read(min(size, SMALL))  # a MiB would be mapped and unmapped again for each page
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
    except OSError as error:
        raise CannotTellError(f"{name} cannot be read: {error.strerror}") from error
    return b"".join(pieces)


def _what_is_needed() -> str:
    if os.geteuid() != 0:
        return "run as root"
    return "root may not read it either: see /sys/kernel/security/lockdown, or the limits of this container or service"
