# SPDX-License-Identifier: MIT
"""The judge: a run is as expected only when the audit's findings are exactly those expected."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import open_sysroot
from crash_hotplug_lab.qemu import judge
from crash_hotplug_lab.qemu.dump import SavedCpu
from crash_hotplug_lab.qemu.guest_run import Observed
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.scenario.file import read_scenario
from tests.trees import arm64_tree

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
def test_judge_wants_exactly_the_expected_findings(findings: list[dict[str, Any]], as_expected: bool) -> None:
    wanted = judge.wanted_findings(read_scenario("hot-add").expect["nothing"], {"d0": DIMM})
    assert (wanted == judge.found_findings(report(*findings))) is as_expected


def test_wanted_dimms_that_touch_are_one_range() -> None:
    dimms = {f"d{n}": (n << 28, (n + 1) << 28) for n in range(8)}
    expectation = read_scenario("eight-dimms").expect["nothing"]
    assert judge.wanted_findings(expectation, dimms) == {("memory-missing", (0, 8 << 28))}


def test_audit_without_sentences_has_the_same_findings() -> None:
    said = {**report(CPU, memory(*DIMM)), "notes": [{"kind": "room-left", "ranges": [], "sentence": "room for 9"}]}
    kept = judge.without_sentences(said)
    assert kept["findings"][0] == {"kind": "cpu-missing", "cpu": 2}
    assert kept["notes"] == [{"kind": "room-left"}]
    assert judge.found_findings(kept) == judge.found_findings(said)


@pytest.mark.parametrize(
    ("seen", "outcome"),
    [
        (Observed(), "pass"),
        (Observed(capture_started=True, vmcore_error="it failed"), "pass"),
        (Observed(capture_started=True, vmcore=Path("vmcore")), "fail"),
    ],
)
def test_judge_passes_only_a_missing_dump_where_none_is_expected(seen: Observed, outcome: str) -> None:
    result = Result("flipped-byte", "", "6.1", "", "", "c", "nothing")
    judge.judge(result, read_scenario("flipped-byte"), seen)
    assert result.outcome == outcome


def test_plugged_hardware_is_compared_where_the_kernel_hides_the_image(tmp_path: Path) -> None:
    """Kernels of arm64 before 6.4 unmap it, so status compares no header and reports neither CPUs nor memory."""
    tree = tmp_path / "tree"
    shutil.copytree(arm64_tree("arm64-6.1-c", 1), tree, ignore=shutil.ignore_patterns("kcore", "crash-image"))
    machine = read_machine(open_sysroot(str(tree)))
    dimm = (0x8000_0000, 0xA000_0000)
    plugged = [(*dimm, "d0")]
    for seen, agree in (
        (Observed(cpu_count=2, plugged=plugged, dimms={"d0": dimm}), [True, True]),
        (Observed(cpu_count=3, plugged=[], dimms={"d0": dimm}), [False, False]),
    ):
        result = Result("hot-add", "", "arm64-5.10", "", "", "c", "nothing")
        judge._judge_truth(result, seen, machine)
        assert [check.ok for check in result.checks] == agree


BUSY = tuple(range(8))


@pytest.mark.parametrize(
    ("cpus", "is_found"),
    [
        ([SavedCpu(7, BUSY, in_kernel=False)], True),
        ([SavedCpu(7, (0,) * 8, in_kernel=True)], True),  # a timer's interrupt had the CPU
        ([SavedCpu(7, (0,) * 8, in_kernel=False)], False),
        ([SavedCpu(8, BUSY, in_kernel=False)], False),
        ([SavedCpu(8, (0,) * 8, in_kernel=True)], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("update", ["in-place", "nothing"])
def test_busy_cpu_is_in_the_dump_under_its_process(cpus: list[SavedCpu], is_found: bool, update: str) -> None:
    result = Result("hot-add", "", "6.1", "", "", "c", update)
    seen = Observed(busy_cpu=2, busy_pid=7, registers=BUSY)
    judge._judge_registers(result, read_scenario("hot-add").expect[update], seen, cpus)
    check = result.checks[0]
    assert check.ok is (is_found if update == "in-place" else not is_found)


def test_missing_dump_that_is_a_known_fault_is_a_fault() -> None:
    scenario = read_scenario("hot-add")
    expect = {"reload": replace(scenario.expect["reload"], dump=False, fault="a wrong header")}
    result = Result("hot-add", "", "arm64-6.1", "", "", "c", "reload")
    judge.judge(result, replace(scenario, expect=expect), Observed(capture_started=True, vmcore_error="it failed"))
    assert (result.outcome, result.reason) == ("fault", "a wrong header")


def test_judge_fails_a_missing_dump() -> None:
    result = Result("hot-add", "", "6.1", "", "", "c", "reload")
    judge.judge(result, read_scenario("hot-add"), Observed(dimms={"d0": DIMM}))
    assert (result.outcome, result.reason) == ("fail", "vmcore: no capture kernel started")
    assert (result.dimms, result.audit) == ({"d0": DIMM}, None)


def test_panic_at_a_random_moment_is_recorded_and_not_judged() -> None:
    result = Result("panic-in-a-storm", "", "6.1", "", "", "c", "reload")
    judge.judge(result, read_scenario("panic-in-a-storm"), Observed(dimms={"d0": DIMM}, online={"d0"}))
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
def test_recorded_dump_is_complete_or_stale(
    monkeypatch: pytest.MonkeyPatch, online: set[str], gone: dict[str, tuple[int, int]],
    described: list[tuple[int, int]], reason: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("crash_hotplug_lab.qemu.dump.ranges", lambda _vmcore, _architecture: described)
    result = Result("panic-in-50-updates", "", "6.1", "", "", "c", "in-place")
    seen = Observed(dimms={"d0": DIMM}, online=online, gone=gone, vmcore=Path("vmcore"))
    judge.judge(result, read_scenario("panic-in-50-updates"), seen)
    assert (result.outcome, result.reason) == ("recorded", reason)


def test_expected_finding_may_be_about_one_block_of_a_device() -> None:
    expectation = read_scenario("virtio-mem-shrink").expect["kernel"]
    wanted = judge.wanted_findings(expectation, {"vm0": (4 << 30, (4 << 30) + (512 << 20))})
    assert wanted == {("memory-described-but-gone", (4 << 30, (4 << 30) + (128 << 20)))}
