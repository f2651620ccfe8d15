"""In the guest: a storm of hot-plugged memory blocks and CPUs, and what one of three keepers of the image does in it.

``storm.py KEEPER BLOCKS CPUS``; KEEPER is ``watch`` (the service), ``reload`` (kdump-tools' udev rule: unload and load
for each event, one after the other) or ``throttled`` (RHEL's kdump-udev-throttler: 1 s, then up to 3 s until events
pause, then a reload).  The reloads stand in for the distributions' scripts, with nothing but kexec in them.  Prints
``ready``, and at the end one line of JSON.  New CPUs are brought online here, as a udev rule does.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from crash_hotplug.linux.service.uevents import Uevent, UeventSocket
from crash_hotplug_lab.in_guest.watched import Watched, load, status, write

_SAMPLE = 0.05
_CALM = 5.0
"""Seconds without an event after which the storm is over."""
_STATE = "/tmp/reloader.json"
_RELOADED = {("cpu", "add"), ("cpu", "remove"), ("cpu", "online"), ("memory", "online"), ("memory", "offline")}
"""What Debian's 50-kdump-tools.rules and RHEL's 98-kexec.rules react to, together."""


def reloader(throttled: bool) -> None:
    """Reload as a udev rule would have it, and keep a record."""
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
    """Who keeps the image accurate."""

    def __init__(self, name: str) -> None:
        """Start it and wait until it listens."""
        self.service: Watched | None = None
        self._child = 0
        if name == "watch":
            self.service = Watched()
            self.service.wait_accurate(120)
            return
        self._child = os.fork()
        if self._child == 0:
            reloader(name == "throttled")
        while not os.path.exists(_STATE):
            time.sleep(0.1)

    def is_idle(self, last_event: float) -> bool:
        """Whether it has nothing left to do."""
        if self.service is not None:
            # The look of the schedule that comes after the last event, and not too early.
            looked = self.service.metric("last_look_timestamp_seconds") - time.time() + time.monotonic()
            return looked > last_event + 1 and self.service.metric("accurate") == 1
        with open(_STATE) as file:
            state = json.load(file)
        return bool(state["waiting"] == 0 and state["ended"] > last_event)

    def report(self) -> dict[str, Any]:
        """Return how often it changed the image, when last, and how much CPU time that took; it ends."""
        if self.service is not None:
            service = self.service
            ended = service.metric("last_update_timestamp_seconds") - time.time() + time.monotonic()
            result = {"changes": service.metric("updates_total") - 1, "ended": ended, "cpu": service.cpu_seconds()}
            result["looks"] = service.metric("looks_total")
            service.kill()
            return result
        with open(_STATE) as file:
            state = json.load(file)
        os.kill(self._child, 9)
        usage = os.wait4(self._child, 0)[2]
        return {"changes": state["reloads"], "ended": state["ended"], "cpu": usage.ru_utime + usage.ru_stime}


class Storm:
    """What is seen of the storm."""

    def __init__(self) -> None:
        """Listen."""
        self.uevents = UeventSocket()
        self.count = 0
        self.first = self.last = 0.0
        self.online: set[str] = set()
        self.samples = self.missing = 0

    def watch_for(self, seconds: float) -> None:
        """Take events for so long, and sample whether an image is loaded."""
        poller = select.poll()
        poller.register(self.uevents.fileno(), select.POLLIN)
        poller.poll(1000 * seconds)
        for event in self.uevents.drain().events:
            self._take(event)
        with open("/sys/kernel/kexec_crash_loaded") as file:
            self.missing += file.read().strip() == "0"
        self.samples += 1

    def _take(self, event: Uevent) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.count += 1
        if event.action == "online":
            self.online.add(event.device)
        if event.subsystem == "cpu" and event.action == "add":
            write(f"/sys/devices/system/cpu/{event.device}/online", "1")


def main(name: str, blocks: int, cpus: int) -> None:
    """Watch the storm until all of it has come and the keeper is done."""
    keeper, storm = Keeper(name), Storm()
    cpu_before = keeper.service.cpu_seconds() if keeper.service is not None else 0.0
    print("ready", flush=True)
    while len(storm.online) < blocks + cpus:
        storm.watch_for(_SAMPLE)
    samples, missing = storm.samples, storm.missing
    while time.monotonic() < storm.last + _CALM or not keeper.is_idle(storm.last):
        storm.watch_for(_SAMPLE)
    report = keeper.report()
    result = {
        "keeper": name,
        "events": storm.count,
        "storm seconds": round(storm.last - storm.first, 1),
        "changes": int(report["changes"]),
        "looks": int(report.get("looks", 0)),
        "cpu seconds": round(report["cpu"] - cpu_before, 2),
        "accurate after the last event": round(max(0.0, report["ended"] - storm.last), 2),
        "no image, part of the samples": round(storm.missing / max(1, storm.samples), 3),
        "no image, while events came": round(missing / max(1, samples), 3),
        "status": status()[0],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
