# SPDX-License-Identifier: MIT
"""The runs that the options of `crash-hotplug-lab run` choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.finding import Kind
from crash_hotplug_lab.qemu import guest_run, plan
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.scenario.format import ACTIONS, MEASUREMENTS, MODEL


def kernel(key: str) -> Kernel:
    return Kernel(key, "1", f"{key}.0-cloud-amd64", Path("vmlinuz"), Path("modules"), "trixie")


def planned(name: str, key: str, loaders: list[str], updates: list[str]) -> list[tuple[str, str, bool]]:
    runs = plan.plan([plan.read(name)], [kernel(key)], loaders, updates)
    return [(run.loader, run.update, bool(run.skipped)) for run in runs]


def test_plan_has_the_natural_loader_and_every_update() -> None:
    assert planned("hot-add", "6.1", [], []) == [
        ("c", "nothing", False),
        ("c", "reload", False),
        ("c", "in-place", False),
        ("c", "watch", False),
    ]
    assert planned("hot-add", "6.12", [], []) == [
        ("s", "kernel", False),
        ("s", "reload", False),
        ("s", "in-place", False),
        ("s", "watch", False),
    ]


def test_image_loaded_without_hotplug_is_updated_by_no_kernel() -> None:
    assert planned("hot-add", "6.12", ["c"], ["nothing", "kernel"]) == [("c", "nothing", False)]


def test_known_broken_combination_is_skipped_with_a_reason() -> None:
    assert planned("hot-add", "6.1", ["all"], ["nothing"]) == [
        ("c", "nothing", False),
        ("s", "nothing", False),
        ("ch", "nothing", True),
    ]


SKIPPED = [known for known in plan.KNOWN_BROKEN if not known.runs]


@pytest.mark.parametrize("known", SKIPPED, ids=lambda known: f"{known.kernel}-{known.loader}")
def test_known_broken_combinations_are_skipped_with_their_reason(known: plan.Known) -> None:
    name = "hot-add" if known.scenario == "*" else known.scenario.replace("*", "updates")
    arch, _, key = known.kernel.rpartition("-")
    key = {"*": "6.12", "*[!f]": "6.12", "*f": "6.12f"}.get(key, key)
    one = replace(kernel(key), arch=arch or "x86_64")
    runs = plan.plan([plan.read(name)], [one], [known.loader.replace("*", "c")], [])
    assert known.reason in {run.skipped for run in runs}


def test_known_broken_header_of_kexec_tools_is_run_and_has_to_leave_no_dump() -> None:
    arm64 = replace(kernel("6.1"), arch="arm64")
    found = {run.update: run for run in plan.plan([plan.read("hot-add")], [arm64], [], [])}
    assert [run.skipped for run in found.values()] == ["", "", "", ""]
    expected = {update: (run.scenario.expect[update].dump, run.scenario.expect[update].fault != "")
                for update, run in found.items()}  # fmt: skip
    assert expected == {"nothing": (False, True), "reload": (False, True), "in-place": (True, False),
                        "watch": (True, False)}  # fmt: skip


def test_kexec_of_ones_own_has_none_of_the_faults_of_debians() -> None:
    own = replace(kernel("6.1"), arch="arm64", kexec=Path("kexec"))
    (run,) = plan.plan([plan.read("hot-add")], [own], ["c"], ["reload"])
    assert (run.scenario.expect["reload"].dump, run.scenario.expect["reload"].fault) == (True, "")


def test_plan_for_arm64_has_the_loader_of_its_kernels_and_names_the_architecture() -> None:
    arm64 = replace(kernel("6.12"), arch="arm64")
    runs = plan.plan([plan.read("hot-add")], [arm64], [], [])
    assert [run.name for run in runs] == [
        f"hot-add-arm64-6.12-c-{update}" for update in ("nothing", "reload", "in-place", "watch")
    ]
    (refused,) = plan.plan([plan.read("hot-add")], [arm64], ["s"], ["nothing"])
    assert refused.skipped == "Debian's arm64 kernels have no kexec_file_load"


def test_plan_has_only_updates_with_an_expectation() -> None:
    assert planned("flipped-byte", "6.12", [], []) == [("s", "kernel", False)]


def test_in_place_runs_with_every_loader() -> None:
    assert planned("hot-add", "6.12", ["all"], ["in-place"]) == [(name, "in-place", False) for name in ("c", "s", "ch")]


def test_header_of_kexec_tools_that_can_be_read_is_a_fault_with_findings_of_its_own() -> None:
    one = replace(kernel("5.10"), arch="arm64")
    update_of = {run.update: run for run in plan.plan([plan.read("hot-add")], [one], ["c"], [])}
    expected = update_of["reload"].scenario.expect["reload"]
    assert (expected.dump, expected.fault_kinds) == (True, (Kind.WRONG_KERNEL_TEXT, Kind.WRONG_DIRECT_MAP))
    assert update_of["nothing"].scenario.expect["nothing"].findings
    assert update_of["in-place"].scenario.expect["in-place"].fault == ""


def test_unknown_loader_is_a_sentence() -> None:
    with pytest.raises(LabError, match="no loader is known as grub"):
        planned("hot-add", "6.1", ["grub"], [])


def test_repeated_runs_have_names_of_their_own() -> None:
    runs = plan.plan([plan.read("panic-in-a-storm")], [kernel("6.1")], [], ["reload"], repeat=3)
    assert [run.name for run in runs] == [f"panic-in-a-storm-6.1-c-reload-{n}" for n in (1, 2, 3)]


def test_own_loader_runs_where_it_is_asked_for_and_in_scenarios_for_it() -> None:
    assert ("own", "in-place", False) not in planned("hot-add", "6.12", ["all"], ["in-place"])
    assert planned("hot-add", "6.12", ["own"], ["in-place"]) == [("own", "in-place", False)]
    assert planned("own-load", "6.12", [], []) == [("own", "kernel", False), ("own", "in-place", False)]
    assert planned("own-load", "6.1", [], []) == [("own", "nothing", False), ("own", "in-place", False)]


def test_format_and_guest_know_the_same_actions(tmp_path: Path) -> None:
    result = Result("hot-add", "", "6.1", "", "", "c", "nothing")
    machine = QemuMachine(kernel("6.1"), tmp_path, tmp_path)
    guest = guest_run.GuestRun(machine, plan.read("hot-add"), "c", "nothing", tmp_path, result, print)
    assert guest._actions.keys() == {do for do, kind in ACTIONS.items() if kind.only != MODEL}
    assert {*guest_run._PROGRAMS, "bench"} == {*MEASUREMENTS}


def test_bundled_scenarios_with_expectations_run_under_qemu() -> None:
    names = [scenario.name for scenario in plan.bundled()]
    assert len(names) >= 30
    assert [plan.read(name).name for name in names] == names


def test_scenario_that_is_for_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="QEMU cannot run virtio-mem: only the model has the key blocks of the step add-virtio"
    ):
        plan.read("virtio-mem")
    path = tmp_path / "mine.toml"
    path.write_text('[[step]]\ndo = "panic"\ncpu = 0\n')
    with pytest.raises(
        InputError, match=r"mine.toml has no \[expect.UPDATE\] table, for any UPDATE of nothing, kernel"
    ):
        plan.read(str(path))
