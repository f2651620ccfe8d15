# SPDX-License-Identifier: MIT
"""The order of the measurements and the sentences of failures; a stand-in times the system calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug_lab.bench import bench_updates
from crash_hotplug_lab.bench.bench_updates import IN_PLACE, IN_PLACE_COMMAND, TAKE_OVER, bench, rewrite_header
from crash_hotplug_lab.bench.kexec_call_timer import Timing
from tests.linux.fake_kexec import FakeKexec


class Stopwatch:
    """Does the work of an update in this process, and executes no program."""

    def __init__(self) -> None:
        self.calls = 1
        self.codes: list[int] = []

    def time(self, work: Callable[[], int]) -> Timing:
        code = self.codes.pop(0) if self.codes else 0
        if work.__qualname__.startswith("_in_place") and code == 0:
            code = work()
        return Timing(0.5, 0.25, 0.125, self.calls, code)


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    stopwatch = Stopwatch()
    monkeypatch.setattr(bench_updates, "time_kexec_calls", stopwatch.time)
    monkeypatch.setattr(bench_updates, "LiveMachine", object)
    monkeypatch.setattr(bench_updates, "rewrite_header", lambda _machine: None)
    monkeypatch.setattr(bench_updates, "_take_over", lambda _machine: None)
    return stopwatch


def test_bench_measures_each_once_a_round(stopwatch: Stopwatch) -> None:
    rounds: list[str] = []
    measured = bench([["kexec", "-c"], ["kexec", "-s"]], 3, rounds.append)
    assert [(m.name, len(m.timings)) for m in measured] == [
        (IN_PLACE, 3), (IN_PLACE_COMMAND, 3), (TAKE_OVER, 3), ("kexec -c", 3), ("kexec -s", 3),
    ]  # fmt: skip
    assert rounds == ["round 1 of 3", "round 2 of 3", "round 3 of 3"]


def test_bench_without_reloads_has_one_take_over(stopwatch: Stopwatch) -> None:
    assert [len(m.timings) for m in bench([], 4)] == [4, 4, 1]


def test_bench_names_a_command_that_fails(stopwatch: Stopwatch) -> None:
    stopwatch.codes = [1]
    with pytest.raises(CrashHotplugError, match=r"^kexec -c: exit code 1; "):
        bench([["kexec", "-c"]], 1)


def test_bench_refuses_a_command_that_loads_nothing(stopwatch: Stopwatch) -> None:
    stopwatch.calls = 0
    with pytest.raises(
        CrashHotplugError, match=r"^true: it made no system call that loads a crash image, nor did its children"
    ):
        bench([["true"]], 1)


def test_bench_gives_the_reason_of_a_failed_update(stopwatch: Stopwatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_machine: LiveMachine) -> None:
        raise CrashHotplugError("lockdown forbids it")

    monkeypatch.setattr(bench_updates, "rewrite_header", fails)
    with pytest.raises(CrashHotplugError, match=r"^update in place: lockdown forbids it; "):
        bench([], 1)


def test_rewrite_header_loads_even_if_the_header_is_accurate(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path)
    machine = fake.machine()
    rewrite_header(machine)
    rewrite_header(machine)
    assert len(fake.loads) == 2
