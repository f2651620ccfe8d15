# SPDX-License-Identifier: MIT
"""What a look of the watch service costs, over a machine of files (a real one has no links to follow in its tree)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from crash_hotplug.linux.service.reconciler import Reconciler
from tests.linux.fake_kexec import FakeKexec


@pytest.fixture
def looker(tmp_path: Path) -> Reconciler:
    fake = FakeKexec(tmp_path)
    looker = Reconciler(fake.machine(), fake.sysroot)
    looker.look(is_quiet=True)
    return looker


def test_look_that_finds_nothing_changed(benchmark: BenchmarkFixture, looker: Reconciler) -> None:
    assert benchmark(looker.look, is_quiet=True).was_cheap


def test_look_that_reads_and_judges_everything(benchmark: BenchmarkFixture, looker: Reconciler) -> None:
    def look() -> bool:
        looker.forget()
        return looker.look(is_quiet=True).was_cheap

    assert not benchmark(look)
