"""The simulation itself: time, states, and that what is reported adds up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.errors import InputError
from crash_hotplug.model.storm import ImageState, Schedule, StormGuest, StormOutcome, StormShape, Work, simulate_storm
from crash_hotplug.model.storm_costs import RFC_2020, StormCosts
from crash_hotplug.model.storm_policies import POLICIES

COSTS = RFC_2020.with_values(
    {
        "event": 0.1,
        "dimm": 1.0,
        "reload": 0.5,
        "kernel_update": 0.01,
        "in_place_look": 0.05,
        "in_place_update": 0.02,
    }
)
SECONDS = st.floats(min_value=0, max_value=5, allow_nan=False).map(lambda seconds: round(seconds, 3))


class DoNothing:
    """Negative control: a system without any rule, or one whose rule fails, as Debian 12's does."""

    name = "nothing"
    title = "nothing"

    def __init__(self, guest: StormGuest) -> None:
        self.work = Work()

    def on_plugged(self) -> None:
        pass

    def on_online(self) -> float:
        return 0.0


@st.composite
def storms(draw: st.DrawFn) -> tuple[StormShape, StormCosts, str]:
    blocks = draw(st.integers(1, 60))
    shape = StormShape(blocks, draw(st.integers(1, 70)))
    values = {name: draw(SECONDS) for name, _ in RFC_2020.items() if name != "reload_gap"}
    values["reload_gap"] = draw(st.sampled_from([0.0, 0.25, 1.0]))
    return shape, RFC_2020.with_values(values), draw(st.sampled_from(sorted(POLICIES)))


def run(policy: str, blocks: int = 8, per_dimm: int = 4, costs: StormCosts = COSTS) -> StormOutcome:
    return simulate_storm(StormShape(blocks, per_dimm), costs, POLICIES[policy])


@given(storms())
def test_what_is_reported_adds_up(storm: tuple[StormShape, StormCosts, str]) -> None:
    shape, costs, policy = storm
    outcome = simulate_storm(shape, costs, POLICIES[policy])
    assert [period.end for period in outcome.periods[:-1]] == [period.start for period in outcome.periods[1:]]
    assert all(before.state is not after.state for before, after in zip(outcome.periods, outcome.periods[1:])), (
        "neighbours are joined"
    )
    assert sum(outcome.time_in(state) for state in ImageState) == pytest.approx(outcome.end)
    assert outcome.longest_without_image <= outcome.time_in(ImageState.NO_IMAGE) + 1e-9


@given(storms())
def test_every_policy_is_accurate_in_the_end(storm: tuple[StormShape, StormCosts, str]) -> None:
    shape, costs, policy = storm
    outcome = simulate_storm(shape, costs, POLICIES[policy])
    assert outcome.final_state is ImageState.ACCURATE
    assert outcome.accurate_after_last_event is not None
    assert 0 <= outcome.accurate_after_last_event <= outcome.end - outcome.last_event


def test_without_a_policy_the_image_stays_stale() -> None:
    outcome = simulate_storm(StormShape(8, 4), COSTS, DoNothing)
    assert outcome.final_state is ImageState.STALE
    assert outcome.accurate_after_last_event is None
    assert outcome.time_in(ImageState.ACCURATE) == pytest.approx(1.0), "until the first DIMM is there"
    assert outcome.time_in(ImageState.NO_IMAGE) == 0


@pytest.mark.parametrize("policy", ["reload", "throttled", "in-place"])
def test_user_space_does_not_hold_up_the_guest(policy: str) -> None:
    assert run(policy).last_event == pytest.approx(2 * 1.0 + 8 * 0.1)


def test_the_kernel_s_handler_does() -> None:
    assert run("merged").last_event == pytest.approx(2 * 1.0 + 8 * 0.1 + 7 * 0.01), "the last block waits for 7 updates"


@pytest.mark.parametrize(("blocks", "per_dimm", "dimms"), [(8, 4, 2), (9, 4, 3), (3, 4, 1), (1, 1, 1)])
def test_last_dimm_may_be_smaller(blocks: int, per_dimm: int, dimms: int) -> None:
    assert StormShape(blocks, per_dimm).dimms == dimms
    assert run("in-place", blocks, per_dimm).last_event == pytest.approx(dimms * 1.0 + blocks * 0.1)


@pytest.mark.parametrize(("blocks", "per_dimm"), [(0, 1), (-1, 1), (1 << 40, 1), (1, 0)])
def test_impossible_shapes_are_refused(blocks: int, per_dimm: int) -> None:
    with pytest.raises(InputError):
        StormShape(blocks, per_dimm)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_storm_that_costs_nothing_takes_no_time(policy: str) -> None:
    free = RFC_2020.with_values({name: 0.0 for name, _ in RFC_2020.items()})
    outcome = run(policy, costs=free)
    assert outcome.last_event == 0
    assert outcome.final_state is ImageState.ACCURATE
    assert outcome.share_of(ImageState.ACCURATE) in (0.0, 1.0)  # the throttle still sleeps


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), 1e9])
def test_impossible_costs_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="reload cost"):
        RFC_2020.with_values({"reload": value})


def test_a_share_is_at_most_one() -> None:
    assert RFC_2020.with_values({"reload_gap": 1.0, "reload": 2.0}).reload.value == 2.0
    with pytest.raises(InputError, match="reload-gap"):
        RFC_2020.with_values({"reload_gap": 2.0})


def test_every_cost_has_a_source() -> None:
    assert all(len(cost.source) > 20 for _, cost in RFC_2020.items())
    assert dict(RFC_2020.with_values({"event": 1.0}).items())["event"].source == "given by the user"


def test_schedule_keeps_the_order_of_time_and_of_planning() -> None:
    schedule, done = Schedule(), list[str]()
    schedule.after(2, lambda: done.append("late"))
    schedule.after(1, lambda: done.append("first"))
    schedule.after(1, lambda: done.append("second"))
    cancelled = schedule.after(3, lambda: done.append("never"))
    schedule.cancel(cancelled)
    schedule.run()
    assert done == ["first", "second", "late"]
    assert schedule.now == 2, "time does not go on for what was cancelled"
