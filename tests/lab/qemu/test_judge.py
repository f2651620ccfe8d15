"""The judge: a run is as expected only when the audit's findings are exactly those expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crash_hotplug_lab.qemu import judge
from crash_hotplug_lab.qemu.guest_run import Observed
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.qemu.scenario import load

DIMM = (0x1_0000_0000, 0x1_1000_0000)


def report(*findings: dict[str, Any]) -> dict[str, Any]:
    return {"findings": list(findings), "notes": []}


def memory(start: int, end: int) -> dict[str, Any]:
    return {"kind": "memory-missing", "ranges": [{"start": hex(start), "end": hex(end)}], "sentence": ""}


CPU = {"kind": "cpu-missing", "cpu": 2, "ranges": [], "sentence": ""}


@pytest.mark.parametrize(
    ("findings", "as_expected"),
    [
        ([CPU, memory(*DIMM)], True),
        ([CPU, memory(DIMM[0], DIMM[1] - 4096)], False),
        ([CPU], False),
        ([memory(*DIMM)], False),
        ([], False),
        ([{**CPU, "cpu": 3}, memory(*DIMM)], False),
        ([CPU, memory(*DIMM), {"kind": "truncated", "ranges": [], "sentence": ""}], False),
    ],
)
def test_findings_must_be_exactly_those_expected(findings: list[dict[str, Any]], as_expected: bool) -> None:
    seen = Observed(dimms={"d0": DIMM})
    wanted = judge.wanted_findings(load("hot-add").expect["nothing"], seen)
    assert (wanted == judge.found_findings(report(*findings))) is as_expected


def test_dimms_that_touch_are_one_range() -> None:
    seen = Observed(dimms={f"d{n}": (n << 28, (n + 1) << 28) for n in range(8)})
    assert judge.wanted_findings(load("eight-dimms").expect["nothing"], seen) == {("memory-missing", (0, 8 << 28))}


@pytest.mark.parametrize(("update", "started", "outcome"), [("nothing", False, "pass"), ("nothing", True, "pass")])
def test_no_dump_where_there_must_be_none(update: str, started: bool, outcome: str) -> None:
    result = Result("flipped-byte", "", "6.1", "", "", "c", update)
    judge.judge(result, load("flipped-byte"), Observed(capture_started=started, vmcore_error="it failed"))
    assert result.outcome == outcome


def test_no_dump_where_there_must_be_one() -> None:
    result = Result("hot-add", "", "6.1", "", "", "c", "reload")
    judge.judge(result, load("hot-add"), Observed())
    assert (result.outcome, result.reason) == ("fail", "vmcore: no capture kernel started")


def test_a_panic_at_a_random_moment_is_recorded_and_not_judged() -> None:
    result = Result("panic-in-a-storm", "", "6.1", "", "", "c", "reload")
    judge.judge(result, load("panic-in-a-storm"), Observed(dimms={"d0": DIMM}, online={"d0"}))
    assert (result.outcome, result.reason) == ("recorded", "no dump: no capture kernel started")


@pytest.mark.parametrize(
    ("online", "gone", "described", "reason"),
    [
        ({"d0"}, {}, [DIMM], "complete dump, 1 DIMMs"),
        (set(), {"d0": DIMM}, [(0, DIMM[0])], "complete dump, 0 DIMMs"),
        ({"d0"}, {}, [(0, DIMM[0])], "stale dump: lacks 1 of 1 DIMMs"),
        (set(), {"d0": DIMM}, [DIMM], "stale dump: has a DIMM that was gone"),
    ],
)
def test_a_recorded_dump_is_complete_or_stale(
    monkeypatch: pytest.MonkeyPatch, online: set[str], gone: dict[str, tuple[int, int]],
    described: list[tuple[int, int]], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("crash_hotplug_lab.qemu.dump.ranges", lambda _vmcore: described)
    result = Result("panic-in-50-updates", "", "6.1", "", "", "c", "in-place")
    seen = Observed(dimms={"d0": DIMM}, online=online, gone=gone, vmcore=Path("vmcore"))
    judge.judge(result, load("panic-in-50-updates"), seen)
    assert (result.outcome, result.reason) == ("recorded", reason)
