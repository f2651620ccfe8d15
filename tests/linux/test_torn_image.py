# SPDX-License-Identifier: MIT
"""The memory that an image is torn: about one image, until it is proven whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.torn_image import PATH, mark_torn, why_torn


@pytest.fixture
def sysroot(tmp_path: Path) -> Sysroot:
    (tmp_path / "proc").mkdir()
    return Sysroot(str(tmp_path))


def test_torn_image_is_remembered_until_it_is_proven_whole(sysroot: Sysroot) -> None:
    assert why_torn(sysroot, b"one") is None
    mark_torn(sysroot, b"one", "a segment changed")
    assert why_torn(sysroot, b"one") == "a segment changed"
    assert why_torn(sysroot, b"another") is None
    mark_torn(sysroot, b"another", None)  # says nothing about the first
    assert why_torn(sysroot, b"one") == "a segment changed"
    mark_torn(sysroot, b"one", None)
    assert why_torn(sysroot, b"one") is None
    assert not Path(sysroot.locate(PATH)).exists()


def test_mark_that_cannot_be_written_or_read_is_none(sysroot: Sysroot) -> None:
    path = Path(sysroot.locate(PATH))
    path.parent.parent.mkdir()
    path.parent.write_text("a file in place of the directory")
    mark_torn(sysroot, b"one", "a segment changed")
    assert why_torn(sysroot, b"one") is None
    path.parent.unlink()
    path.parent.mkdir()
    path.write_bytes(b"\xff\n")
    assert why_torn(sysroot, b"one") is None
