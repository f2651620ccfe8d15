"""The locks that the distributions' own wrappers hold while they load or unload a crash image."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from crash_hotplug.core.errors import CrashHotplugError

RED_HAT = "/run/lock/kdump"
"""kdumpctl and kdump-udev-throttler take ``/var/lock/kdump``, which is this."""
DEBIAN = "/var/crash/kdump_lock"
"""kdump-config takes it (``KDUMP_COREDIR``)."""


class LockBusyError(CrashHotplugError):
    """Somebody holds a lock for longer than we wait."""


@contextmanager
def kdump_locks(seconds: float) -> Iterator[None]:
    """Hold every lock whose directory is there, for as long as the block runs.

    :param seconds: how long to wait for one that is taken
    :raise LockBusyError: one stays taken
    :raise CrashHotplugError: one cannot be opened or made (a read-only or a full disk)
    """
    with ExitStack() as held:
        for path in (RED_HAT, DEBIAN):
            if os.path.isdir(os.path.dirname(path)):
                descriptor = _open(path)
                held.callback(os.close, descriptor)
                _take(descriptor, path, seconds)
        yield


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CrashHotplugError(f"the lock {path} cannot be opened: {error.strerror}") from error


def _take(descriptor: int, path: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockBusyError(f"{path} is locked: somebody else is loading a crash image") from None
            time.sleep(0.05)
