# SPDX-License-Identifier: MIT
"""The locks that the distributions' own wrappers hold while they load or unload a crash image.

Every user may create files in Debian's /run/lock and Ubuntu's /var/crash.  The wrappers run as root and lock a regular
file, so anything else at the path is not their lock, and is neither opened nor waited for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.linux.loading import suse_queue
from crash_hotplug.linux.loading.lock_holder import lock_holder, no_holder_is_root
from crash_hotplug.linux.sysroot import Sysroot

RED_HAT = "/run/lock/kdump"
"""kdumpctl and kdump-udev-throttler take ``/var/lock/kdump``, which is the same file."""
DEBIAN = "/var/crash/kdump_lock"
"""kdump-config takes it (``KDUMP_COREDIR``)."""


_FLAGS = os.O_RDWR | os.O_CLOEXEC
_NEW = _FLAGS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class LockBusyError(CrashHotplugError):
    """Another process holds a lock."""


@contextmanager
def kdump_locks(sysroot: Sysroot = Sysroot()) -> Iterator[None]:
    """Hold every lock whose directory exists, for as long as the block runs; nothing here waits.

    That of openSUSE's load-once.sh has to be free and is not held (suse_queue.py tells why).

    :param sysroot: has the /proc that names the holder of a lock
    :raise LockBusyError: another process holds a lock
    :raise CannotTellError: a lock may not be opened
    :raise CrashHotplugError: a lock cannot be opened, made (a read-only or a full disk) or taken
    """
    holder = suse_queue.queue_holder(sysroot)
    if holder is not None:
        raise LockBusyError(_busy(suse_queue.LOCK, holder))
    with ExitStack() as held:
        for path in (RED_HAT, DEBIAN):
            if os.path.isdir(os.path.dirname(path)):
                descriptor = _open(path)
                if descriptor is not None:
                    held.callback(os.close, descriptor)
                    _take(descriptor, path, sysroot)
        yield


def _open(path: str) -> int | None:
    """Open the lock, or make it; None where another user has put something at its path."""
    try:
        try:
            # O_PATH opens nothing that could wait or act: no named pipe, no device, no file with a lease on it.
            found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return _open_to_lock(path, _NEW)
        try:
            return _open_to_lock(f"/proc/self/fd/{found}", _FLAGS, path) if _is_trusted(found) else None
        finally:
            os.close(found)
    except FileExistsError:
        raise LockBusyError(f"the lock {path} was created by another process at the same moment") from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise CannotTellError(f"the lock {path} cannot be opened ({error.strerror}); run as root") from error
        raise CrashHotplugError(f"the lock {path} cannot be opened: {error.strerror}") from error


def _open_to_lock(path: str, flags: int, name: str | None = None) -> int | None:
    """Open the lock for writing, or for reading where the directory of kdump-config is read-only.

    A directory that appears after the service started is read-only for it (ProtectSystem=strict; ReadWritePaths= is
    applied at the start).  flock(2) needs no more than reading.  A lock that does not exist there is held by nobody.
    """
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS or (name or path) != DEBIAN:
            raise
    return None if flags == _NEW else os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _is_trusted(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return stat.S_ISREG(status.st_mode) and status.st_uid in (0, os.geteuid())


def _take(descriptor: int, path: str, sysroot: Sysroot) -> None:
    # The wrappers make the file readable by all, and whoever may open a file may lock it.
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not no_holder_is_root(descriptor, sysroot):
            raise LockBusyError(_busy(path, lock_holder(descriptor, sysroot))) from None
    except OSError as error:  # ENOLCK: the kernel has no memory for it
        raise CrashHotplugError(f"the lock {path} cannot be taken: {error.strerror}") from error


def _busy(path: str, holder: str) -> str:
    return f"the lock {path} is taken: {holder} is loading a crash image"
