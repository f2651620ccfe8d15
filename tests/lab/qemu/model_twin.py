"""The same scenario in the model: what the lab did to a real kernel, done to a machine in memory."""

from __future__ import annotations

import re
from typing import Any

from crash_hotplug.core.ranges import Range
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.panic import Panic, panic
from crash_hotplug_lab.model.scenario import Action, Scenario, Simulation
from crash_hotplug_lab.model.simulate import run_scenario
from crash_hotplug_lab.model.user_space import Kexec, Loader
from crash_hotplug_lab.qemu.scenario import Scenario as LabScenario
from crash_hotplug_lab.qemu.scenario import Step

_LOADERS = {"c": Loader.KEXEC_LOAD, "ch": Loader.KEXEC_LOAD, "s": Loader.KEXEC_FILE_LOAD}
_POLICIES = {"kernel": "merged", "reload": "reload", "in-place": "in-place", "watch": "in-place"}
_BLOCK = 128 << 20
_WITHOUT_EFFECT = ("update", "plant", "busy", "wait", "look", "panic")
"""Steps that change nothing of what a header has to describe; updates the model's policies do by themselves."""
UNKNOWN_TO_MODEL = ("flip", "command", "shell")
"""Steps that the model has other tests for."""


def placements(run: dict[str, Any]) -> dict[str, Range]:
    """Return where QEMU put each DIMM, from the run's time line."""
    placed = {}
    for event in run["events"]:
        what = re.fullmatch(r"add-dimm (\S+) .*", event["what"])
        where = re.match(r"phys 0x([0-9a-f]+) to 0x([0-9a-f]+)", event["detail"])
        if what and where:
            placed[what[1]] = Range(int(where[1], 16), int(where[2], 16))
    return placed


def model_panic(lab: LabScenario, run: dict[str, Any]) -> Panic:
    """Take the lab's scenario to its panic in the model."""
    scenario = Scenario(
        title=lab.title,
        actions=tuple(_actions(lab, placements(run))),
        kernel=run["kernel_release"],
        machine={"memory": lab.memory, "boot_cpus": lab.cpus},
        kexec=Kexec(small_capture_kernel(), _LOADERS[run["loader"]]),
        hotplug=run["loader"] == "ch",
    )
    if run["update"] == "nothing":
        return _panic_without_updates(scenario)
    return run_scenario(scenario, _POLICIES[run["update"]]).panic


def _panic_without_updates(scenario: Scenario) -> Panic:
    """Run the actions with nobody in user space who listens."""
    simulation = Simulation(scenario, "in-place")
    for action in scenario.actions:
        for _step in simulation.start(action):
            simulation.machine.uevents = ()
    return panic(simulation.machine)


def _actions(lab: LabScenario, placed: dict[str, Range]) -> list[Action]:
    numbers: dict[str, int] = {}
    actions: list[Action] = []
    for step in lab.steps:
        if step.action not in _WITHOUT_EFFECT:
            actions += _action(step, placed, numbers, lab.cpus)
    return actions


def _action(step: Step, placed: dict[str, Range], numbers: dict[str, int], boot_cpus: int) -> list[Action]:
    name = str(step.arguments.get("name") or step.arguments.get("dimm") or "")
    if step.action == "add-cpu":
        numbers[name] = boot_cpus + len(numbers)
        return [Action("cpu-add", {"cpu": numbers[name]})]
    if step.action == "remove-cpu":
        return [Action("cpu-offline", {"cpu": numbers[name]}), Action("cpu-remove", {"cpu": numbers[name]})]
    if step.action == "load":
        return [Action("load")]
    dimm = placed[name]
    blocks = range(dimm.start // _BLOCK, dimm.end // _BLOCK)
    if step.action == "add-dimm":
        return [Action("memory-add", {"name": name, "at": dimm.start, "size": dimm.size})]
    if step.action == "remove-dimm":
        return [*(Action("block-offline", {"block": n}) for n in blocks), Action("memory-remove", {"name": name})]
    if step.action in ("offline-block", "online-block"):
        do = "block-offline" if step.action == "offline-block" else "block-online"
        return [Action(do, {"block": blocks[int(step.arguments["block"])]})]
    raise ValueError(f"the model has no {step.action}")
