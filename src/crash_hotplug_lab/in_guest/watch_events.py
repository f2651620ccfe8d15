# SPDX-License-Identifier: MIT
"""In the guest: sends 10,000 synthetic and many real uevents; the watch service must lose none and must not grow.

The machine needs a CPU 2 and a DIMM at 4 GiB.  Exits with 1 if a check fails.
"""

from __future__ import annotations

import os
import sys
import time

from crash_hotplug_lab.in_guest.watched import Watched, load, status, wait, write

_SYNTHETIC = 10_000
_CPU = "/sys/devices/system/cpu/cpu2"
_MEMORY = "/sys/devices/system/memory"


def slab_kib() -> int:
    """Return the kernel's unreclaimable slab memory, in KiB."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("SUnreclaim:"))


def all_seen(service: Watched, before: float, number: int) -> float:
    """Wait until the metrics show *number* events or an overrun; return the number that they show."""

    def seen() -> float:
        return service.metric("uevents_total") - before

    wait(lambda: seen() >= number or service.metric("uevent_overruns_total"), f"{number} events in the metrics", 30)
    time.sleep(3)
    return seen()


def synthetic(service: Watched) -> None:
    """Write to uevent files as fast as possible."""
    began = time.monotonic()
    before = service.metric("uevents_total")
    files = [os.open(f"{path}/uevent", os.O_WRONLY) for path in (_CPU, f"{_MEMORY}/memory0")]
    for number in range(_SYNTHETIC):
        os.write(files[number % 2], b"change" if number % 4 < 2 else b"add")
    for descriptor in files:
        os.close(descriptor)
    took = time.monotonic() - began
    seen, lost = all_seen(service, before, _SYNTHETIC), service.metric("uevent_overruns_total")
    print(f"{_SYNTHETIC} synthetic uevents in {took:.1f} s: {seen:.0f} seen, {lost:.0f} overruns")


def real(service: Watched, number: int) -> None:
    """Take a memory block and a CPU offline and online in turn."""
    with open(f"{_MEMORY}/block_size_bytes") as file:
        block = f"{_MEMORY}/memory{(4 << 30) // int(file.read(), 16)}"
    began, before, done, refused = time.monotonic(), service.metric("uevents_total"), 0, 0
    while done < number:
        pairs = (((f"{block}/state", "offline", "online_movable"),) if done % 4 else ()) + (
            (f"{_CPU}/online", "0", "1"),
        )
        for path, down, up in pairs:
            try:
                write(path, down)
            except OSError:  # a page could not be moved
                refused += 1
                continue
            write(path, up)
            done += 2
    took = time.monotonic() - began
    seen = all_seen(service, before, done)
    print(f"{done} real offline and online events in {took:.0f} s ({refused} refused): {seen:.0f} seen")


def main(number: int) -> None:
    """Cause the events, and compare the service before and after."""
    service = Watched()
    service.wait_accurate()
    synthetic(service)
    resident, descriptors, slab = int(service.status("VmRSS").split()[0]), service.descriptors(), slab_kib()
    real(service, number)
    updates = service.metric("updates_total")
    load()  # another loader's image: the service is awake and takes it over
    took = wait(lambda: status() == ("accurate", True), "the take-over", 90)
    # The image is loaded, and the look that loaded it goes on: it hashes the image once more.
    wait(lambda: service.metric("updates_total") > updates, "the end of that look", 90)
    time.sleep(5)
    print(f"an image of another loader was taken over after {took:.0f} s")
    grown = int(service.status("VmRSS").split()[0]) - resident
    print(
        f"grown by {grown} KiB resident, {service.descriptors() - descriptors} descriptors, "
        f"{slab_kib() - slab} KiB of slab"
    )
    looks, seconds = service.metric("looks_total"), service.metric("look_seconds_total")
    print(
        f"{looks:.0f} looks, {1e3 * seconds / looks:.1f} ms each; {service.cpu_seconds():.1f} s of CPU; "
        f"{service.metric('updates_total'):.0f} updates"
    )
    service.kill()
    if grown > 1024 or service.metric("accurate") != 1:
        sys.exit("it grew, or it is not accurate")


if __name__ == "__main__":
    main(int(sys.argv[1]))
