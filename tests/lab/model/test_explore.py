# SPDX-License-Identifier: MIT
"""The search of interleavings: bundled scenarios, traces, limits and lost events."""

from __future__ import annotations

import functools
import random

import pytest

from crash_hotplug_lab.model.explore import Exploration, Run, explore
from crash_hotplug_lab.model.panic import DumpOutcome
from crash_hotplug_lab.model.simulation import Simulation
from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.records import Action, Scenario
from tests.lab.scenario.bundled import BUNDLED

CPU = Scenario("a CPU comes", (Action("add-cpu", {"cpu": 2}),))
DIMM = Action("add-dimm", {"name": "d", "size": 128 << 20})


@functools.cache
def searched(name: str, policy: str) -> Exploration:
    """Return the search of a bundled scenario to its end; several tests look at the same one."""
    return explore(read_scenario(name), policy)


@pytest.mark.parametrize("scenario", [s for s in BUNDLED if s.policies], ids=lambda scenario: scenario.name)
def test_in_place_is_never_torn_or_refused_in_a_bundled_scenario(scenario: Scenario) -> None:
    """Searched to the end: a panic at every step of every interleaving."""
    for policy in scenario.policies:
        found = searched(scenario.name, policy)
        assert found.complete
        assert found.states == sum(found.outcomes.values())
        if policy == "in-place":
            assert found.never_may_be(scenario) == 0


@pytest.mark.parametrize("name", ["file-load", "dimm-removed"])
def test_in_place_leaves_only_these_dumps(name: str) -> None:
    found = searched(name, "in-place")
    assert set(found.outcomes) == {DumpOutcome.ACCURATE, DumpOutcome.STALE, DumpOutcome.NO_DUMP}


@pytest.mark.parametrize(
    ("name", "policy"), [("dimm-removed", "in-place"), ("other-loader-without-lock", "in-place"), ("hot-add", "reload")]
)
def test_random_interleavings_meet_no_machine_that_the_search_did_not(name: str, policy: str) -> None:
    """The search may merge only equal states: a random walk, which merges none, must meet no other machine."""
    scenario = read_scenario(name)
    met = searched(name, policy).machines
    randomness = random.Random(1)
    for _ in range(60):
        run = Run(Simulation(scenario, policy))
        while not run.is_quiet:
            assert run.simulation.machine.key() in met
            run.advance(randomness.choice(run.able))


@pytest.mark.parametrize("name", ["other-loader-with-lock", "other-loader-without-lock"])
def test_shipped_update_has_none_of_the_planted_faults(name: str) -> None:
    scenario = read_scenario(name)
    found = searched(name, "in-place")
    assert found.complete
    assert found.never_may_be(scenario) == 0


def test_search_is_repeatable() -> None:
    first, second = explore(CPU, "in-place"), explore(CPU, "in-place")
    assert (first.states, first.outcomes, first.traces) == (second.states, second.outcomes, second.traces)


def test_trace_is_the_shortest_way_to_the_window() -> None:
    found = explore(CPU, "reload")
    trace = found.traces[DumpOutcome.NO_DUMP]
    assert trace[-1] == "service: kexec_load: lock taken"
    assert len(trace) == 1 + trace.index("service: kexec_load: lock taken")


def test_explore_limit_is_kept_and_reported() -> None:
    found = explore(Scenario("", (DIMM, Action("remove-dimm", {"name": "d"}))), "reload", limit=50)
    assert (found.states, found.complete) == (50, False)


def test_two_hotplug_actors_make_v6_lose_an_event_and_stay_stale() -> None:
    both = Scenario("", (Action("add-cpu", {"cpu": 2}, actor="cpus"), DIMM))
    found = explore(both, "v6")
    assert found.at_rest[DumpOutcome.STALE] > 0
    assert found.at_rest[DumpOutcome.ACCURATE] > 0


def test_callbacks_of_two_simulations_are_one_state() -> None:
    """Else a search through a notifier chain does not end, and its memory grows by a gigabyte a minute."""
    both = Scenario("", (Action("add-cpu", {"cpu": 2}, actor="cpus"), DIMM))
    assert explore(both, "merged", limit=2000).complete


def test_merged_waits_for_its_turn_where_v6_loses_the_event() -> None:
    both = Scenario("", (Action("add-cpu", {"cpu": 2}, actor="cpus"), DIMM))
    assert set(explore(both, "merged").at_rest) == {DumpOutcome.ACCURATE}


def test_merged_loses_an_event_to_a_load_at_the_same_time() -> None:
    both = Scenario("", (DIMM, Action("load", {}, actor="administrator")))
    assert explore(both, "merged").at_rest[DumpOutcome.STALE] > 0
    in_place = explore(both, "in-place", limit=1500)
    assert in_place.outcomes[DumpOutcome.BROKEN] == in_place.outcomes[DumpOutcome.REFUSED] == 0
