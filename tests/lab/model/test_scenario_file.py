"""Scenario files: the bundled ones run, errors name line and key."""

from __future__ import annotations

import sys

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.model.panic import Outcome
from crash_hotplug_lab.model.scenario_file import bundled_names, parse_scenario, read_scenario
from crash_hotplug_lab.model.simulate import run_scenario

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")

EVENT = '[[event]]\ndo = "cpu-add"\ncpu = 2\n'
NEVER = {Outcome.BROKEN, Outcome.REFUSED}


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_scenario_runs_under_its_policies(name: str) -> None:
    scenario = read_scenario(name)
    for policy in scenario.policies:
        assert run_scenario(scenario, policy).panic.outcome not in NEVER


def test_there_are_a_dozen_bundled_ones() -> None:
    assert len(bundled_names()) >= 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 1\n" + EVENT, "s.toml, line 1, title: 1 is not a text"),
        ('title = "t"\n', "s.toml, line 1, event: there is no [[event]]: nothing happens"),
        ('title = "t"\n[machine]\nmemory = "lots"\n' + EVENT, "line 3, machine.memory: 'lots' is not a size"),
        ('title = "t"\n[machine]\nmemroy = 1\n' + EVENT, "line 3, machine.memroy: there is no such key"),
        ('title = "t"\n' + EVENT + '[[event]]\ndo = "cpu-add"\ncpu = true\n', "line 7, event.2.cpu: True is not"),
        ('title = "t"\n' + EVENT + '[[event]]\ndo = "fly"\n', "line 6, event.2.do: 'fly' is none of cpu-add"),
        ('title = "t"\n' + EVENT + '[[event]]\ndo = "cpu-add"\n', "line 5, event.2.cpu: is missing"),
        ('title = "t"\npolicies = ["fast"]\n' + EVENT, "line 2, policies: 'fast' is none of"),
        ('title = "t"\n[load]\nhotplug_size = "x"\n' + EVENT, "hotplug_size: Bad option value in --hotplug-size=x"),
        ('title = "t"\n[panic]\nafter = 9\n' + EVENT, "line 3, panic.after: there are 1 events only"),
        ("title = \n", "s.toml is not TOML"),
    ],
)
def test_error_names_line_and_key(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_scenario(text, "s.toml")
    assert message in str(refused.value)


def test_missing_file_is_a_sentence() -> None:
    with pytest.raises(InputError, match="simulate --list"):
        read_scenario("/nonexistent.toml")


def test_step_that_never_comes_is_an_error() -> None:
    scenario = parse_scenario('title = "t"\n[panic]\nstep = "no such step"\n' + EVENT)
    with pytest.raises(InputError, match="no step 'no such step'"):
        run_scenario(scenario, "in-place")


def test_panic_at_a_named_step() -> None:
    scenario = parse_scenario('title = "t"\n[panic]\nstep = "kexec_load: old image freed"\n' + EVENT)
    assert run_scenario(scenario, "in-place").panic.outcome is Outcome.NO_DUMP
