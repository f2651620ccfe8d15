# SPDX-License-Identifier: MIT
"""Programs in a guest that keep the crash image accurate while the lab plugs CPUs and memory.

The watch service runs beside the steps of a scenario.  In a storm, a program in the guest (experiments/storm.py)
measures one keeper: the service, or one of the reloads of the distributions.
"""

from __future__ import annotations

import asyncio
import json
import re
import time

from crash_hotplug_lab.qemu import memory_devices
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import StormRecord
from crash_hotplug_lab.scenario.records import Action

_METRICS = "/tmp/crash-hotplug.prom"
_WATCH_LOG, _STORM_LOG = "/tmp/watch.log", "/tmp/storm.log"
_WATCH = ("python3", "-m", "crash_hotplug", "watch", "--metrics-file", _METRICS)
_LIMIT = 60.0
_BLOCK = 128 << 20
"""Bytes in a memory block of a guest with less than 64 GiB."""


async def start_watch(agent: Agent) -> int:
    """Start the watch service; return its process id in the guest."""
    pid: int = await agent.order("spawn", argv=list(_WATCH), log=_WATCH_LOG)
    return pid


async def wait_accurate(agent: Agent) -> str:
    """Wait until a look of the service that begins after now ends with an accurate image; return its figures.

    :raise GuestError: no look does within a minute
    """
    began = time.monotonic()
    before = await _metric(agent, "last_look_timestamp_seconds")
    while time.monotonic() - began < _LIMIT:
        looked = await _metric(agent, "last_look_timestamp_seconds")
        if looked != before and await _metric(agent, "accurate") == 1:
            looks, updates = [sum(await _values(agent, name)) for name in ("looks_total", "updates_total")]
            return f"accurate after {time.monotonic() - began:.1f} s; {looks:.0f} looks, {updates:.0f} updates so far"
        await asyncio.sleep(0.1)
    said = await watch_log(agent)
    raise GuestError(f"the watch service did not report an accurate image within {_LIMIT:.0f} s; its log: {said}")


async def watch_log(agent: Agent) -> str:
    """Return the log of the watch service."""
    return "; ".join(line.partition(": ")[2] for line in str(await agent.order("read", path=_WATCH_LOG)).splitlines())


async def _metric(agent: Agent, name: str) -> float | None:
    found = await _values(agent, name)
    return found[0] if found else None


async def _values(agent: Agent, name: str) -> list[float]:
    try:
        text = str(await agent.order("read", path=_METRICS))
    except GuestError:  # the file is not there yet
        return []
    return [float(v) for v in re.findall(rf"^crash_hotplug_{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)]


async def storm(machine: QemuMachine, agent: Agent, action: Action, limit: float) -> StormRecord:
    """Plug all DIMMs and CPUs as fast as QEMU takes them, and wait for the keeper; return the guest's measurement.

    With the name of a virtio-mem device, it is requested to have as much memory as the DIMMs, by one resize.

    :raise GuestError: it failed, or did not end within *limit* seconds
    """
    dimms, size, cpus = (int(action.arguments[key]) for key in ("dimms", "size", "cpus"))
    program = ["python3", "/lab/storm.py", action.arguments["keeper"], str(dimms * size // _BLOCK), str(cpus)]
    end = time.monotonic() + limit
    await agent.order("spawn", argv=program, log=_STORM_LOG)
    await _line(agent, "ready", end)
    device = action.arguments.get("name")
    if device is not None:
        await memory_devices.request(machine, device, dimms * size)
    for number in range(max(dimms, cpus)):
        if device is None and number < dimms:
            await machine.add_dimm(f"storm{number}", size)
        if number < cpus:
            await machine.add_cpu(f"storm-cpu{number}")
    record = json.loads(await _line(agent, "{", end))
    return StormRecord(**{**record, "states": [(since, state) for since, state in record["states"]]})


async def _line(agent: Agent, start: str, end: float) -> str:
    while time.monotonic() < end:
        text = str(await agent.order("read", path=_STORM_LOG))
        found = [line for line in text.splitlines() if line.startswith(start)]
        if found:
            return found[0]
        if "Traceback" in text or "waited" in text:
            raise GuestError(f"the storm failed in the guest: {text.strip()[-300:]}")
        await asyncio.sleep(1)
    raise GuestError(f"the storm did not end in time; its output: {text.strip()[-300:]}")
