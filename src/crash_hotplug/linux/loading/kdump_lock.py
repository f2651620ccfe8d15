"""The locks that the distributions' own wrappers hold while they load or unload a crash image."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError

RED_HAT = "/run/lock/kdump"
"""kdumpctl and kdump-udev-throttler take ``/var/lock/kdump``, which is the same file."""
DEBIAN = "/var/crash/kdump_lock"
"""kdump-config takes it (``KDUMP_COREDIR``)."""


_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class LockBusyError(CrashHotplugError):
    """Another process holds a lock."""


@contextmanager
def kdump_locks() -> Iterator[None]:
    """Hold every lock whose directory exists, for as long as the block runs.

    :raise LockBusyError: another process holds a lock
    :raise CannotTellError: a lock may not be opened
    :raise CrashHotplugError: a lock cannot be opened or made (a read-only or a full disk)
    """
    with ExitStack() as held:
        for path in (RED_HAT, DEBIAN):
            if os.path.isdir(os.path.dirname(path)):
                descriptor = _open(path)
                held.callback(os.close, descriptor)
                if _is_trusted(descriptor):
                    _take(descriptor, path)
        yield


def _open(path: str) -> int:
    try:
        try:
            return os.open(path, _FLAGS)
        except FileNotFoundError:
            return os.open(path, _FLAGS | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise CannotTellError(f"the lock {path} cannot be opened ({error.strerror}); run as root") from error
        raise CrashHotplugError(f"the lock {path} cannot be opened: {error.strerror}") from error


def _is_trusted(descriptor: int) -> bool:
    # Every user may create files in Debian's /run/lock and Ubuntu's /var/crash, and hold locks on them for ever.  The
    # wrappers run as root, so a file of another user is not their lock.
    return os.fstat(descriptor).st_uid in (0, os.geteuid())


def _take(descriptor: int, path: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockBusyError(f"{path} is locked: another process is loading a crash image") from None
