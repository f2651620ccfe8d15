# SPDX-License-Identifier: MIT
"""The processes that hold a flock(2) lock, out of /proc/locks and /proc/PID/fdinfo."""

from __future__ import annotations

import os
import re

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.sysroot import LARGE, SMALL, Sysroot

LOCKS = "/proc/locks"
_LOCK = re.compile(rb"^(?:lock:\s*)?\d+: FLOCK +\w+ +\w+ +(-?\d+) +([0-9a-f]+:[0-9a-f]+:\d+) ", re.MULTILINE)
"""A granted lock: the process that took it, and device and inode of its file (``lock_get_status`` in fs/locks.c)."""
_USERS = re.compile(rb"^Uid:((?:\s+\d+)+)$", re.MULTILINE)


def lock_holder(descriptor: int, sysroot: Sysroot) -> str:
    """Return a name for people of the process that took the lock on an open file."""
    for pid, file in _LOCK.findall(_read(sysroot, LOCKS, LARGE)):
        if file == _file_of(descriptor) and int(pid) > 0:
            name = _read(sysroot, f"/proc/{int(pid)}/comm").decode("ascii", "replace").strip()
            # Each process chooses its own name: nothing of it may act on a terminal.
            return f"process {int(pid)}" + (f" ({name})" if re.fullmatch(r"[\w ./:@+-]+", name, re.ASCII) else "")
    return "another process"


def is_locked(descriptor: int, sysroot: Sysroot) -> bool:
    """Whether a process holds a lock on an open file; the file may be open by O_PATH only."""
    return any(file == _file_of(descriptor) for _pid, file in _LOCK.findall(_read(sysroot, LOCKS, LARGE)))


def no_holder_is_root(descriptor: int, sysroot: Sysroot) -> bool:
    """Whether processes of other users than root hold the lock on an open file, and no process of root does.

    Only an open file that holds the lock counts: the process that /proc/locks names may have ended, as flock(1) does
    in a shell script, and another process may have its number.  A process whose files may not be read holds nothing.
    """
    file = _file_of(descriptor)
    takers = [str(int(pid)) for pid, found in _LOCK.findall(_read(sysroot, LOCKS, LARGE)) if found == file]
    if not takers:
        return False
    has_holder = False
    # The takers first: this is asked at each attempt, and a machine may have thousands of processes with open files.
    for pid in dict.fromkeys([*takers, *filter(str.isdigit, sysroot.names("/proc"))]):
        if _holds(sysroot, pid, file):
            if _is_of_root(sysroot, pid):
                return False
            has_holder = True
    return has_holder


def _file_of(descriptor: int) -> bytes:
    status = os.fstat(descriptor)
    return f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}".encode()


def _holds(sysroot: Sysroot, pid: str, file: bytes) -> bool:
    directory = f"/proc/{pid}/fdinfo"
    texts = (_read(sysroot, f"{directory}/{name}") for name in sysroot.names(directory))
    return any(found == file for text in texts for _pid, found in _LOCK.findall(text))


def _is_of_root(sysroot: Sysroot, pid: str) -> bool:
    users = _USERS.search(_read(sysroot, f"/proc/{pid}/status"))
    return users is None or b"0" in users[1].split()


def _read(sysroot: Sysroot, path: str, limit: int = SMALL) -> bytes:
    try:
        return sysroot.read(path, limit) or b""
    except CrashHotplugError:  # hidden, forbidden, or of a process that has ended
        return b""
