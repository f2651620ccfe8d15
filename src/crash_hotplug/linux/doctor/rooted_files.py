# SPDX-License-Identifier: MIT
"""Files below a root directory: the live machine's root, a saved tree, or the mounted root of another machine.

Reading follows symbolic links as the machine itself would, without leaving the root: an absolute link such as
/etc/os-release leads to the tree's own file.  Writing follows no link at all: every directory on the way is opened by
name from the one above (openat(2) with O_NOFOLLOW), because a link in a tree of unknown origin may lead out of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.linux.atomic_file import temporary_prefix, write_atomically
from crash_hotplug.linux.sysroot import MOST_LINKS, Sysroot

NULL = "/dev/null"
"""A link to it disables a unit or a rules file."""
_LIMIT = 1 << 20
"""Bytes; no configuration file is larger."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def resolve(sysroot: Sysroot, path: str) -> str:
    """Return the machine's absolute path to which *path* leads through all its links.

    :raise InputError: the links form a circle
    """
    left = path.split("/")
    resolved = ""
    links = 0
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            resolved = os.path.dirname(resolved).rstrip("/")
            continue
        target = sysroot.read_link(f"{resolved}/{part}")
        if target is None:
            resolved = f"{resolved}/{part}"
            continue
        links += 1
        if links > MOST_LINKS:
            raise InputError(f"{path} leads through more than {MOST_LINKS} symbolic links")
        resolved = "" if target.startswith("/") else resolved
        left = target.split("/") + left
    return resolved or "/"


def read_config(sysroot: Sysroot, path: str) -> str | None:
    """Return a configuration file's text; "" where it is a link to /dev/null, None where it does not exist.

    Bytes that are not UTF-8 become surrogate escapes; :func:`to_bytes` restores them.

    :raise CannotTellError: the file may not be read
    :raise InputError: it is not a regular file, is too large, or its links form a circle
    """
    resolved = resolve(sysroot, path)
    if resolved == NULL:
        return ""
    data = sysroot.read(resolved, _LIMIT)
    return None if data is None else to_text(data)


def to_text(data: bytes) -> str:
    """Decode a configuration file."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """Encode a text of :func:`to_text`; the bytes are the original ones."""
    return text.encode("utf-8", "surrogateescape")


def exists(sysroot: Sysroot, path: str) -> bool:
    """Whether there is anything at *path*, even a link that leads nowhere."""
    parent, name = os.path.split(path)
    return sysroot.has_name(f"{resolve(sysroot, parent).rstrip('/')}/{name}")


@dataclass(frozen=True)
class FileState:
    """A regular file: its content, permissions and owner."""

    content: bytes
    mode: int
    """Permission bits."""
    uid: int
    gid: int


@contextlib.contextmanager
def open_directory(root: str, path: str) -> Iterator[int]:
    """Open a directory below *root* without following links; closed when the block ends.

    :raise FileNotFoundError: it does not exist
    :raise InputError: it, or a directory on the way to it, is a link or not a directory
    :raise CannotTellError: it may not be opened
    """
    descriptor = os.open(root, _DIRECTORY)
    try:
        walked = ""
        for part in filter(None, path.split("/")):
            walked += f"/{part}"
            if part in (".", ".."):
                raise InputError(f"{path} is not a plain path")
            try:
                below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise InputError(f"{walked} is a link or not a directory: nothing is written there") from error
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise CannotTellError(f"{walked} cannot be opened: {error.strerror}; run as root") from error
                raise
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def missing_directories(root: str, path: str) -> list[str]:
    """Return *path* and the directories on the way to it that do not exist, the topmost first."""
    missing = []
    while path not in ("", "/"):
        try:
            with open_directory(root, path):
                break
        except FileNotFoundError:
            missing.append(path)
            path = os.path.dirname(path)
    return missing[::-1]


def make_directories(root: str, path: str) -> None:
    """Make the directories that :func:`missing_directories` returns, with mode 0755, on the disk on return.

    :raise CrashHotplugError: one cannot be made
    """
    for directory in missing_directories(root, path):
        parent, name = os.path.split(directory)
        try:
            with open_directory(root, parent) as descriptor:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=descriptor)
                    os.chmod(name, 0o755, dir_fd=descriptor)
                os.fsync(descriptor)
        except OSError as error:
            raise CrashHotplugError(f"the directory {directory} cannot be made: {error.strerror}") from error


def remove_directory(root: str, path: str) -> None:
    """Remove a directory if it exists and is empty."""
    parent, name = os.path.split(path)
    with contextlib.suppress(OSError, InputError), open_directory(root, parent) as descriptor:
        os.rmdir(name, dir_fd=descriptor)
        os.fsync(descriptor)


def read_state(root: str, path: str) -> FileState | None:
    """Return a file's state without following links; None where it does not exist.

    :raise CannotTellError: the file may not be read
    :raise InputError: it is not a regular file, or is too large
    """
    directory, name = os.path.split(path)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a FIFO must not wait for a writer
    try:
        with open_directory(root, directory) as parent:
            descriptor = os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise CannotTellError(f"{path} cannot be read: {error.strerror}; run as root") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(
                f"{path} is a link and stays unchanged: edit the file to which it leads by hand"
            ) from error
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file and stays unchanged")
        content = file.read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise InputError(f"{path} has more than {_LIMIT} bytes: it cannot be the expected file")
    return FileState(content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def replace_file(root: str, path: str, state: FileState) -> None:
    """Write a file whole or leave it unchanged; on the disk on return.

    :raise InputError: the file cannot be written
    """
    directory, name = os.path.split(path)
    owner = (state.uid, state.gid)
    try:
        with open_directory(root, directory) as parent:
            _remove_temporaries(parent, name)
            write_atomically(path, state.content, state.mode, owner=owner, parent=parent, durable=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def remove_file(root: str, path: str, temporary_only: bool = False) -> None:
    """Remove a file, if it exists, and the temporary files of a killed :func:`replace_file` beside it.

    :param temporary_only: keep the file itself
    :raise InputError: it cannot be removed
    """
    directory, name = os.path.split(path)
    try:
        with open_directory(root, directory) as parent:
            if not temporary_only:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=parent)
            _remove_temporaries(parent, name)
            os.fsync(parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}") from error


def _remove_temporaries(parent: int, name: str) -> None:
    for entry in os.listdir(parent):
        if entry.startswith(temporary_prefix(name)):
            os.unlink(entry, dir_fd=parent)
