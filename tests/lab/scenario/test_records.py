# SPDX-License-Identifier: MIT
"""Scenarios as records: how an action is shown, and what one side refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.format import ACTIONS, KEYS, LOAD_KEYS, MACHINE_KEYS, MODEL, QEMU
from crash_hotplug_lab.scenario.records import Action, Hardware, Loading, Scenario


@pytest.mark.parametrize(
    ("action", "shown"),
    [
        (Action("add-dimm", {"name": "d0", "size": 256 << 20, "address": 1 << 32}), "add-dimm d0 256M 0x100000000"),
        (Action("add-virtio-mem", {"name": "v", "size": 1000, "blocks": (0, 2)}), "add-virtio-mem v 1000 0,2"),
        (Action("resize-virtio-mem", {"name": "v", "requested": 300 << 20}), "resize-virtio-mem v 300M"),
        (Action("load", {"flock": False}), "load flock=false"),
        (Action("update"), "update"),
    ],
)
def test_action_is_shown_with_its_arguments(action: Action, shown: str) -> None:
    assert str(action) == shown


def test_every_key_of_an_action_and_of_a_table_can_be_read() -> None:
    used = {key for kind in ACTIONS.values() for key in (*kind.needs, *kind.may_have)}
    assert used | {*MACHINE_KEYS, *LOAD_KEYS} <= KEYS.keys()
    for record, keys in ((Hardware(), MACHINE_KEYS), (Loading(), LOAD_KEYS)):
        assert {name.replace("_", "-") for name in vars(record)} == {*keys}


def test_every_action_and_key_is_documented() -> None:
    documented = (Path(__file__).parents[3] / "docs/scenarios.md").read_text()
    for name in (*ACTIONS, *KEYS):
        assert f"`{name}`" in documented or f"`{name} = " in documented, name


CPU = Action("add-cpu", {"cpu": 2})


@pytest.mark.parametrize(
    ("scenario", "model", "qemu"),
    [
        (Scenario("", (CPU,)), None, None),
        (Scenario("", (CPU, Action("flip", {"in": "boot_params"}))), "the step flip boot_params", None),
        (Scenario("", (Action("offline-cpu", {"cpu": 1}),)), None, None),
        (Scenario("", (Action("unload"),)), None, "the step unload"),
        (Scenario("", (Action("load", {"flock": False}),)), None, "the key flock of the step load flock=false"),
        (Scenario("", (Action("load", actor="root"),)), None, "the key actor of the step load"),
        (Scenario("", (CPU,), machine=Hardware(ram_holes=1)), "the key machine.ram-holes", None),
        (Scenario("", (CPU,), machine=Hardware(crashkernel_cma=1 << 20)), "the key machine.crashkernel-cma", None),
        (Scenario("", (CPU,), machine=Hardware(block_size=1 << 27)), None, None),
        (Scenario("", (CPU,), machine=Hardware(block_size=1 << 28)), None, "the key machine.block-size"),
        (Scenario("", (CPU,), load=Loading(udev="debian12")), None, "the key load.udev"),
    ],
)
def test_side_refuses_what_only_the_other_has(scenario: Scenario, model: str | None, qemu: str | None) -> None:
    for side, other, found in ((MODEL, QEMU, model), (QEMU, MODEL, qemu)):
        expected = None if found is None else f"{side} cannot run the scenario: only {other} has {found}"
        assert scenario.refusal(side) == expected


def test_counted_scenario_has_four_times_the_time() -> None:
    scenario = Scenario("", (CPU,), name="s")
    counted = scenario.counted()
    assert (counted.name, counted.counts_instructions) == ("s-counted", True)
    assert counted.time_limit == 4 * scenario.time_limit
    assert not scenario.counts_instructions


def test_most_dimms_are_those_plugged_at_once() -> None:
    a, b, c = ({"name": name, "size": 1 << 27} for name in "abc")
    steps = (("add-dimm", a), ("remove-dimm", a), ("add-dimm", b), ("add-dimm", c), ("remove-dimm", b))
    assert Scenario("", tuple(Action(*step) for step in steps)).most_dimms == 2


def test_most_dimms_of_repeated_steps() -> None:
    assert read_scenario("hundred-dimms").most_dimms == 100
    assert read_scenario("panic-in-50-updates").most_dimms == 1
