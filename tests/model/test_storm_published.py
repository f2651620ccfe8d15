"""The published times: which are reproduced with which costs, and that the comparison can fail."""

from __future__ import annotations

import pytest

from crash_hotplug.model.storm import simulate_storm
from crash_hotplug.model.storm_costs import COST_SETS, ORACLE_2024, RFC_2020
from crash_hotplug.model.storm_policies import ReloadPerEvent
from crash_hotplug.model.storm_published import MANY_DIMMS, ONE_DIMM, ComparedFigure, compare_with_published

COMPARED = compare_with_published()


def figure(what: str, source: str = "RFC") -> ComparedFigure:
    return next(entry for entry in COMPARED if entry.figure.what == what and entry.figure.source == source)


@pytest.mark.parametrize(
    "what",
    [
        "RHEL 7, one 480 GB DIMM, all processed",
        "RHEL 7, 480 1 GB DIMMs, all processed",
        "RHEL 8, one 480 GB DIMM, all processed",
        "RHEL 8, 480 1 GB DIMMs, all processed",
        "RHEL 7, reloads",
        "RHEL 8, one DIMM, reloads",
    ],
)
def test_the_rfc_s_table_is_reproduced_with_three_costs(what: str) -> None:
    assert figure(what).is_reproduced("rfc-2020")


@pytest.mark.parametrize("what", ["RHEL 7, scaling done", "RHEL 7, kdumpctl and kexec active"])
def test_the_write_up_is_reproduced_with_its_own_costs_only(what: str) -> None:
    assert figure(what, "write-up").is_reproduced("oracle-2024")
    assert not figure(what, "write-up").is_reproduced("rfc-2020")


@pytest.mark.parametrize("what", ["RHEL 7, one 480 GB DIMM, all processed", "RHEL 8, 480 1 GB DIMMs, all processed"])
def test_the_write_up_s_costs_do_not_give_the_rfc_s_table(what: str) -> None:
    assert not figure(what).is_reproduced("oracle-2024")


def test_the_rfc_s_estimate_of_105_reloads_is_not_reproduced() -> None:
    """It divides by 4 s, but udev is idle between DIMMs and settle returns at once."""
    entry = figure("RHEL 8, 480 DIMMs, reloads")
    assert entry.figure.is_estimate
    assert not any(entry.is_reproduced(name) for name in COST_SETS)


def test_backlog_after_the_last_event_is_the_write_up_s_several_minutes() -> None:
    outcome = simulate_storm(MANY_DIMMS, ORACLE_2024, ReloadPerEvent)
    assert outcome.accurate_after_last_event == pytest.approx(389 - 144, abs=1)


@pytest.mark.parametrize("reload", [0.02, 181 / 3840, 0.07, 389 / 3840, 0.5])
def test_no_single_cost_of_a_reload_gives_181_and_389_with_144_of_scaling(reload: float) -> None:
    costs = ORACLE_2024.with_values({"reload": reload})
    one, many = (simulate_storm(shape, costs, ReloadPerEvent).end for shape in (ONE_DIMM, MANY_DIMMS))
    assert abs(one / 181 - 1) > 0.05 or abs(many / 389 - 1) > 0.05


def test_a_reload_of_half_a_second_is_behind_no_published_time() -> None:
    outcome = simulate_storm(ONE_DIMM, RFC_2020.with_values({"reload": 0.5}), ReloadPerEvent)
    assert outcome.end > 1920


def test_the_comparison_notices_wrong_costs() -> None:
    doubled = {"rfc-2020": RFC_2020.with_values({"reload": 2 * 181 / 3840})}
    compared = compare_with_published(doubled)
    assert not compared[0].is_reproduced("rfc-2020")
    assert compared[0].difference("rfc-2020") == pytest.approx(1.0, abs=0.05)
