# SPDX-License-Identifier: MIT
"""Real kernels under QEMU, hot-plugged and crashed: every class of scenario once, on 6.1 and 6.12, and on arm64 one.

Everything is downloaded as `crash-hotplug-lab fetch` does it; where that cannot be (no apt, no archive within reach),
the tests are skipped with that reason.  `make lab-full` runs the whole matrix.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import plan, session
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import ARM64, X86_64, GuestArchitecture
from crash_hotplug_lab.qemu.kernels import Kernel
from tests.lab.qemu.fetching import one_at_a_time

pytestmark = pytest.mark.lab

RUNS = [
    ("hot-add", "6.1", "c", "nothing", "pass"),
    ("hot-add", "6.12", "ch", "kernel", "pass"),
    ("hot-add", "6.1", "c", "in-place", "pass"),
    ("own-load", "6.12", "own", "in-place", "pass"),
    ("no-room-for-every-cpu", "6.1", "s", "in-place", "pass"),
    ("failed-reload", "6.1", "c", "in-place", "pass"),
    ("add-remove-add", "6.1", "c", "watch", "pass"),
    ("panic-on-added-cpu", "6.1", "s", "reload", "pass"),
    ("eight-dimms", "6.12", "s", "kernel", "pass"),
    ("remove-dimm", "6.12", "s", "kernel", "fault"),
    ("remove-cpu", "6.1", "c", "reload", "pass"),
    ("offline-block", "6.1", "s", "nothing", "pass"),
    ("flipped-byte", "6.12", "c", "nothing", "pass"),
]


@pytest.fixture(scope="session")
def lab_kernels() -> dict[str, Kernel]:
    return prepared(["6.1", "6.12"], X86_64)


def prepared(keys: list[str], architecture: GuestArchitecture) -> dict[str, Kernel]:
    try:
        with one_at_a_time():
            return {kernel.key: kernel for kernel in session.prepare(keys, print, architecture=architecture)}
    except LabError as error:
        pytest.skip(f"the lab cannot be set up here: {error}")


@pytest.mark.parametrize(("name", "key", "loader", "update", "outcome"), RUNS)
def test_scenario_run_on_a_real_kernel(
    lab_kernels: dict[str, Kernel], tmp_path: Path, name: str, key: str, loader: str, update: str, outcome: str
) -> None:
    run_scenario(lab_kernels[key], name, loader, update, outcome, tmp_path)


@pytest.mark.parametrize("update", ["nothing", "in-place"])
def test_dump_of_an_arm64_kernel_has_the_dimm_that_an_update_described(update: str, tmp_path: Path) -> None:
    """With no update the scenario expects that the dump lacks it."""
    kernel = prepared(["6.12"], ARM64)["6.12"]
    run_scenario(kernel, "hot-add", "c", update, "pass", tmp_path)


def run_scenario(kernel: Kernel, name: str, loader: str, update: str, outcome: str, directory: Path) -> None:
    (run,) = plan.plan([plan.read(name)], [kernel], [loader], [update])
    result = asyncio.run(session.run_once(kernel, run.scenario, loader, update, directory, print))
    log = (directory / "serial.log").read_text(errors="replace")
    shown = "\n".join([*(f"{c.name}: {c.ok} {c.detail}" for c in result.checks), log[-3000:]])
    assert result.outcome == outcome, f"{result.reason}\n{shown}"
