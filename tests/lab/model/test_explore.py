"""The search of interleavings: bundled scenarios, and that it finds what is there to be found."""

from __future__ import annotations

import sys

import pytest

from crash_hotplug_lab.cli.explore import ALL_STATE_LIMIT
from crash_hotplug_lab.model.explore import explore
from crash_hotplug_lab.model.panic import Outcome
from crash_hotplug_lab.model.scenario import Action, Scenario
from crash_hotplug_lab.model.scenario_file import bundled_names, read_scenario

needs_tomllib = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
CPU = Scenario("a CPU comes", (Action("cpu-add", {"cpu": 2}),))
DIMM = Action("memory-add", {"name": "d", "at": 4 << 30, "size": 128 << 20})


@needs_tomllib
@pytest.mark.parametrize("name", bundled_names())
def test_in_place_is_never_torn_or_refused_in_a_bundled_scenario(name: str) -> None:
    scenario = read_scenario(name)
    for policy in scenario.policies:
        found = explore(scenario, policy, limit=ALL_STATE_LIMIT)
        assert found.states == sum(found.outcomes.values())
        if policy == "in-place":
            assert found.outcomes[Outcome.BROKEN] == found.outcomes[Outcome.REFUSED] == 0


@needs_tomllib
@pytest.mark.parametrize("name", ["file-load", "dimm-removed"])
def test_in_place_searched_to_the_end(name: str) -> None:
    """Every step of every interleaving: nothing torn, nothing refused."""
    found = explore(read_scenario(name), "in-place", limit=1_000_000)
    assert found.complete
    assert set(found.outcomes) == {Outcome.ACCURATE, Outcome.STALE, Outcome.NO_DUMP}


def test_search_is_repeatable() -> None:
    first, second = explore(CPU, "in-place"), explore(CPU, "in-place")
    assert (first.states, first.outcomes, first.traces) == (second.states, second.outcomes, second.traces)


def test_trace_is_the_shortest_way_to_the_window() -> None:
    found = explore(CPU, "reload")
    trace = found.traces[Outcome.NO_DUMP]
    assert trace[-1] == "service: kexec_load: lock taken"
    assert len(trace) == 1 + trace.index("service: kexec_load: lock taken")


def test_limit_is_kept_and_said() -> None:
    found = explore(Scenario("", (DIMM, Action("memory-remove", {"name": "d"}))), "reload", limit=50)
    assert (found.states, found.complete) == (50, False)


def test_two_hotplug_actors_make_v6_lose_an_event_and_stay_stale() -> None:
    both = Scenario("", (Action("cpu-add", {"cpu": 2}, actor="cpus"), DIMM))
    found = explore(both, "v6")
    assert found.at_rest[Outcome.STALE] > 0
    assert found.at_rest[Outcome.ACCURATE] > 0


def test_merged_waits_for_its_turn_where_v6_loses_the_event() -> None:
    both = Scenario("", (Action("cpu-add", {"cpu": 2}, actor="cpus"), DIMM))
    assert set(explore(both, "merged").at_rest) == {Outcome.ACCURATE}


def test_merged_loses_an_event_to_a_load_at_the_same_time() -> None:
    both = Scenario("", (DIMM, Action("load", {}, actor="administrator")))
    assert explore(both, "merged").at_rest[Outcome.STALE] > 0
    in_place = explore(both, "in-place", limit=1500)
    assert in_place.outcomes[Outcome.BROKEN] == in_place.outcomes[Outcome.REFUSED] == 0
