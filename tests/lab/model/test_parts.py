# SPDX-License-Identifier: MIT
"""The table in docs/simulate.md: each part of the system, its code and its test exist."""

from __future__ import annotations

import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.arch.x86_64 import default_profile
from crash_hotplug_lab.model.hotplug import add_memory
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.policies import V6, Merged
from crash_hotplug_lab.model.user_space import Kexec, LoadCall

ROOT = Path(__file__).parents[3]
ROWS = re.findall(
    r"^\| .* \| `([\w.]+):([\w.]+)` \| `([\w/.]+)::(\w+)` \|$", (ROOT / "docs/simulate.md").read_text(), re.M
)


def test_docs_table_has_every_part() -> None:
    assert len(ROWS) >= 17


@pytest.mark.parametrize(("module", "name", "file", "test"), ROWS)
def test_docs_table_names_code_and_tests_that_exist(module: str, name: str, file: str, test: str) -> None:
    reduce(getattr, name.split("."), importlib.import_module(module))
    assert f"def {test}(" in (ROOT / file).read_text()


def with_handler(release: str, *, merged: bool) -> ModelMachine:
    machine = boot(default_profile(release, has_v6_patches=not merged))
    install_in_kernel_handler(machine, Merged() if merged else V6())
    run(Kexec(small_capture_kernel(), LoadCall.KEXEC_FILE_LOAD).load(machine))
    return machine


def test_merged_handler_waits_for_its_own_mutex_and_v6_has_none() -> None:
    for release, merged in (("6.12.0", True), ("5.18.0", False)):
        machine = with_handler(release, merged=merged)
        machine.crash_hotplug_locked = True
        steps = add_memory(machine, "dimm0", Range(4 << 30, (4 << 30) + (128 << 20)))
        waited = False
        for step in steps:
            waited = waited or step.waits
            if waited:
                machine.crash_hotplug_locked = False
        assert waited is merged
        assert machine.reports[-1].outcome is Outcome.UPDATED


@pytest.mark.parametrize(("release", "merged"), [("6.12.0", True), ("5.18.0", False)])
def test_handlers_lose_the_event_when_the_kexec_lock_is_taken(release: str, merged: bool) -> None:
    machine = with_handler(release, merged=merged)
    machine.kexec_locked = True
    run(add_memory(machine, "dimm0", Range(4 << 30, (4 << 30) + (128 << 20))))
    assert machine.reports[-1].outcome is Outcome.LOCK_BUSY
