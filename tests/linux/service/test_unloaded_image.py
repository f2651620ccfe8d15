# SPDX-License-Identifier: MIT
"""An update that is killed while it has unloaded an image, to read it, leaves a mark for the next start."""

from __future__ import annotations

from contextlib import closing

import pytest

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.finding import Verdict
from tests.linux.fake_kexec import FakeKexec
from tests.linux.service.test_reconciler import Reloads, looker


@pytest.mark.parametrize("is_marked", [True, False])
def test_image_that_a_killed_update_unloaded_is_reloaded_at_the_next_start(fake: FakeKexec, is_marked: bool) -> None:
    reloads = Reloads()
    if is_marked:
        with closing(fake.machine().observe()) as observation:
            observation.mark_unloaded("an update unloaded it")
    fake.unload()
    look = looker(fake, reloads=reloads).look(is_quiet=True)
    assert reloads.reasons == (["an update unloaded it"] if is_marked else [])
    assert look.outcome is (Outcome.RELOADED if is_marked else Outcome.NOT_LOADED)


def test_mark_is_void_once_an_image_is_loaded(fake: FakeKexec) -> None:
    with closing(fake.machine().observe()) as observation:
        observation.mark_unloaded("an update unloaded it")
    reloads = Reloads()
    assert looker(fake, reloads=reloads).look(is_quiet=True).verdict is Verdict.ACCURATE
    with closing(fake.machine().observe()) as observation:
        observation.mark_unloaded(None)
    fake.unload()
    assert looker(fake, reloads=reloads).look(is_quiet=True).outcome is Outcome.NOT_LOADED
    assert reloads.reasons == []
