# SPDX-License-Identifier: MIT
"""The host's side of the watch service and of the storm, with a fake agent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any, cast

import pytest

from crash_hotplug_lab.qemu import keepers
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import StormRecord
from crash_hotplug_lab.scenario.records import Action

METRICS = """\
crash_hotplug_accurate {accurate}
crash_hotplug_last_look_timestamp_seconds {looked}
crash_hotplug_looks_total{{cause="event"}} 3
crash_hotplug_looks_total{{cause="start"}} 1
crash_hotplug_updates_total{{strategy="in-place",result="updated"}} 2
"""


class FakeAgent:
    """Answers each order to read a file with the next text."""

    def __init__(self, *texts: str | None) -> None:
        self.texts = list(texts)
        self.spawned: list[list[str]] = []

    async def order(self, name: str, **arguments: Any) -> Any:  # noqa: ANN401 JSON
        if name == "spawn":
            self.spawned.append(arguments["argv"])
            return 1
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        if text is None:
            raise GuestError("no such file")
        return text


class FakeMachine:
    """Records the plugged devices."""

    def __init__(self) -> None:
        self.plugged: list[str] = []

    async def add_dimm(self, name: str, _size: int) -> None:
        self.plugged.append(name)

    async def add_cpu(self, name: str) -> None:
        self.plugged.append(name)


def metrics(accurate: int, looked: int) -> str:
    return METRICS.format(accurate=accurate, looked=looked)


def test_wait_accurate_ignores_a_look_that_began_before() -> None:
    agent = FakeAgent(metrics(1, 10), metrics(1, 10), metrics(0, 11), metrics(0, 11), metrics(1, 12))
    said = asyncio.run(keepers.wait_accurate(cast(Agent, agent)))
    assert said.endswith("4 looks, 2 updates so far")


def test_wait_accurate_fails_with_the_log_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keepers, "_LIMIT", 0.3)
    agent = FakeAgent("crash-hotplug watch: one\ncrash-hotplug watch: two\n")
    with pytest.raises(GuestError, match=r"did not report an accurate image .* one; two"):
        asyncio.run(keepers.wait_accurate(cast(Agent, agent)))


RECORD = StormRecord("watch", 524, 8.5, 13.6, 4, 10, 4.1, [(0.0, "stale"), (6.5, "accurate")], 295, 1, 4.9, "accurate")


def storm(agent: FakeAgent, machine: FakeMachine, limit: float = 5.0) -> StormRecord:
    action = Action("storm", {"dimms": 2, "size": 256 << 20, "cpus": 3, "keeper": "watch"})
    return asyncio.run(keepers.storm(cast(QemuMachine, machine), cast(Agent, agent), action, limit))


def test_storm_is_plugged_when_the_keeper_is_ready_and_its_record_is_read() -> None:
    agent, machine = FakeAgent("ready\n", f"ready\n{json.dumps(asdict(RECORD))}\n"), FakeMachine()
    assert storm(agent, machine) == RECORD
    assert agent.spawned == [["python3", "/lab/storm.py", "watch", "4", "3"]]
    assert machine.plugged == ["storm0", "storm-cpu0", "storm1", "storm-cpu1", "storm-cpu2"]


def test_storm_fails_with_the_traceback_of_the_guest() -> None:
    with pytest.raises(GuestError, match="Traceback"):
        storm(FakeAgent("Traceback (most recent call last)"), FakeMachine())


def test_storm_fails_after_its_time_limit() -> None:
    with pytest.raises(GuestError, match="did not end in time"):
        storm(FakeAgent("ready\n", "ready\n"), FakeMachine(), limit=1.5)
