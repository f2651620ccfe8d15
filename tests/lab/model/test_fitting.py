# SPDX-License-Identifier: MIT
"""Scenarios fitted to model machines of an architecture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crash_hotplug_lab.model.arch.arm64 import ARM64
from crash_hotplug_lab.model.arch.supported import ARCHITECTURES
from crash_hotplug_lab.model.arch.x86_64 import X86_64
from crash_hotplug_lab.model.fitting import fit
from crash_hotplug_lab.scenario import format as scenario_format
from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.records import Action, Hardware, Loading, Scenario
from tests.lab.scenario.bundled import BUNDLED

CPU = Action("add-cpu", {"cpu": 2})


OF_X86_64 = [scenario for scenario in BUNDLED if scenario.machine.architectures in ((), ("x86_64",))]


@pytest.mark.parametrize("scenario", OF_X86_64, ids=lambda scenario: scenario.name)
def test_fit_leaves_every_scenario_of_x86_64_as_it_is(scenario: Scenario) -> None:
    assert fit(scenario, X86_64) == (scenario, "")


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        (Scenario("", (CPU,), machine=Hardware(architectures=("x86_64",))), "the scenario is for x86_64 only"),
        (Scenario("", (CPU,), machine=Hardware(kernels=("5.10", "6.1"))), "arm64 kernels before 6.4 unmap"),
        (Scenario("", (CPU,), machine=Hardware(cpus=1)), "arm64 has no CPU hot-plug, and the machine has no CPU 1"),
        (Scenario("", (CPU,), load=Loading(("ch",))), "kexec --hotplug is for kernels that update the elfcorehdr"),
        (Scenario("", (CPU, Action("load", {"loader": "ch"}))), "kexec --hotplug is for kernels"),
        (Scenario("", (CPU,), policies=("v6", "merged")), "so there is no policy v6"),
    ],
)
def test_fit_gives_the_reason_where_arm64_cannot_run_a_scenario(scenario: Scenario, words: str) -> None:
    fitted, refusal = fit(scenario, ARM64)
    assert (fitted, words in refusal) == (scenario, True)


def test_fit_leaves_out_policies_loaders_and_kernels_that_arm64_lacks() -> None:
    scenario = Scenario("", (Action("panic", {"cpu": 0}),), policies=("reload", "v6"), load=Loading(("ch", "s")))
    fitted, refusal = fit(replace(scenario, machine=Hardware(kernels=("6.1", "6.12"))), ARM64)
    assert refusal == ""
    assert (fitted.policies, fitted.load.loaders, fitted.machine.kernels) == (("reload",), ("s",), ("6.12",))


def test_fit_takes_no_cpu_offline_that_is_offline_already() -> None:
    fitted, refusal = fit(read_scenario("cpu-leaves"), ARM64)
    assert refusal == ""
    assert [str(action) for action in fitted.actions] == ["offline-cpu 3", "online-cpu 3", "panic 0"]


def test_scenario_files_and_model_know_the_same_architectures() -> None:
    assert tuple(ARCHITECTURES) == scenario_format.ARCHITECTURES
