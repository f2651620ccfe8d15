# SPDX-License-Identifier: MIT
"""The search covers the code that a server runs: a fault planted in it is found."""

from __future__ import annotations

from types import ModuleType

import pytest

from crash_hotplug.core import plan, reserved_region, update
from crash_hotplug_lab.model.explore import explore
from crash_hotplug_lab.scenario.file import read_scenario
from tests.lab.planted_fault import planted

LOCKED, CARELESS = "other-loader-with-lock", "other-loader-without-lock"
FAULTS = {
    "the lock is not taken": (LOCKED, update, "while not machine.try_lock():", "while False:"),
    "identity and listed segments are not compared again": (
        CARELESS,
        update,
        "if not dropped or machine.image_loaded():",
        "if False:",
    ),
    "the samples are taken after the call": (
        CARELESS,
        update,
        "                _read_back(after, task, samples, say)",
        "                _read_back(after, task, sample_pages(task.plan.kept, after.read_phys), say)",
    ),
    "the digest is not patched": (
        "driver-added-memory",
        plan,
        "if move is None and not digest_covers(regions, old_place):",
        "if move is None:",
    ),
    "control pages overwrite a segment that is not listed": (
        "driver-added-memory",
        reserved_region,
        "if not hit:",
        "if True:",
    ),
}


@pytest.mark.parametrize(("name", "module", "right", "wrong"), FAULTS.values(), ids=FAULTS)
def test_fault_in_the_shipped_update_is_found(name: str, module: ModuleType, right: str, wrong: str) -> None:
    scenario = read_scenario(name)
    with planted(module, right, wrong):
        found = explore(scenario, "in-place", until_fault=True)
    assert found.never_may_be(scenario) > 0
