# SPDX-License-Identifier: MIT
"""An estimate of the time of a kexec_load on this machine, before the call.  No image is loaded during the call.

The call copies the listed pages, clears control pages, and lifts and restores the write protection of the reserved
region.  The estimate does the same to a small amount of the process's own memory, and multiplies the time.  It lacks
the kernel's fixed costs (locks, flushing other CPUs' translations).
"""

from __future__ import annotations

import ctypes
import mmap
import time
from typing import Callable, NamedTuple

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.plan import UpdatePlan
from crash_hotplug.core.ranges import RangeList

_SAMPLE = 512
"""Pages in the sample."""
_TIMES = 5


class CallTime(NamedTuple):
    """An estimated time of one kexec_load."""

    seconds: float
    basis: str
    """The figures from which it was computed, for people."""


def estimate_call(plan: UpdatePlan, crashkernel: RangeList) -> CallTime:
    """Estimate how long the one kexec_load of *plan* takes.

    :param crashkernel: the reserved physical ranges, which the kernel unprotects before the call and protects after it
    """
    copied = (sum(segment.memsz for segment in plan.segments) + plan.control_pages.size) // PAGE
    protected = crashkernel.size // PAGE
    copy, protect = _seconds_per_page()
    seconds = copied * copy + 2 * protected * protect
    return CallTime(
        seconds,
        f"{copied} pages written and the protection of {protected} changed twice, at the speed of this process "
        f"({copy * 1e6:.2g} and {protect * 1e6:.2g} microseconds a page)",
    )


def _seconds_per_page() -> tuple[float, float]:
    """Return the least time to write a page of fresh memory, and to change a page's protection."""
    copies, protections = [], []
    data = bytes(PAGE)
    libc = ctypes.CDLL(None)
    for _ in range(_TIMES):
        memory = mmap.mmap(-1, _SAMPLE * PAGE)
        copies.append(_timed(lambda memory=memory: _write_pages(memory, data)))  # type: ignore[misc]
        view = ctypes.c_char.from_buffer(memory)
        address = ctypes.c_void_p(ctypes.addressof(view))
        length = ctypes.c_size_t(_SAMPLE * PAGE)
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            change = (address, length, ctypes.c_int(protection))
            protections.append(_timed(lambda change=change: libc.mprotect(*change)))  # type: ignore[misc]
        del view
        memory.close()
    return min(copies) / _SAMPLE, min(protections) / _SAMPLE


def _write_pages(memory: mmap.mmap, page: bytes) -> None:
    for at in range(0, _SAMPLE * PAGE, PAGE):
        memory[at : at + PAGE] = page


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
