# SPDX-License-Identifier: MIT
"""The update in place over the model's kernel: listed segments, take-over, and the race that it cannot win."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.purgatory import read_purgatory
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import Step, Steps, run
from crash_hotplug_lab.model.actions import STARTS
from crash_hotplug_lab.model.arch.x86_64 import default_profile
from crash_hotplug_lab.model.hotplug import add_memory
from crash_hotplug_lab.model.kexec_syscalls import kexec_file_load
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.panic import DumpOutcome, panic
from crash_hotplug_lab.model.user_space import Kexec, LoadCall, keep_accurate

FILES = small_capture_kernel()


def grown(loader: LoadCall, release: str = "5.10.0-model") -> tuple[ModelMachine, Kexec]:
    machine = boot(default_profile(release))
    kexec = Kexec(FILES, loader)
    run(kexec.load(machine))
    run(add_memory(machine, "dimm0", Range(4 << 30, (4 << 30) + (128 << 20))))
    return machine, kexec


def finish(steps: Steps[Report], then: dict[str, Callable[[], object]]) -> Report:
    """Take all steps; do something else right after the first one of each name in *then*."""
    while True:
        try:
            step: Step = next(steps)
        except StopIteration as stop:
            report = stop.value
            assert isinstance(report, Report)
            return report
        then.pop(step.name, lambda: None)()


@pytest.mark.parametrize("loader", list(LoadCall))
def test_update_lists_few_segments_and_changes_purgatory_only_once(loader: LoadCall) -> None:
    machine, kexec = grown(loader)
    listed, purgatories = [], []
    assert machine.crash_image is not None
    before = read_purgatory(machine.crash_image.kimage, machine.memory.read)
    for _n in range(3):
        assert run(keep_accurate(machine, kexec)).outcome is Outcome.UPDATED
        assert machine.crash_image is not None
        kimage = machine.crash_image.kimage
        listed.append(len(kimage.segments))
        purgatories.append(read_purgatory(kimage, machine.memory.read))
        number = len(machine.devices)
        run(add_memory(machine, f"dimm{number}", Range((4 + number) << 30, ((4 + number) << 30) + (128 << 20))))
    assert listed[0] == listed[1] == listed[2] <= 3
    assert purgatories[0] == purgatories[1] == purgatories[2] != before
    run(keep_accurate(machine, kexec))
    assert panic(machine).outcome is DumpOutcome.ACCURATE


@pytest.mark.parametrize("loader", list(LoadCall))
def test_image_loaded_by_another_before_the_call_is_detected(loader: LoadCall) -> None:
    machine, kexec = grown(loader)
    steps = keep_accurate(machine, kexec)
    report = finish(steps, {"update: planned": lambda: run(kexec_file_load(machine, FILES))})
    assert report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED)
    assert panic(machine).outcome is DumpOutcome.ACCURATE


def test_load_between_the_last_check_and_the_kexec_lock_is_detected_after_the_call() -> None:
    """The kernel cannot replace an image only if it is still the same; the lock file prevents this race.

    A loader that ignores the lock file leaves a torn image; purgatory's digest check rejects it.  The update compares
    page samples of the segments that it did not list, detects the torn image, and reloads.
    """
    machine, kexec = grown(LoadCall.KEXEC_LOAD)
    between: list[DumpOutcome] = []
    report = finish(
        keep_accurate(machine, kexec),
        {
            "kexec_load: segment list copied": lambda: run(kexec_file_load(machine, FILES)),
            "service: reloads": lambda: between.append(panic(machine.copy()).outcome),
        },
    )
    assert between == [DumpOutcome.REFUSED]
    assert report.outcome is Outcome.RELOADED
    assert "another crash image was loaded at the very moment of the update" in report.sentence
    assert panic(machine).outcome is DumpOutcome.ACCURATE


@pytest.mark.parametrize("loader", list(LoadCall))
def test_torn_image_is_not_reported_where_nobody_else_loads(loader: LoadCall) -> None:
    machine, kexec = grown(loader)
    for _n in range(2):
        report = run(keep_accurate(machine, kexec))
        assert report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED)
    assert panic(machine).outcome is DumpOutcome.ACCURATE


def test_lock_file_keeps_a_careful_loader_out() -> None:
    machine, kexec = grown(LoadCall.KEXEC_LOAD)
    other = STARTS["load"](machine, kexec, {})
    waited = []
    report = finish(
        keep_accurate(machine, kexec), {"kexec_load: segment list copied": lambda: waited.append(next(other).waits)}
    )
    assert (waited, report.outcome) == ([True], Outcome.UPDATED)
    run(other)
    assert panic(machine).outcome is DumpOutcome.ACCURATE


def test_update_waits_for_a_busy_kexec_lock() -> None:
    machine, kexec = grown(LoadCall.KEXEC_LOAD)
    machine.kexec_locked = True
    waits = 0
    for step in keep_accurate(machine, kexec):
        if step.waits:
            waits += 1
            machine.kexec_locked = waits < 3
    assert waits == 3
    assert panic(machine).outcome is DumpOutcome.ACCURATE
