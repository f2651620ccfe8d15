# SPDX-License-Identifier: MIT
"""The model against QEMU: the same scenario leaves the same findings.

``recorded.json`` holds the runs of the full matrix on real kernels (``make lab-full``; record.py makes it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug.cli.output import comparison_json
from crash_hotplug.core.finding import Kind
from crash_hotplug.core.ranges import RangeList
from crash_hotplug_lab.model.machine import MemoryDevice, ModelMachine
from crash_hotplug_lab.model.panic import Panic, panic
from crash_hotplug_lab.model.simulation import Simulation, run_scenario
from crash_hotplug_lab.qemu import plan
from crash_hotplug_lab.qemu.judge import found_findings, wanted_findings
from crash_hotplug_lab.scenario.format import MEMORY_DEVICES, MODEL
from crash_hotplug_lab.scenario.records import Scenario

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "recorded.json").read_text())["runs"]
BUNDLED = {scenario.name: scenario for scenario in plan.bundled()}
POLICIES = {"kernel": "merged", "reload": "reload", "in-place": "in-place", "watch": "in-place"}
"""The model's policy for each way of updating under QEMU."""


def model_panic(scenario: Scenario, kernel: str, loader: str, update: str) -> tuple[ModelMachine, Panic]:
    """Take a scenario to its panic in the model, as a run under QEMU does; the machine is as it was before."""
    machine, load = replace(scenario.machine, kernels=(kernel,)), replace(scenario.load, loaders=(loader,))
    chosen = replace(scenario, machine=machine, load=load)
    if update != "nothing":
        result = run_scenario(chosen, POLICIES[update])
        return result.machine, result.panic
    simulation = Simulation(chosen, "in-place")  # nothing in user space takes a step
    for action in simulation.scenario.actions:
        for _step in simulation.start(action):
            simulation.machine.uevents = ()
    return simulation.machine.copy(), panic(simulation.machine)


def findings(came_to: Panic) -> dict[str, Any]:
    assert came_to.comparison is not None, came_to.sentence
    return comparison_json(came_to.comparison)


def has_note(audit: Mapping[str, Any], kind: Kind) -> bool:
    return any(note["kind"] == kind.value for note in audit["notes"])


def combination(run: dict[str, Any]) -> str:
    return "-".join(run[key] for key in ("scenario", "kernel", "loader", "update"))


BOTH = [run for run in RECORDED if run["audit"] is not None and BUNDLED[run["scenario"]].refusal(MODEL) is None]


def test_recorded_runs_cover_every_kernel_with_and_without_findings() -> None:
    assert len(BOTH) >= 20
    assert {run["kernel"] for run in BOTH} >= {"5.10", "6.1", "6.12", "6.18", "7.2"}
    assert any(run["audit"]["findings"] for run in BOTH)
    assert any(not run["audit"]["findings"] for run in BOTH)


@pytest.mark.parametrize("run", BOTH, ids=combination)
def test_model_has_the_findings_and_places_of_the_recorded_run(run: dict[str, Any]) -> None:
    machine, came_to = model_panic(BUNDLED[run["scenario"]], run["kernel"], run["loader"], run["update"])
    audit = findings(came_to)
    assert found_findings(audit) == found_findings(run["audit"])
    dropped = Kind.BACKUP_REGION_DROPPED
    assert has_note(audit, dropped) == has_note(run["audit"], dropped)
    for name, device in machine.devices.items():
        assert [hex(device.range.start), hex(device.range.end)] == run["dimms"][name]


def place(device: MemoryDevice) -> tuple[int, int]:
    """Return the range of a device's plugged memory, which QEMU's run knows; of an empty device the whole range."""
    plugged = device.plugged or RangeList([device.range])
    return plugged[0].start, plugged[-1].end


KERNELS_OF = {"nothing": ("6.1",), "kernel": ("6.12",), "reload": ("6.1",), "in-place": ("6.1", "6.12"),
              "watch": ("6.1", "6.12")}  # fmt: skip
"""Kernels on which model and QEMU update alike: from 6.6 on, the model's udev rule leaves a reload to the kernel."""
EXPECTED = [
    (scenario, kernel, update)
    for scenario in BUNDLED.values()
    if scenario.refusal(MODEL) is None and scenario.machine.architectures != ("arm64",)
    for update, expectation in scenario.expect.items()
    if expectation.dump and not expectation.record
    for kernel in scenario.machine.kernels or KERNELS_OF[update]
]


@pytest.mark.parametrize(
    ("scenario", "kernel", "update"), EXPECTED, ids=lambda value: getattr(value, "name", None) or str(value)
)
def test_model_has_exactly_the_findings_that_a_scenario_expects(scenario: Scenario, kernel: str, update: str) -> None:
    loader = next(iter(scenario.load.loaders), "s" if kernel == "6.12" else "c")
    machine, came_to = model_panic(scenario, kernel, loader, update)
    added = [action.arguments for action in scenario.actions if action.do in MEMORY_DEVICES]
    gone = {dimm["name"]: (4 << 30, (4 << 30) + dimm["size"]) for dimm in added}  # alone in its time
    dimms = {name: place(device) for name, device in machine.devices.items()}
    assert found_findings(findings(came_to)) == wanted_findings(scenario.expect[update], {**gone, **dimms})
