# SPDX-License-Identifier: MIT
"""Settings for the tests of the lab."""

from __future__ import annotations

import pytest

from crash_hotplug_lab.qemu import dump
from tests import schemas


@pytest.fixture(autouse=True)
def _objects_of_other_processes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Check what `status` and `audit` print about the snapshots and vmcores of guests."""
    monkeypatch.setattr(dump, "own_command", schemas.checking(dump.own_command))
