"""A storm of DIMMs and CPUs in a guest: plugged as fast as QEMU takes them, while a keeper of the image is measured."""

from __future__ import annotations

import asyncio
import json
import time

from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.machine import Machine
from crash_hotplug_lab.qemu.results import StormRecord
from crash_hotplug_lab.qemu.scenario import Step

KEEPERS = ("watch", "reload", "throttled")
"""Who keeps the image accurate: guest/storm.py."""
_BLOCK = 128 << 20
_LOG = "/tmp/storm.log"


async def storm(machine: Machine, agent: Agent, step: Step, limit: float) -> StormRecord:
    """Plug everything and wait for the keeper; return what was measured in the guest.

    :raise GuestError: it did not end well, or not within *limit* seconds
    """
    dimms, size, cpus = (int(step.arguments[key]) for key in ("dimms", "size", "cpus"))
    program = ["python3", "/lab/storm.py", step.arguments["keeper"], str(dimms * size // _BLOCK), str(cpus)]
    end = time.monotonic() + limit
    await agent.order("spawn", argv=program, log=_LOG)
    await _line(agent, "ready", end)
    for number in range(max(dimms, cpus)):
        if number < dimms:
            await machine.add_dimm(f"storm{number}", size)
        if number < cpus:
            await machine.add_cpu(f"storm-cpu{number}")
    record = json.loads(await _line(agent, "{", end))
    return StormRecord(**{**record, "states": [(since, state) for since, state in record["states"]]})


async def _line(agent: Agent, start: str, end: float) -> str:
    while time.monotonic() < end:
        text = str(await agent.order("read", path=_LOG))
        found = [line for line in text.splitlines() if line.startswith(start)]
        if found:
            return found[0]
        if "Traceback" in text or "waited" in text:
            raise GuestError(f"the storm failed in the guest: {text.strip()[-300:]}")
        await asyncio.sleep(1)
    raise GuestError(f"the storm did not end in time; it said: {text.strip()[-300:]}")
