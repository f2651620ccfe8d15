# SPDX-License-Identifier: MIT
"""The machine of files on which updates run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.linux.fake_kexec import FakeKexec


@pytest.fixture
def fake(tmp_path: Path) -> FakeKexec:
    """Return a machine with an image that lacks a CPU and a DIMM."""
    return FakeKexec(tmp_path)
