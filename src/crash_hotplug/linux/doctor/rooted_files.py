"""Files that are written below a root directory: whole or not at all, and no link is ever followed.

The root may be somebody else's tree: a link in it must not lead a write out of it.  So every directory on the way is
opened by name from the one above (openat(2) with O_NOFOLLOW), and the file is renamed into its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError

_LIMIT = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class FileState:
    """A regular file: what it holds and whose it is."""

    content: bytes
    mode: int
    """Permission bits."""
    uid: int
    gid: int


@contextmanager
def open_directory(root: str, path: str) -> Iterator[int]:
    """Open a directory below *root* for as long as the block runs.

    :raise FileNotFoundError: it does not exist
    :raise InputError: it, or one on the way to it, is a link or no directory
    :raise CannotTellError: it may not be opened
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walked = ""
        for part in path.strip("/").split("/"):
            walked += f"/{part}"
            if part in ("", ".", ".."):
                raise InputError(f"{path} is no plain path")
            try:
                below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise InputError(f"{walked} is a link or no directory: nothing is written through it") from error
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise CannotTellError(f"{walked} cannot be opened: {error.strerror}; run as root") from error
                raise
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def missing_directories(root: str, path: str) -> list[str]:
    """Return the directories on the way to *path* (and itself) that do not exist, the topmost first."""
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
    """Make a directory and those on the way to it, each mode 0755; what is there already stays as it is.

    :raise CrashHotplugError: one cannot be made
    """
    for directory in missing_directories(root, path):
        parent, name = os.path.split(directory)
        try:
            with _parent(root, parent) as descriptor:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=descriptor)
                    os.chmod(name, 0o755, dir_fd=descriptor)
                os.fsync(descriptor)
        except OSError as error:
            raise CrashHotplugError(f"the directory {directory} cannot be made: {error.strerror}") from error


@contextmanager
def _parent(root: str, path: str) -> Iterator[int]:
    if path.strip("/"):
        with open_directory(root, path) as descriptor:
            yield descriptor
        return
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def remove_directory(root: str, path: str) -> None:
    """Remove a directory where it is there and empty."""
    parent, name = os.path.split(path)
    with contextlib.suppress(OSError, InputError), _parent(root, parent) as descriptor:
        os.rmdir(name, dir_fd=descriptor)
        os.fsync(descriptor)


def read_state(root: str, path: str) -> FileState | None:
    """Return a file as it is; None where it does not exist.

    :raise CannotTellError: it may not be read
    :raise InputError: it is a link or another thing that is no regular file, or too large
    """
    directory, name = os.path.split(path)
    try:
        with open_directory(root, directory) as parent:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise CannotTellError(f"{path} cannot be read: {error.strerror}; run as root") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a link: it is left alone, change what it leads to by hand") from error
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file: it is left alone")
        content = file.read(_LIMIT + 1)
    if len(content) > _LIMIT:
        raise InputError(f"{path} has more than {_LIMIT} bytes: it is not the file it should be")
    return FileState(content, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


def temporary_name(name: str) -> str:
    """Return the name under which a file is written before it takes its place."""
    return f".{name}.crash-hotplug-new"


def replace_file(root: str, path: str, state: FileState) -> None:
    """Write a file whole, or leave it as it was; on the disk when this returns.

    :raise CrashHotplugError: it cannot be written
    """
    directory, name = os.path.split(path)
    temporary = temporary_name(name)
    try:
        with open_directory(root, directory) as parent:
            _unlink(temporary, parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
            try:
                _fill(descriptor, state, _labels(parent, name))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)
    except OSError as error:
        raise CrashHotplugError(f"{path} cannot be written: {error.strerror}") from error


def remove_file(root: str, path: str) -> None:
    """Remove a file, and what a killed :func:`replace_file` left beside it.

    :raise CrashHotplugError: it cannot be removed
    """
    directory, name = os.path.split(path)
    try:
        with open_directory(root, directory) as parent:
            _unlink(name, parent)
            _unlink(temporary_name(name), parent)
            os.fsync(parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CrashHotplugError(f"{path} cannot be removed: {error.strerror}") from error


def clear_temporary(root: str, path: str) -> None:
    """Remove what a killed :func:`replace_file` left beside *path*."""
    directory, name = os.path.split(path)
    remove_file(root, os.path.join(directory, temporary_name(name)))


def _unlink(name: str, parent: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=parent)


def _fill(descriptor: int, state: FileState, labels: dict[str, bytes]) -> None:
    written = 0
    while written < len(state.content):
        written += os.write(descriptor, state.content[written:])
    for name, value in labels.items():
        with contextlib.suppress(OSError):  # a file system without them; SELinux relabels by its own policy
            os.setxattr(descriptor, name, value)
    status = os.fstat(descriptor)
    if (status.st_uid, status.st_gid) != (state.uid, state.gid):
        os.fchown(descriptor, state.uid, state.gid)
    os.fchmod(descriptor, state.mode)


def _labels(parent: int, name: str) -> dict[str, bytes]:
    """Return the extended attributes of the file that is replaced: its SELinux label is one of them."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return {}
    try:
        return {attribute: os.getxattr(descriptor, attribute) for attribute in os.listxattr(descriptor)}
    except OSError:
        return {}
    finally:
        os.close(descriptor)
