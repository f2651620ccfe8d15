"""Opening a file that somebody else may have put there: only a regular one, without waiting, with a sentence if not."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from crash_hotplug.core.errors import CannotTellError, InputError


class NotRegularFileError(InputError):
    """The path leads to a directory, a device, a pipe or a socket."""


def open_regular(path: str, name: str | None = None) -> BinaryIO | None:
    """Open a regular file for reading, unbuffered; None where it does not exist.

    :param name: what messages call it; its path if None
    :raise CannotTellError: it may not be read
    :raise NotRegularFileError: it is not a regular file
    :raise InputError: its name cannot be a file's
    """
    name = name or path
    try:
        # O_NONBLOCK: opening a pipe that somebody put there must not wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
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
    """Open a regular file that a person named; as :func:`open_regular`, but it has to exist.

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
    parts: list[bytes] = []
    left = limit + 1
    try:
        while left > 0:
            part = file.read(min(left, 1 << 20))
            if not part:
                return b"".join(parts)
            parts.append(part)
            left -= len(part)
    except OSError as error:
        raise CannotTellError(f"{name} cannot be read: {error.strerror}") from error
    raise InputError(f"{name} has more than {limit} bytes: it is not the file it should be")


def _what_is_needed() -> str:
    if os.geteuid() != 0:
        return "run as root"
    return "not even root may: see /sys/kernel/security/lockdown, or the limits of this container or service"
