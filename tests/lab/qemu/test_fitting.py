# SPDX-License-Identifier: MIT
"""Scenarios fitted to guests without CPU hot-plug, and to guests with large memory blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crash_hotplug.core.finding import Kind
from crash_hotplug_lab.qemu import plan
from crash_hotplug_lab.qemu.fitting import fit
from crash_hotplug_lab.qemu.guest_architecture import ARCHITECTURES
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.scenario import format as scenario_format
from crash_hotplug_lab.scenario.records import Scenario

_GIB = 1 << 30


def kernel(release: str, arch: str) -> Kernel:
    key = ".".join(release.split(".")[:2])
    return Kernel(key, "1", release, Path("vmlinuz"), Path("modules"), "trixie", arch)


def steps(scenario: Scenario) -> list[str]:
    return [str(action) for action in scenario.actions]


def test_fit_leaves_every_scenario_of_x86_64_as_it_is() -> None:
    for scenario in plan.bundled():
        if scenario.machine.architectures == ("arm64",):
            continue
        devices = {action.arguments.get("device", action.do) for action in scenario.actions}
        oldest = 2 if "cxl" in devices else 1 if "add-virtio-mem" in devices else 0
        for series in ("5.10.0", "6.1.0", "6.12.0", "7.3.0")[oldest:]:
            assert fit(scenario, kernel(series, "x86_64")) == (scenario, ""), scenario.name


def test_fit_refuses_virtio_mem_where_the_driver_would_refuse_the_device() -> None:
    grows = plan.read("virtio-mem-grow")
    assert fit(grows, kernel("5.10.0", "x86_64"))[1].endswith("a driver that reads no unplugged memory (Linux 5.16)")
    add, *others = grows.actions
    readable = replace(add, arguments={**add.arguments, "options": "unplugged-inaccessible=off"})
    assert fit(replace(grows, actions=(readable, *others)), kernel("5.10.0", "x86_64"))[1] == ""


def test_fit_refuses_cxl_memory_where_the_kernel_makes_no_region_of_it() -> None:
    memory = plan.read("cxl-memory")
    assert fit(memory, kernel("6.1.0", "x86_64"))[1] == "the kernel makes no region of volatile CXL memory (Linux 6.3)"
    assert fit(memory, kernel("6.12.0", "x86_64"))[1] == ""
    refusal = fit(memory.counted(), kernel("6.12.0", "x86_64"))[1]
    assert refusal.startswith("with --count-instructions the CPU has the flag hypervisor")
    assert fit(plan.read("driver-added-memory").counted(), kernel("6.12.0", "x86_64"))[1] == ""


def test_fit_replaces_a_plugged_cpu_by_cpu_1_which_no_header_lacks() -> None:
    fitted, refusal = fit(plan.read("hot-add"), kernel("6.12.0", "arm64"))
    assert refusal == ""
    assert fitted.time_limit == 2 * plan.read("hot-add").time_limit
    assert steps(fitted) == ["offline-cpu 1", "online-cpu 1", "add-dimm d0 256M", "update", "plant d0", "busy 1",
                             "panic 0"]  # fmt: skip
    assert [finding.kind for finding in fitted.expect["nothing"].findings] == [Kind.MEMORY_MISSING]
    assert fitted.title.endswith("(CPU 1 goes offline and online in place of CPU hot-plug)")


def test_fit_moves_the_panic_from_a_plugged_cpu_to_cpu_1() -> None:
    fitted, _ = fit(plan.read("panic-on-added-cpu"), kernel("6.12.0", "arm64"))
    assert steps(fitted)[-1] == "panic 1"


def test_fit_expects_of_a_patched_kernel_no_finding_that_the_patch_corrects() -> None:
    expected = {
        key: fit(plan.read("remove-dimm"), replace(kernel("7.2.0", "x86_64"), key=key))[0].expect["kernel"]
        for key in ("7.2b", "7.2p")
    }
    assert [finding.kind for finding in expected["7.2b"].findings] == [Kind.MEMORY_GONE]
    assert expected["7.2p"].findings == ()


def test_fit_expects_a_dump_of_an_arm64_kernel_whose_patch_leaves_out_removed_memory() -> None:
    dumps = {
        key: fit(plan.read("remove-dimm"), replace(kernel("7.2.0", "arm64"), key=key))[0].expect["kernel"].dump
        for key in ("7.2hf", "7.2hpf")
    }
    assert dumps == {"7.2hf": False, "7.2hpf": True}


def test_fit_keeps_commands_and_refusals_where_a_cpu_is_replaced() -> None:
    for name in ("refusals", "without-privilege", "layout-from-table"):
        fitted, refusal = fit(plan.read(name), kernel("6.12.0", "arm64"))
        assert refusal == "", name
        assert not {"add-cpu", "remove-cpu"} & {action.do for action in fitted.actions}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("storm-watch", "QEMU has no CPU hot-plug on arm64"),
        ("outgrown-header", "arm64 kernels have no memmap=, which makes holes in RAM"),
    ],
)
def test_fit_gives_the_reason_where_a_scenario_cannot_run(name: str, words: str) -> None:
    scenario = plan.read(name)
    assert fit(scenario, kernel("6.12.0", "arm64")) == (scenario, words)


def test_fit_refuses_a_scenario_for_another_architecture(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[machine]\narchitectures = ["x86_64"]\n[[step]]\ndo = "panic"\ncpu = 0\n[expect.nothing]\n')
    _, refusal = fit(plan.read(str(path)), kernel("6.12.0", "arm64"))
    assert refusal == "the scenario is for x86_64 only"


def test_fit_enlarges_dimms_and_distances_where_memory_blocks_are_larger() -> None:
    fitted, refusal = fit(plan.read("eight-dimms"), kernel("5.10.0", "arm64"))
    assert refusal == ""
    dimms = [a.arguments for a in fitted.actions if a.do == "add-dimm"]
    assert {dimm["size"] for dimm in dimms} == {_GIB}
    assert [dimm["address"] for dimm in dimms] == [4 * _GIB + n * 3 * _GIB for n in range(8)]


def test_fit_refuses_more_memory_than_the_guest_has_struct_pages_for() -> None:
    _, refusal = fit(plan.read("hundred-dimms"), kernel("5.10.0", "arm64"))
    assert refusal == ("memory blocks have 1 GiB: struct pages of all DIMMs do not fit into the guest's RAM")


def test_scenario_files_and_lab_know_the_same_architectures() -> None:
    assert tuple(ARCHITECTURES) == scenario_format.ARCHITECTURES


def test_fit_expects_no_dump_of_gone_memory_where_reading_it_aborts() -> None:
    scenario = plan.read("remove-loaded-dimm")
    fitted, _ = fit(scenario, kernel("6.12.0", "arm64"))
    assert [fitted.expect[update].dump for update in ("nothing", "reload", "in-place")] == [False, True, True]
    assert fitted.expect["nothing"].findings == ()
    assert fitted.expect["reload"] == scenario.expect["reload"]
