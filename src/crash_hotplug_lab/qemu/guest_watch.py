"""The watch service in a guest: start it, and wait until it says that the image is accurate."""

from __future__ import annotations

import asyncio
import re
import time

from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError

METRICS = "/tmp/crash-hotplug.prom"
LOG = "/tmp/watch.log"
COMMAND = ("python3", "-m", "crash_hotplug", "watch", "--metrics-file", METRICS)
_LIMIT = 60.0


async def start(agent: Agent) -> int:
    """Start the service; return its process id in the guest."""
    pid: int = await agent.order("spawn", argv=list(COMMAND), log=LOG)
    return pid


async def wait_accurate(agent: Agent) -> str:
    """Wait for a look that begins after now and finds the image accurate, or makes it so; return what was seen.

    :raise GuestError: there is none within a minute
    """
    began = time.monotonic()
    before = await _metric(agent, "last_look_timestamp_seconds")
    while time.monotonic() - began < _LIMIT:
        looked = await _metric(agent, "last_look_timestamp_seconds")
        if looked != before and await _metric(agent, "accurate") == 1:
            looks = await _sum(agent, "looks_total")
            updates = await _sum(agent, "updates_total")
            return f"accurate after {time.monotonic() - began:.1f} s; {looks:.0f} looks, {updates:.0f} updates so far"
        await asyncio.sleep(0.1)
    raise GuestError(f"the watch service did not say accurate within {_LIMIT:.0f} s; it said: {await log(agent)}")


async def log(agent: Agent) -> str:
    """Return what the service wrote."""
    return "; ".join(line.partition(": ")[2] for line in str(await agent.order("read", path=LOG)).splitlines())


async def _metric(agent: Agent, name: str) -> float | None:
    found = await _values(agent, name)
    return found[0] if found else None


async def _sum(agent: Agent, name: str) -> float:
    return sum(await _values(agent, name))


async def _values(agent: Agent, name: str) -> list[float]:
    try:
        text = str(await agent.order("read", path=METRICS))
    except GuestError:  # it is not there yet
        return []
    return [float(v) for v in re.findall(rf"^crash_hotplug_{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)]
