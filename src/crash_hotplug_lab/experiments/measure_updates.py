# SPDX-License-Identifier: MIT
"""In the guest: checks many updates in place in a row for leaks, and finds the cause of slow ones.

A process on another CPU reads the clock all the time.  If this process was stopped during a slow kexec_load, the
emulator or its host caused the delay; else the kernel did.

Prints a line for each finding, and exits with 1 if a check fails.  Compare times only with each other: emulated times
differ from those of a real machine.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from contextlib import closing

from crash_hotplug.core.decision import Wants
from crash_hotplug.core.update import update
from crash_hotplug.linux.loading.live_machine import LiveMachine, run_patiently
from crash_hotplug_lab.bench.bench_updates import rewrite_header

_SLOW = 5
"""Multiple of the median time from which an update counts as slow."""
_GAP = 0.010
"""Seconds between two readings of the clock from which the process counts as stopped."""
_GAPS = "/tmp/gaps"


def slab_kib() -> int:
    """Return the kernel's unreclaimable slab memory, in KiB."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("SUnreclaim:"))


def steal_ticks() -> int:
    """Return the steal time of /proc/stat, in ticks."""
    with open("/proc/stat") as file:
        return int(file.readline().split()[8])


def stalled_microseconds() -> dict[str, int]:
    """Return the stall time of each resource so far (/proc/pressure)."""
    found = {}
    for name in ("cpu", "memory", "io"):
        try:
            with open(f"/proc/pressure/{name}") as file:
                found[name] = int(file.readline().rsplit("=", 1)[1])
        except OSError:
            continue
    return found


def milliseconds(seconds: list[float]) -> str:
    """Return least, median and most."""
    return (
        f"min {min(seconds) * 1e3:.1f}, median {statistics.median(seconds) * 1e3:.1f}, max {max(seconds) * 1e3:.1f} ms"
    )


def watch_the_clock(cpu: int) -> int:
    """Start a process that records the times at which it was stopped; return its id."""
    child = os.fork()
    if child:
        return child
    os.sched_setaffinity(0, {cpu})
    clock, last = time.perf_counter, time.perf_counter()
    with open(_GAPS, "w", buffering=1) as file:
        while True:
            now = clock()
            if now - last > _GAP:
                file.write(f"{last} {now}\n")
            last = now


def gaps() -> list[tuple[float, float]]:
    """Return the times at which the watching process was stopped: (from, until) by perf_counter."""
    with open(_GAPS) as file:
        return [(float(line.split()[0]), float(line.split()[1])) for line in file if line.endswith("\n")]


def explain(updates: list[tuple[float, float, float]], stood_still: list[tuple[float, float]]) -> list[str]:
    """Return a line for each slow update, with the time for which the watching process was stopped during it.

    :param updates: start and end of each update, and the seconds of its kexec_load
    """
    median = statistics.median(seconds for _, _, seconds in updates)
    lines = []
    for began, ended, seconds in updates:
        if seconds > _SLOW * median:
            overlap = sum(max(0.0, min(ended, until) - max(began, since)) for since, until in stood_still)
            lines.append(
                f"slow: kexec_load {seconds * 1e3:.1f} ms in an update of {(ended - began) * 1e3:.1f} ms, "
                f"in which the clock's watcher stood still for {overlap * 1e3:.1f} ms"
            )
    return lines


def main(number: int, is_counted: bool) -> None:
    """Measure, print, and verify the whole image at the end.

    :param is_counted: whether the clock counts instructions; the watching process would then add its own instructions
    """
    machine = LiveMachine()
    print(f"take-over: {run_patiently(update(machine)).outcome.value}")
    os.sched_setaffinity(0, {0})
    watcher = None if is_counted else watch_the_clock(1)
    rewrite_header(machine)
    slab, resident, control_pages = slab_kib(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, set()
    steal, stalled = steal_ticks(), stalled_microseconds()
    updates, cpu = [], []
    for _ in range(number):
        began, began_cpu = time.perf_counter(), time.process_time()
        rewrite_header(machine)
        ended = time.perf_counter()
        cpu.append(time.process_time() - began_cpu)
        updates.append((began, ended, machine.kexec_seconds))
        with closing(machine.observe()) as observation:
            kimage = observation.image().kimage if observation.identity() else None
        if kimage is not None:
            control_pages.add(kimage.control_page_phys)
    if watcher is not None:
        os.kill(watcher, 9)
        os.waitpid(watcher, 0)
    print(f"{number} updates in place, the kexec_load: {milliseconds([seconds for _, _, seconds in updates])}")
    whole = milliseconds([ended - began for began, ended, _ in updates])
    print(f"{number} updates in place, all of it: {whole}; CPU time: {milliseconds(cpu)}")
    stood_still = gaps() if watcher is not None else []
    print(f"the clock's watcher stood still {len(stood_still)} times for more than {_GAP * 1e3:.0f} ms, "
          f"longest {max((until - since for since, until in stood_still), default=0.0) * 1e3:.1f} ms")  # fmt: skip
    print("\n".join(explain(updates, stood_still)) or f"no kexec_load took {_SLOW} times the median")
    waited = {name: f"{(now - stalled[name]) / 1e3:.0f} ms" for name, now in stalled_microseconds().items()}
    print(f"steal: {steal_ticks() - steal} ticks; stalled: {waited}")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    print(f"grown by: {slab_kib() - slab} KiB of slab, {grown} KiB of this process; {len(control_pages)} control_page")
    report = run_patiently(update(LiveMachine(), Wants(verify_full=True)))
    print(f"the whole image verified: {report.outcome.value}, {report.sentence}")
    if report.outcome.value != "unchanged" or len(control_pages) != 1:
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), "counted" in sys.argv[2:])
