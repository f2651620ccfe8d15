"""Writing a file whole or not at all: a reader sees the old content or the new content, never a part of it."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

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
            if not _is_replaceable(name, at):
                raise InputError(f"{path} exists and is not a regular file")
            _replace(name, at, data, mode, owner, durable)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def temporary_prefix(name: str) -> str:
    """Return the prefix of the names of all temporary files for the file *name*, to find those of killed writers."""
    # udev and node_exporter choose their files by the end of the name, so they do not read it.
    return f".{name}.crash-hotplug-"


@contextlib.contextmanager
def _open_directory(path: str) -> Iterator[int]:
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_replaceable(name: str, parent: int) -> bool:
    try:
        return stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return True


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
