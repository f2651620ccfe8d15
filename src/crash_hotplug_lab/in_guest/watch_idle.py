# SPDX-License-Identifier: MIT
"""In the guest: measures the cost of the watch service: start, one observation, and an idle time.

Prints one line for each measurement; exit code 1 where one is over its limit.  Times are for comparison only.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.service.reconciler import Reconciler
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug_lab.in_guest.watched import Watched

_SETTLED = 70
"""Seconds until observations are a heartbeat apart; the first intervals are 1, 2, 4, 8, 16 and 32 s."""
_LIMIT_KIB = 22 << 10


def cost(action: Callable[[], object], number: int) -> str:
    """Return the median wall and CPU time of an action, in words."""
    walls, cpus = [], []
    for _ in range(number):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return f"median {1e3 * statistics.median(walls):.2f} ms, {1e3 * statistics.median(cpus):.2f} ms of CPU"


def looks() -> None:
    """Measure an observation of an unchanged machine, and a complete one."""
    sysroot = Sysroot()
    reconciler = Reconciler(LiveMachine(sysroot), sysroot)
    reconciler.look(is_quiet=True)
    print(f"a look that finds nothing changed: {cost(lambda: reconciler.look(is_quiet=True), 200)}")

    def full() -> None:
        reconciler.forget()
        reconciler.look(is_quiet=True)

    print(f"a look that reads everything: {cost(full, 50)}")


def main(seconds: int) -> None:
    """Measure starts, an idle time in seconds, and observations."""
    first = Watched()
    print(f"start to first verdict, image taken over: {first.wait_accurate():.2f} s")
    print(f"clean stop: {first.kill():.2f} s")
    service = Watched()
    print(f"start to first verdict, nothing to do: {service.wait_accurate():.2f} s")
    time.sleep(_SETTLED)
    switches, looked, cpu = (
        int(service.status("voluntary_ctxt_switches")),
        service.metric("looks_total"),
        service.cpu_seconds(),
    )
    time.sleep(seconds)
    wakes = int(service.status("voluntary_ctxt_switches")) - switches
    looked = service.metric("looks_total") - looked
    print(
        f"idle for {seconds} s: {looked:.0f} looks, {wakes} voluntary context switches, "
        f"{service.cpu_seconds() - cpu:.2f} s of CPU"
    )
    resident, peak = (int(service.status(key).split()[0]) for key in ("VmRSS", "VmHWM"))
    print(f"resident {resident / 1024:.1f} MiB, most {peak / 1024:.1f} MiB, {service.descriptors()} descriptors")
    print(f"clean stop: {service.kill():.2f} s")
    looks()
    if resident > _LIMIT_KIB or looked > seconds / 60 + 1 or wakes > 4 * looked:
        sys.exit("a measurement is over its limit")


if __name__ == "__main__":
    main(int(sys.argv[1]))
