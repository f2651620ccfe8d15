# SPDX-License-Identifier: MIT
"""The watch service's schedule under a clock that the tests turn: no event is forgotten, and the bounds hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.service.watch_schedule import ReloadGate, Schedule

MAX_DELAY, HEARTBEAT = 1.0, 60.0
TINY = 1e-6


class Simulated:
    """A service that does nothing but look when it is due; events that come during a look are read after it."""

    def __init__(self, looks_take: list[float], news: list[bool], lead: float = 0.0) -> None:
        self.schedule = Schedule(0.0, MAX_DELAY, HEARTBEAT)
        self.schedule.lead = lead
        self.looks: list[tuple[float, float]] = []
        self._take, self._news = looks_take, news

    def run(self, events: list[float], until: float) -> None:
        waiting, now = sorted(events), 0.0
        while now < until:
            arrived = [at for at in waiting if at <= now]
            if arrived:
                waiting = waiting[len(arrived) :]
                self.schedule.event(now)
            now = self._look(now) if self.schedule.due <= now else min([self.schedule.due, *waiting[:1]])

    def _look(self, now: float) -> float:
        self.schedule.began(now)
        ended = now + self._take[len(self.looks) % len(self._take)]
        self.schedule.finished(ended, self._news[len(self.looks) % len(self._news)])
        self.looks.append((now, ended))
        return ended


times = st.lists(st.floats(0, 30) | st.sampled_from([0.0, 1.0, 1.5, 2.0]), max_size=40)
durations = st.lists(st.floats(0.001, 5), min_size=1, max_size=8)
news = st.lists(st.booleans(), min_size=1, max_size=5)


@given(times, durations, news, st.sampled_from([0.0, 0.5]))
def test_look_begins_in_time_after_each_event(
    events: list[float], take: list[float], has_news: list[bool], lead: float
) -> None:
    service = Simulated(take, has_news, lead)
    service.run(events, 200)
    for event in events:
        # A look that is under way when the event comes may have read the machine before it.
        busy_until = max([event, *(ended for began, ended in service.looks if began <= event < ended)])
        first = min(began for began, _ in service.looks if began >= event)
        assert first <= busy_until + MAX_DELAY + TINY


@given(times, durations)
def test_storm_takes_half_a_cpu_at_most(events: list[float], take: list[float]) -> None:
    service = Simulated([min(t, MAX_DELAY) for t in take], [False])
    service.run(events, 100)
    for (began, ended), (next_began, _) in zip(service.looks, service.looks[1:]):
        assert next_began - ended >= min(ended - began, MAX_DELAY) - TINY


@given(times, durations)
def test_looks_continue_after_the_last_event(events: list[float], take: list[float]) -> None:
    service = Simulated(take, [False])
    service.run([*events, 30.0], 200)
    after = [began for began, _ in service.looks if began >= 30.0]
    assert len([began for began in after if began <= 30.0 + 2 * MAX_DELAY + 2 * max(take)]) >= 2


def test_idle_looks_grow_apart_until_the_heartbeat() -> None:
    service = Simulated([0.01], [False])
    service.run([], 400)
    gaps = [round(b - a) for (a, _), (b, _) in zip(service.looks, service.looks[1:])]
    assert gaps == [1, 2, 4, 8, 16, 32, *[60] * (len(gaps) - 6)]
    assert len(gaps) < 15


def test_event_brings_the_next_look_forward() -> None:
    service = Simulated([0.001], [False])
    service.run([100.0], 108)
    assert [round(began, 1) for began, _ in service.looks if began >= 100] == [100.0, 101.0, 103.0, 107.0]


def test_lead_delays_only_the_first_look_of_a_burst() -> None:
    service = Simulated([0.01], [False], lead=0.5)
    service.run([n / 10 for n in range(200, 300)], 32)
    began = [began for began, _ in service.looks if began >= 20]
    assert began[0] == pytest.approx(20.5)
    assert max(b - a for a, b in zip(began, began[1:])) < MAX_DELAY + 0.1


def test_look_now_is_due_at_once() -> None:
    schedule = Schedule(0.0, MAX_DELAY, HEARTBEAT)
    schedule.finished(0.5, False)
    schedule.look_now(0.6)
    assert schedule.due == 0.6


def test_quiet_is_when_the_last_event_is_long_ago() -> None:
    schedule = Schedule(0.0, MAX_DELAY, HEARTBEAT)
    assert schedule.is_quiet(0.0)
    schedule.event(5.0)
    assert not schedule.is_quiet(5.9)
    assert schedule.is_quiet(6.0)


def test_reload_gate_allows_one_reload_for_each_state() -> None:
    gate = ReloadGate()
    assert gate.why_not(0.0, "one", is_quiet=False) == "events still come"
    assert gate.why_not(0.0, "one", is_quiet=True) is None
    gate.tried(0.0, "one", succeeded=True)
    assert gate.why_not(1.0, "one", is_quiet=True) == "nothing changed since the image was loaded"
    assert gate.why_not(1.0, "two", is_quiet=True) is None


def test_failed_reload_is_retried_at_growing_distances() -> None:
    gate, now, pauses = ReloadGate(), 0.0, []
    for _ in range(10):
        gate.tried(now, "one", succeeded=False)
        before = now
        while gate.why_not(now, "one", is_quiet=True) is not None:
            now += 10
        pauses.append(now - before)
    assert pauses[:3] == [30, 60, 120]
    assert pauses[-1] == 3600
    gate.tried(now, "one", succeeded=True)
    gate.tried(now, "two", succeeded=False)
    assert gate.why_not(now + 30, "two", is_quiet=True) is None


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 2), st.booleans(), st.booleans()), max_size=60))
def test_reloads_are_rare_whatever_happens(steps: list[tuple[float, int, bool, bool]]) -> None:
    gate, tried = ReloadGate(), []
    for now, state, is_quiet, succeeds in sorted(steps):
        if gate.why_not(now, state, is_quiet) is None:
            assert is_quiet
            gate.tried(now, state, succeeds)
            tried.append((now, state, succeeds))
    for (then, state, succeeded), (now, next_state, _) in zip(tried, tried[1:]):
        assert next_state != state if succeeded else now - then >= 30


def test_lead_is_never_longer_than_the_greatest_delay() -> None:
    schedule = Schedule(0.0, max_delay=1.0, heartbeat=60.0)
    schedule.finished(0.0, has_news=False)
    schedule.finished(0.0, has_news=False)
    schedule.finished(0.0, has_news=False)
    schedule.lead = 10.0
    schedule.event(0.5)
    assert schedule.due == 1.5


def test_heartbeat_is_never_shorter_than_the_greatest_delay() -> None:
    schedule = Schedule(0.0, max_delay=10.0, heartbeat=1.0)
    for _ in range(3):
        schedule.finished(0.0, has_news=False)
    assert schedule.due == 10.0
