# SPDX-License-Identifier: MIT
"""The kexec_load and kexec_file_load calls of a guest, recorded by its kernel, and what they say about its crash image.

Their entries and exits are trace events (CONFIG_FTRACE_SYSCALLS).  A call that systemd-udevd's sandbox refuses is not
among them: seccomp comes first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TRACING = "/sys/kernel/tracing"
"""Where tracefs is mounted; the events' files lie in ``events/syscalls`` below."""
_NAMES = ("kexec_load", "kexec_file_load")
SETTINGS = (
    ("trace_clock", "mono"),
    *((f"events/syscalls/sys_{side}_{name}/enable", "1") for name in _NAMES for side in ("enter", "exit")),
)
"""The files that start the record, and what is written to each; times are of the clock of uevents and the journal."""
_LINE = re.compile(
    r"^ *(?P<program>.+)-(?P<task>\d+) +\[\d+\] \S+ +(?P<at>[\d.]+): "
    r"sys_kexec_(?:file_)?load(?:\((?P<given>.*)\)| -> (?P<code>\S+))$",
    re.MULTILINE,
)
_UNLOAD = re.compile(r"nr_segments: 0,|initrd_fd: .*\bflags: [0-9a-f]*[13579bdf]$")
"""No segments, or KEXEC_FILE_UNLOAD (1) of include/uapi/linux/kexec.h among the flags."""


@dataclass(frozen=True)
class KexecCall:
    """One call that has returned."""

    program: str
    """The name of the process that made it: ``kexec``, or ``crash-hotplug`` and ``python3`` for this project."""
    start: float
    """Monotonic time in the guest, seconds."""
    end: float
    loads: bool
    """False for an unload."""
    succeeded: bool


def parse_calls(trace: str) -> list[KexecCall]:
    """Parse the trace file of tracefs.  A call that had begun before the record, or had not ended, is left out."""
    begun: dict[str, tuple[float, bool]] = {}
    calls = []
    for found in _LINE.finditer(trace):
        at = float(found["at"])
        if found["given"] is not None:
            begun[found["task"]] = at, not _UNLOAD.search(found["given"])
        elif found["task"] in begun:
            start, loads = begun.pop(found["task"])
            calls.append(KexecCall(found["program"].strip(), start, at, loads, int(found["code"], 16) == 0))
    return calls


def reloads(calls: Iterable[KexecCall]) -> tuple[int, int]:
    """Return how often kexec(8) unloaded and loaded an image."""
    done = [call.loads for call in calls if call.succeeded and call.program == "kexec"]
    return done.count(False), done.count(True)


def seconds_without_image(calls: Sequence[KexecCall]) -> float | None:
    """Return the seconds in which no image was loaded, for a guest that begins with one; None where it ends without.

    A load counts as a whole: the kernel drops the previous image before it copies the new one (``do_kexec_load`` in
    kernel/kexec.c, ``kexec_file_load`` in kernel/kexec_file.c).
    """
    lost, total = None, 0.0
    for call in sorted(calls, key=lambda call: call.start):
        start = call.start if lost is None else lost
        if call.loads and call.succeeded:
            total += call.end - start
            lost = None
        elif call.loads or call.succeeded:  # a load that failed leaves none, too
            lost = start
    return total if lost is None else None


def seconds_stale(events: Iterable[float], answers: Iterable[tuple[float, float]]) -> float | None:
    """Return the seconds in which the image lacked an event; None where it did not come to include the last one.

    :param events: the times of events after which the image is stale
    :param answers: when each load or update began, which includes all events before, and when it had ended
    """
    done = sorted(answers)
    total, until = 0.0, 0.0
    for event in sorted(events):
        end = next((end for begin, end in done if begin >= event), None)
        if end is None:
            return None
        total += max(0.0, end - max(event, until))
        until = max(until, end)
    return total
