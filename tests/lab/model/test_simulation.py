# SPDX-License-Identifier: MIT
"""Scenarios in the model: every bundled one, the places of DIMMs, loaders and kernels, and refused scenarios."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.actions import PLANTED_OFFSET, PLANTED_WORD, STARTS
from crash_hotplug_lab.model.panic import DumpOutcome
from crash_hotplug_lab.model.policies import POLICIES
from crash_hotplug_lab.model.simulation import DEFAULT_POLICIES, Simulation, run_scenario
from crash_hotplug_lab.model.udev import RULES
from crash_hotplug_lab.scenario import format as scenario_format
from crash_hotplug_lab.scenario.file import parse_scenario, read_scenario
from crash_hotplug_lab.scenario.format import ACTIONS, MODEL, QEMU
from crash_hotplug_lab.scenario.records import BUSY_REGISTERS, Action, Hardware, Loading, Scenario
from tests.lab.scenario.bundled import BUNDLED

GIB, MIB = 1 << 30, 1 << 20
NEVER = {DumpOutcome.BROKEN, DumpOutcome.REFUSED}
CPU = Action("add-cpu", {"cpu": 2})


def dimm(name: str, mib: int, **where: int) -> Action:
    return Action("add-dimm", {"name": name, "size": mib * MIB, **where})


@pytest.mark.parametrize("scenario", [s for s in BUNDLED if s.refusal(MODEL) is None], ids=lambda s: s.name)
def test_bundled_scenario_runs_under_its_policies(scenario: Scenario) -> None:
    for policy in scenario.policies or DEFAULT_POLICIES:
        assert run_scenario(scenario, policy).panic.outcome not in NEVER


def test_format_and_model_know_the_same_names() -> None:
    assert tuple(POLICIES) == scenario_format.POLICIES
    assert tuple(RULES) == scenario_format.UDEV_RULES
    without_effect = {"update", "look", "wait", "pace", "panic"}
    assert STARTS.keys() | without_effect == {do for do, kind in ACTIONS.items() if kind.only != QEMU}


@pytest.mark.parametrize(
    ("scenario", "sentence"),
    [
        (
            Scenario("", (CPU, Action("flip", {"in": "boot_params"})), "mine"),
            "the model cannot run mine: only QEMU has",
        ),
        (Scenario("", (CPU,), load=Loading(("own",))), "the model has no loader own; it has c, ch, s"),
    ],
)
def test_model_refuses_unknown_steps_and_loaders(scenario: Scenario, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run_scenario(scenario, "in-place")


@pytest.mark.parametrize(
    ("actions", "places"),
    [
        ([dimm("a", 256), dimm("b", 128)], {"a": 4 * GIB, "b": 4 * GIB + 256 * MIB}),
        ([dimm("a", 256), Action("remove-dimm", {"name": "a"}), dimm("b", 512)], {"b": 4 * GIB}),
        ([dimm("a", 128, address=4 * GIB + 128 * MIB), dimm("b", 128)], {"a": 4 * GIB + 128 * MIB, "b": 4 * GIB}),
        ([dimm("a", 128, address=4 * GIB + 128 * MIB), dimm("b", 256)], {"b": 4 * GIB + 256 * MIB}),
    ],
)
def test_dimm_goes_to_the_first_gap_from_4_gib(actions: list[Action], places: dict[str, int]) -> None:
    devices = run_scenario(Scenario("", tuple(actions)), "reload").machine.devices
    assert places.items() <= {name: device.range.start for name, device in devices.items()}.items()


def test_dimm_goes_to_the_first_gib_behind_high_ram() -> None:
    machine = Hardware(memory=4 * GIB + 256 * MIB)
    result = run_scenario(Scenario("", (dimm("a", 128),), machine=machine), "reload")
    assert result.machine.devices["a"].range == Range(6 * GIB, 6 * GIB + 128 * MIB)


def test_block_is_counted_from_the_beginning_of_its_dimm() -> None:
    offline = Action("offline-block", {"dimm": "b", "block": 1})
    blocks = run_scenario(Scenario("", (dimm("a", 128), dimm("b", 256), offline)), "reload").machine.blocks
    assert [number for number, online in blocks.items() if not online] == [34]


@pytest.mark.parametrize("do", ["plant", "offline-block"])
def test_action_on_a_missing_dimm_names_it(do: str) -> None:
    scenario = Scenario("", (CPU, Action(do, {"dimm": "d9", "block": 0})))
    with pytest.raises(InputError, match=rf"action 2 \({do} d9 0\): there is no memory device d9"):
        run_scenario(scenario, "reload")


def test_action_that_the_model_refuses_names_file_line_and_key() -> None:
    text = "[[step]]\ndo = 'add-cpu'\ncpu = 2\n\n[[step]]\ndo = 'plant'\ndimm = 'd9'\n[[step]]\ndo = 'panic'\ncpu = 0\n"
    with pytest.raises(InputError, match=r"^s.toml, line 5, step.2: action 2 \(plant d9\): there is no memory device"):
        run_scenario(parse_scenario(text, "s.toml"), "reload")
    run_scenario(
        parse_scenario(text.replace("plant", "remove-cpu").replace("dimm = 'd9'", "cpu = 2"), "s.toml"), "reload"
    )


def test_planted_word_and_busy_registers_are_in_the_machine() -> None:
    actions = (CPU, dimm("a", 128), Action("plant", {"dimm": "a"}), Action("busy", {"cpu": 2}))
    machine = run_scenario(Scenario("", actions), "reload").machine
    assert machine.memory.read(4 * GIB + PLANTED_OFFSET, 8) == PLANTED_WORD.to_bytes(8, "little")
    assert dict(machine.cpus[2].registers) == BUSY_REGISTERS
    with pytest.raises(InputError, match="CPU 3 does not run"):
        run_scenario(Scenario("", (Action("busy", {"cpu": 3}),)), "reload")


@pytest.mark.parametrize(
    ("loaders", "policy", "loader", "hotplug"),
    [
        ((), "reload", "kexec_load", False),
        ((), "merged", "kexec_load", True),
        (("c",), "merged", "kexec_load", False),
        (("ch", "s"), "reload", "kexec_load", True),
        (("s", "c"), "merged", "kexec_file_load", False),
    ],
)
def test_image_is_loaded_by_the_first_loader(loaders: tuple[str, ...], policy: str, loader: str, hotplug: bool) -> None:
    kexec = Simulation(Scenario("", (CPU,), load=Loading(loaders)), policy).kexec
    assert (kexec.loader.value, kexec.hotplug) == (loader, hotplug)


@pytest.mark.parametrize(
    ("kernels", "policy", "release"),
    [
        ((), "in-place", "5.10.0-model"),
        (("6.1", "6.12"), "in-place", "6.1.0-model"),
        (("6.1", "6.12"), "merged", "6.12.0-model"),
        (("6.18",), "merged", "6.18.0-model"),
    ],
)
def test_simulation_boots_the_first_kernel_or_one_that_has_the_policy(
    kernels: tuple[str, ...], policy: str, release: str
) -> None:
    machine = Simulation(Scenario("", (CPU,), machine=Hardware(kernels)), policy).machine
    assert machine.profile.kernel_release == release


def panic_after(step: str) -> Scenario:
    return Scenario("t", (CPU, Action("panic", {"cpu": 0, "after-step": step})))


def test_panic_step_that_never_comes_is_an_error() -> None:
    with pytest.raises(InputError, match="no step 'no such step' after action 1"):
        run_scenario(panic_after("no such step"), "in-place")


def test_panic_step_that_never_comes_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        'title = "t"\n[[step]]\ndo = "add-cpu"\ncpu = 2\n[[step]]\ndo = "panic"\ncpu = 0\nafter-step = "none"\n'
    )
    with pytest.raises(InputError, match=r"scenario.toml, line 5, step.2: under in-place there was no step 'none'"):
        run_scenario(read_scenario(str(path)), "in-place")


def test_panic_comes_after_the_named_step() -> None:
    result = run_scenario(panic_after("kexec_load: old image freed"), "in-place")
    assert (result.panic.outcome, result.stopped_at) == (DumpOutcome.NO_DUMP, "kexec_load: old image freed")


def test_simulation_starts_again_from_a_copy_of_the_loaded_machine() -> None:
    simulation = Simulation(Scenario("", (CPU, Action("update"))), "in-place")
    assert simulation.scenario.actions == (CPU,)
    again = simulation.again(simulation.machine.copy())
    run(again.start(CPU))
    assert (2 in again.machine.online_cpus, 2 in simulation.machine.online_cpus) == (True, False)
    assert again.scenario is simulation.scenario
