# SPDX-License-Identifier: MIT
"""Real kernels under QEMU, hot-plugged and crashed: every class of scenario once, on 6.1 and 6.12.

Everything is downloaded as `crash-hotplug-lab fetch` does it; where that cannot be (no apt, no archive within reach),
the tests are skipped with that reason.  `make lab-full` runs the whole matrix.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import plan, session
from crash_hotplug_lab.qemu.errors import LabError
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
    try:
        with one_at_a_time():
            return {kernel.key: kernel for kernel in session.prepare(["6.1", "6.12"], print)}
    except LabError as error:
        pytest.skip(f"the lab cannot be set up here: {error}")


@pytest.mark.parametrize(("name", "key", "loader", "update", "outcome"), RUNS)
def test_scenario_run_on_a_real_kernel(
    lab_kernels: dict[str, Kernel], tmp_path: Path, name: str, key: str, loader: str, update: str, outcome: str
) -> None:
    result = asyncio.run(session.run_once(lab_kernels[key], plan.read(name), loader, update, tmp_path, print))
    log = (tmp_path / "serial.log").read_text(errors="replace")
    shown = "\n".join([*(f"{c.name}: {c.ok} {c.detail}" for c in result.checks), log[-3000:]])
    assert result.outcome == outcome, f"{result.reason}\n{shown}"
