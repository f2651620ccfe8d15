# SPDX-License-Identifier: MIT
"""One process at a time fetches into the lab's cache: ``make test`` runs several side by side."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager

from crash_hotplug_lab.qemu.debian import cache_dir


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other test process fetches; a process that dies gives the lock back."""
    with open(cache_dir() / "fetching.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
