# SPDX-License-Identifier: MIT
"""A sample of the runs in which one system call fails; ``make fuzz`` runs them all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.failing_calls import FAULTS, SCENARIOS, Bench, Fault, fail_each_call


@pytest.mark.parametrize("name", SCENARIOS)
def test_command_whose_call_fails_never_gives_a_wrong_yes_or_loses_an_image_silently(name: str, tmp_path: Path) -> None:
    every = 19  # a prime, so that the sample has every kind of fault
    result = fail_each_call(name, tmp_path, every, first=list(SCENARIOS).index(name))
    assert result.runs > result.calls // 10
    assert result.problems == []


@pytest.mark.parametrize("fault", FAULTS["kexec_load"], ids=lambda fault: fault.name)
@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.arguments == ["update"]])
def test_update_whose_kexec_load_fails_leaves_an_image_or_names_its_loss(
    name: str, fault: Fault, tmp_path: Path
) -> None:
    bench = Bench(SCENARIOS[name], tmp_path)
    calls = bench.calls_of_a_healthy_run()
    (number,) = (number for number, call in enumerate(calls) if call.kind == "kexec_load")
    assert bench.problem(number, calls[number], fault) is None
