# SPDX-License-Identifier: MIT
"""In the guest: measures one of three keepers of the image during a storm of hot-plugged memory blocks and CPUs.

``storm.py KEEPER BLOCKS CPUS``.  KEEPER is one of these:

``watch``
    the service of this project
``reload``
    kdump-tools' udev rule, which unloads and loads the image for each event, one after the other
``throttled``
    RHEL's kdump-udev-throttler: 1 s, then up to 3 s until events pause, then one reload

The reloads run kexec only, so they cost less than the distributions' scripts.  This program takes new CPUs online, as a
udev rule does.  Prints ``ready``, and at the end one line of JSON with the fields of
``results.StormRecord``.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from crash_hotplug.linux.service.uevents import Uevent, UeventSocket
from crash_hotplug_lab.in_guest.image_states import ACCURATE, Sampler, transitions
from crash_hotplug_lab.in_guest.watched import Watched, load, status, write

_SAMPLE = 0.05
"""Seconds between two samples."""
_CALM = 5.0
"""Seconds without an event after which the storm is over."""
_STATE = "/tmp/reloader.json"
_RELOADED = {("cpu", "add"), ("cpu", "remove"), ("cpu", "online"), ("memory", "online"), ("memory", "offline")}
"""Events that start a reload by Debian's 50-kdump-tools.rules or RHEL's 98-kexec.rules."""


def reloader(throttled: bool) -> None:
    """Reload the image as a udev rule does, and record each reload."""
    uevents, done, waiting = UeventSocket(), 0, 0
    poller = select.poll()
    poller.register(uevents.fileno(), select.POLLIN)

    def take() -> int:
        return sum((e.subsystem, e.action) in _RELOADED for e in uevents.drain().events)

    while True:
        record = {"reloads": done, "ended": time.monotonic(), "waiting": waiting}
        Path(f"{_STATE}.new").write_text(json.dumps(record))
        os.replace(f"{_STATE}.new", _STATE)
        while not waiting:
            poller.poll()
            waiting = take()
        if throttled:
            time.sleep(1)
            end = time.monotonic() + 3
            while time.monotonic() < end and poller.poll(100):  # udevadm settle --timeout 3
                take()
            waiting = 1
        subprocess.run(["kexec", "-p", "-u"], check=False, capture_output=True)
        load()
        done, waiting = done + 1, waiting - 1 + take()


class Keeper:
    """The process of the service or of the reloads."""

    def __init__(self, name: str) -> None:
        """Start it and wait until it listens."""
        self.service: Watched | None = None
        self._child = 0
        self._cpu_before = 0.0
        if name == "watch":
            self.service = Watched()
            self.service.wait_accurate(120)
            self._cpu_before = self.service.cpu_seconds()
            return
        self._child = os.fork()
        if self._child == 0:
            reloader(name == "throttled")
        while not os.path.exists(_STATE):
            time.sleep(0.1)

    def is_idle(self, last_event: float) -> bool:
        """Return whether the keeper has nothing left to do."""
        if self.service is not None:
            # The look of the schedule that comes after the last event, and not too early.
            looked = self.service.metric("last_look_timestamp_seconds") - time.time() + time.monotonic()
            return looked > last_event + 1 and self.service.metric("accurate") == 1
        with open(_STATE) as file:
            state = json.load(file)
        return bool(state["waiting"] == 0 and state["ended"] > last_event)

    def stop(self) -> dict[str, Any]:
        """Stop the keeper; return the numbers of its loads and observations, and its CPU time since the start."""
        if self.service is not None:
            service = self.service
            loaded = int(service.metric("updates_total")) - 1  # the first was the take-over, before the storm
            found = {"images_loaded": loaded, "looks": int(service.metric("looks_total"))}
            cpu_seconds = service.cpu_seconds()
            service.kill()
        else:
            with open(_STATE) as file:
                found = {"images_loaded": json.load(file)["reloads"], "looks": 0}
            os.kill(self._child, 9)
            usage = os.wait4(self._child, 0)[2]
            cpu_seconds = usage.ru_utime + usage.ru_stime
        return {**found, "cpu_seconds": round(cpu_seconds - self._cpu_before, 2)}


class Storm:
    """The events of the storm, and samples of the loaded image."""

    def __init__(self) -> None:
        """Listen, and take a first sample."""
        self.uevents = UeventSocket()
        self.count = 0
        self.first = self.last = 0.0
        """Monotonic time of the first and of the last event."""
        self.online: set[str] = set()
        self.sampler = Sampler()
        self.sampler.take()
        self._sample_at = time.monotonic()

    def watch(self) -> None:
        """Receive events until the next sample is due, and take the sample."""
        poller = select.poll()
        poller.register(self.uevents.fileno(), select.POLLIN)
        left = self._sample_at - time.monotonic()
        while left > 0 and poller.poll(1000 * left):
            for event in self.uevents.drain().events:
                self._take(event)
            left = self._sample_at - time.monotonic()
        self._sample_at = max(self._sample_at + _SAMPLE, time.monotonic())
        self.sampler.take()

    def _take(self, event: Uevent) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.count += 1
        if event.action == "online":
            self.online.add(event.device)
        if event.subsystem == "cpu" and event.action == "add":
            # In a thread: the write returns when the CPU runs, and samples go on meanwhile
            path = f"/sys/devices/system/cpu/{event.device}/online"
            threading.Thread(target=write, args=(path, "1"), daemon=True).start()


def main(name: str, blocks: int, cpus: int) -> None:
    """Record the storm until all events have arrived and the keeper is done."""
    keeper, storm = Keeper(name), Storm()
    own_cpu = time.process_time()
    print("ready", flush=True)
    while len(storm.online) < blocks + cpus:
        storm.watch()
    while time.monotonic() < storm.last + _CALM or not keeper.is_idle(storm.last):
        storm.watch()
    ended, own_cpu = time.monotonic(), time.process_time() - own_cpu
    stopped, states = keeper.stop(), storm.sampler.states()
    if states[0][1] != ACCURATE:
        sys.exit(f"waited for an accurate image before the storm; it was {states[0][1]}")
    result = {
        "keeper": name,
        "events": storm.count,
        "last_event": round(storm.last - storm.first, 3),
        "ended": round(ended - storm.first, 3),
        **stopped,
        "states": transitions(states, storm.first),
        "samples": len(storm.sampler.samples),
        "samples_discarded": storm.sampler.discarded,
        "sampler_cpu_seconds": round(own_cpu, 2),
        "status": status()[0],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
