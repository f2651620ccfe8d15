# SPDX-License-Identifier: MIT
"""A kernel that has kexec_file_load alone, as RHEL 10's: updates in place are refused, and the image is reloaded."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.reload import update_or_reload
from crash_hotplug.core.steps import Steps
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.loading.system_calls import KexecError
from tests.linux.fake_kexec import FakeKexec

SENTENCE = "kexec_load failed: this kernel has no kexec_load (CONFIG_KEXEC is off, as in RHEL 10)"


@pytest.fixture
def fake(tmp_path: Path) -> FakeKexec:
    """Return a machine with new memory, whose kernel refuses the call before it drops the image."""
    fake = FakeKexec(tmp_path)
    fake.add_ranges(2)

    def refuse() -> None:
        raise KexecError(errno.ENOSYS)

    fake.before_load = refuse
    return fake


def test_update_in_place_fails_with_the_reason_and_leaves_the_image(fake: FakeKexec) -> None:
    before = fake.image()
    report = fake.update()
    assert report.outcome is Outcome.FAILED
    assert SENTENCE in report.sentence
    assert fake.image() == before


def test_update_reloads_the_image_instead(fake: FakeKexec) -> None:
    reasons = []

    def by_reload(why: str) -> Steps[Report]:
        reasons.append(why)
        yield from ()
        return Report(Outcome.RELOADED, f"kdumpctl reload: {why}")

    report = run_patiently(update_or_reload(fake.machine(), Wants(), by_reload))
    assert report.outcome is Outcome.RELOADED
    assert len(reasons) == 1
    assert SENTENCE in reasons[0]
