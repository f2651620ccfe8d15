# SPDX-License-Identifier: MIT
"""The estimated time of a kexec_load."""

from __future__ import annotations

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.plan import NewSegment, UpdatePlan
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.linux.loading import call_time
from crash_hotplug.linux.loading.call_time import estimate_call


def test_time_of_a_call_is_that_of_its_pages_and_of_their_protection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_time, "_seconds_per_page", lambda: (0.5, 0.001))
    segments = (NewSegment(0x1000, b"", 3 * PAGE, ""), NewSegment(0x9000, b"", PAGE, ""))
    plan = UpdatePlan(0x1000, segments, (), Range(0, 2 * PAGE), False)
    found = estimate_call(plan, RangeList([(0, 1000 * PAGE)]))
    assert found.seconds == pytest.approx(6 * 0.5 + 2 * 1000 * 0.001)
    assert found.basis.startswith("6 pages written and the protection of 1000 changed twice")


def test_time_of_a_page_is_measured() -> None:
    copy, protect = call_time._seconds_per_page()
    assert 0 < copy < 1
    assert 0 < protect < 1
