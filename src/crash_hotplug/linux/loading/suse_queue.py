# SPDX-License-Identifier: MIT
"""openSUSE's load-once.sh: its lock, its queue, and a reload with it.

The script appends a job to the queue and tries the lock.  Where the lock is free, it runs load.sh until the queue is
empty; where it is taken, it ends at once and leaves its job to the process that has the lock.  So this project never
holds the lock: a job that comes meanwhile would be lost.  load.sh itself, which kdump.service runs, takes no lock.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.loading.lock_holder import is_locked, lock_holder, no_holder_is_root
from crash_hotplug.linux.sysroot import Sysroot

LOAD_ONCE = "/usr/lib/kdump/load-once.sh"
LOCK = "/run/kdump.lock"
"""The script's /var/run/kdump.lock."""
JOBS = "/run/kdump.jobs"
"""The queue: a line for each reload that no load.sh has begun."""
_TAKEN = 1
"""Exit code of ``flock -n`` where the lock is taken; a load.sh that fails may end with it, too."""
_BUSY = "Device or resource busy"
"""Printed by kexec where the kernel is loading an image: load.sh of kdump.service takes no lock, and an update that
began before the script took the lock may be at its kexec_load.  load.sh does not try again."""
_SECONDS = 300.0
_PAUSE = 0.2


def queue_holder(sysroot: Sysroot = Sysroot()) -> str | None:
    """Return a name for people of the process of root that has the lock; None where none has it.

    The lock is not tried, which would take it for a moment.

    :param sysroot: has the /proc that names the holder of a lock
    """
    try:
        descriptor = os.open(LOCK, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # no reload since boot
        return None
    try:
        if is_locked(descriptor, sysroot) and not no_holder_is_root(descriptor, sysroot):
            return lock_holder(descriptor, sysroot)
        return None
    finally:
        os.close(descriptor)


def reload_by_load_once(
    run: Callable[[list[str]], subprocess.CompletedProcess[str]], tool: str, seconds: float = _SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run load-once.sh, and wait until no process has the lock and no job is left.

    :param run: runs a program to its end
    :param tool: the path of the script
    :param seconds: how long a process that has the lock is waited for
    :return: the run that loaded an image, or failed to; the last one, where another process did the job
    :raise CrashHotplugError: another process has the lock all the time
    """
    deadline = time.monotonic() + seconds
    is_certain = False
    while True:
        done = run([tool])
        was_taken = done.returncode == _TAKEN and (queue_holder() is not None or _has_jobs())
        _wait_until_free(tool, deadline)
        if was_taken:
            if not _has_jobs():
                return subprocess.CompletedProcess(done.args, 0, done.stdout, done.stderr)
        elif _BUSY in done.stderr and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        elif done.returncode != _TAKEN or is_certain:
            return done
        else:  # the lock was taken and is free again, or load.sh itself failed, as it does again then
            is_certain = True


def _wait_until_free(tool: str, deadline: float) -> None:
    while (holder := queue_holder()) is not None:
        if time.monotonic() >= deadline:
            raise CrashHotplugError(f"{tool} waits for the lock {LOCK}, which {holder} has")
        time.sleep(_PAUSE)


def _has_jobs() -> bool:
    """Whether a reload is queued that the process that had the lock did not begin."""
    try:
        return os.path.getsize(JOBS) > 0
    except OSError:
        return False
