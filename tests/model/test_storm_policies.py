"""What each policy does, counted by hand on small storms."""

from __future__ import annotations

import pytest

from crash_hotplug.model.storm import ImageState, StormGuest, StormOutcome, StormShape, simulate_storm
from crash_hotplug.model.storm_costs import RFC_2020, StormCosts
from crash_hotplug.model.storm_policies import POLICIES, InPlaceUpdate, ThrottledReload

COSTS = RFC_2020.with_values(
    {
        "event": 0.1,
        "dimm": 1.0,
        "reload": 0.5,
        "reload_gap": 1.0,
        "kernel_update": 0.01,
        "in_place_look": 0.05,
        "in_place_update": 0.02,
    }
)


SLOW_RELOAD = COSTS.with_values({"dimm": 1.5, "reload": 3.0})
"""Two DIMMs of one block: blocks online at 1.6 and 3.2 s, the throttle's lock free at 2.6 s, reloaded at 5.6 s."""


def run(policy: str, blocks: int, per_dimm: int, costs: StormCosts = COSTS) -> StormOutcome:
    return simulate_storm(StormShape(blocks, per_dimm), costs, POLICIES[policy])


def test_reloads_queue_up_one_for_each_block() -> None:
    outcome = run("reload", 4, 4)
    assert outcome.replacements == 4
    assert outcome.busy == pytest.approx(4 * 0.5)
    assert outcome.time_in(ImageState.STALE) == pytest.approx(0.1), "from the DIMM to the first block's event"
    assert outcome.longest_without_image == pytest.approx(4 * 0.5), "one after the other"
    assert outcome.end == pytest.approx(1.0 + 0.1 + 4 * 0.5)
    assert outcome.accurate_after_last_event == pytest.approx(outcome.end - 1.4)


def test_reload_keeps_the_old_image_until_it_unloads() -> None:
    outcome = run("reload", 4, 4, COSTS.with_values({"reload_gap": 0.2}))
    assert outcome.time_in(ImageState.NO_IMAGE) == pytest.approx(4 * 0.1)
    assert outcome.longest_without_image == pytest.approx(0.1)
    assert outcome.busy == pytest.approx(4 * 0.5), "busy all the same"


def test_a_reload_describes_what_was_there_when_it_unloaded() -> None:
    slow = COSTS.with_values({"reload": 1.5})
    outcome = run("reload", 2, 1, slow)  # the second DIMM comes at 2.1 s, in the middle of the first reload
    states = [(round(period.start, 3), period.state) for period in outcome.periods]
    assert states == [
        (0.0, ImageState.ACCURATE),
        (1.0, ImageState.STALE),
        (1.1, ImageState.NO_IMAGE),  # 1.1 to 2.6 and, for the second block, 2.6 to 4.1
    ]
    assert outcome.end == pytest.approx(4.1)


def test_throttle_makes_one_reload_of_a_burst() -> None:
    outcome = run("throttled", 8, 8)
    assert outcome.replacements == 1
    assert outcome.end == pytest.approx(1.0 + 0.1 + 1.0 + 0.5), "event, sleep 1, udev idle by then, reload"
    assert outcome.time_in(ImageState.STALE) == pytest.approx(1.1)


def test_settle_gives_up_after_three_seconds_while_udev_is_busy() -> None:
    outcome = run("throttled", 100, 100)  # blocks go online from 1.1 to 11 s
    assert outcome.replacements == 3, "rounds begin at 1.1, 5.2 (or 5.1) and 9.2 s"
    assert outcome.periods[1].state is ImageState.STALE
    assert outcome.periods[1].end == pytest.approx(1.1 + 4.0)


def test_settle_returns_when_udev_is_idle() -> None:
    outcome = run("throttled", 25, 25)  # blocks go online until 3.5 s
    assert outcome.replacements == 1
    assert outcome.end == pytest.approx(3.5 + 0.5), "not 5.1 + 0.5"


def test_throttle_lets_go_of_its_lock_before_the_reload() -> None:
    outcome = run("throttled", 2, 1, SLOW_RELOAD)
    assert outcome.replacements == 2


class ThrottleThatKeepsItsLock(ThrottledReload):
    """Negative control: the mistake that a comment in kdump-udev-throttler warns of."""

    def _finish_round(self) -> None:
        super()._finish_round()
        self._is_locked = True

    def _load(self) -> None:
        super()._load()
        self._is_locked = False


def test_a_throttle_that_keeps_its_lock_loses_events() -> None:
    shape = StormShape(2, 1)
    assert simulate_storm(shape, SLOW_RELOAD, ThrottleThatKeepsItsLock).final_state is ImageState.STALE
    assert simulate_storm(shape, SLOW_RELOAD, ThrottledReload).final_state is ImageState.ACCURATE


def test_kernel_updates_for_every_block_and_takes_the_image_out() -> None:
    outcome = run("merged", 8, 4)
    assert outcome.replacements == 8
    assert outcome.time_in(ImageState.NO_IMAGE) == pytest.approx(8 * 0.01)
    assert outcome.longest_without_image == pytest.approx(0.01)
    assert outcome.time_in(ImageState.STALE) == pytest.approx(2 * 0.1), "the first block of a DIMM describes all of it"


def test_in_place_updates_once_for_a_dimm() -> None:
    outcome = run("in-place", 8, 8)
    assert outcome.replacements == 1
    assert outcome.time_in(ImageState.STALE) == pytest.approx(0.05)
    assert outcome.time_in(ImageState.NO_IMAGE) == pytest.approx(0.02)
    assert outcome.accurate_after_last_event == 0


def test_in_place_looks_again_for_what_came_meanwhile() -> None:
    slow = COSTS.with_values({"in_place_look": 1.5})
    outcome = run("in-place", 3, 1, slow)  # DIMMs at 1.0, 2.1 and 3.2 s; looks from 1.0, 2.52 and 4.04 s
    assert outcome.replacements == 3
    assert outcome.final_state is ImageState.ACCURATE


class InPlaceThatForgets(InPlaceUpdate):
    """Negative control: edge-triggered, deaf while it works."""

    def _wake(self) -> None:
        if not self._is_working:
            self._look()


def test_an_update_that_is_deaf_while_it_works_ends_stale() -> None:
    slow = COSTS.with_values({"in_place_look": 1.5})
    assert simulate_storm(StormShape(2, 1), slow, InPlaceThatForgets).final_state is ImageState.STALE
    assert simulate_storm(StormShape(2, 1), slow, InPlaceUpdate).final_state is ImageState.ACCURATE


def test_in_place_looks_without_replacing_where_nothing_changed() -> None:
    guest = StormGuest(StormShape(8, 8), COSTS)
    policy = InPlaceUpdate(guest)
    guest.run(policy)
    assert policy.work.replacements == 1
    assert policy.looks > 1
    assert policy.work.busy == pytest.approx(policy.looks * 0.05 + 0.02)


def test_policies_are_found_by_name_in_the_order_shown() -> None:
    assert list(POLICIES) == ["reload", "throttled", "merged", "in-place"]
