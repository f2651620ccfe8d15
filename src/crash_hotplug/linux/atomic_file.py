# SPDX-License-Identifier: MIT
"""The one writer of files.

It writes a file whole or not at all: a reader sees the old content or the new content, never a part of it.  It
follows no planted link, and replaces nothing but regular files.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping

from crash_hotplug.core.errors import InputError


def write_atomically(
    path: str,
    data: bytes,
    mode: int = 0o600,
    *,
    owner: tuple[int, int] | None = None,
    parent: int | None = None,
    durable: bool = False,
) -> None:
    """Write a temporary file beside *path* and rename it to *path*.

    Only a regular file is replaced; a symbolic link is neither followed nor replaced.  The new file has the extended
    attributes of the file that it replaces, among them the SELinux label.  Two writers at once do not disturb each
    other: the last rename wins.

    :param mode: permission bits of the new file, whatever the umask
    :param owner: user ID and group ID of the new file; those of the process if None
    :param parent: descriptor of the directory that holds the file; the directory part of *path* is then not looked up
    :param durable: whether the file has to survive a crash of the machine right after the call
    :raise InputError: the file cannot be written; *path* is unchanged
    """
    directory, name = os.path.split(path)
    try:
        with _open_directory(directory) if parent is None else contextlib.nullcontext(parent) as at:
            _check_replaceable(path, name, at)
            _replace(name, at, data, mode, owner, durable)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def check_replaceable(path: str) -> None:
    """Check that :func:`write_atomically` would not refuse *path* for what is there now.

    :raise InputError: it exists and is not a regular file, or cannot be looked at
    """
    try:
        _check_replaceable(path, path, None)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def write_private_tree(directory: str, files: Mapping[str, bytes]) -> None:
    """Write files with mode 0600, and the directories that they need with mode 0700, into a directory.

    The directory is new or empty, and may belong to another user.  All below it is opened by name from the directory
    above, and no directory is used that this process's user does not own.

    :param files: content by path below the directory
    :raise InputError: the directory is a link or is not empty, or something cannot be written there
    """
    name = directory.rstrip("/") or "/"
    if os.path.islink(name):
        raise InputError(f"{name} is a link: name the directory itself")
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        with _open_directory(name, os.O_NOFOLLOW) as top:
            if os.listdir(top):
                raise InputError(f"{directory} is not empty: these files need a directory of their own")
            for path, data in files.items():
                *parents, _name = path.strip("/").split("/")
                with _make_private_directories(top, parents, directory) as parent:
                    write_atomically(os.path.join(directory, path.lstrip("/")), data, parent=parent)
    except OSError as error:
        raise InputError(f"{error.filename or directory} cannot be written: {error.strerror}") from error


def temporary_prefix(name: str) -> str:
    """Return the prefix of the names of all temporary files for the file *name*, to find those of killed writers."""
    # udev and node_exporter choose their files by the end of the name, so they do not read it.
    return f".{name}.crash-hotplug-"


@contextlib.contextmanager
def _open_directory(path: str, flags: int = 0, parent: int | None = None) -> Iterator[int]:
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _make_private_directories(top: int, names: list[str], directory: str) -> Iterator[int]:
    """Open the directory *names* below *top*, each of which is made if it does not exist."""
    with contextlib.ExitStack() as opened:
        for name in names:
            directory = os.path.join(directory, name)
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=top)
            try:
                top = opened.enter_context(_open_directory(name, os.O_NOFOLLOW, top))
            except OSError as error:
                raise InputError(f"{directory} was put there by another process: {error.strerror}") from error
            if os.fstat(top).st_uid != os.geteuid():
                raise InputError(f"{directory} was put there by another user")
        yield top


def _check_replaceable(path: str, name: str, parent: int | None) -> None:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise InputError(f"{path} exists and is not a regular file")


def _replace(name: str, parent: int, data: bytes, mode: int, owner: tuple[int, int] | None, durable: bool) -> None:
    attributes = _extended_attributes(name, parent)
    temporary = temporary_prefix(name) + os.urandom(6).hex()
    # O_EXCL: the directory may belong to another user and contain a planted link.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=parent)
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        for attribute, value in attributes.items():
            with contextlib.suppress(OSError):  # the process may lack the privilege to set this one
                os.setxattr(descriptor, attribute, value)
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        if durable:
            os.fsync(parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=parent)
        raise
    finally:
        os.close(descriptor)


def _extended_attributes(name: str, parent: int) -> dict[str, bytes]:
    path = f"/proc/self/fd/{parent}/{name}"
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {attribute: os.getxattr(path, attribute, follow_symlinks=False) for attribute in names}
    except OSError:  # there is no such file, or its file system has no extended attributes
        return {}
