# SPDX-License-Identifier: MIT
"""Dumps out of files and pipes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.vmcore_file import VmcoreFile


def test_vmcore_that_gives_a_part_at_a_time_is_read_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmcore").write_bytes(bytes(range(100)))
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 7), offset))
    with VmcoreFile(str(tmp_path / "vmcore")) as vmcore:
        assert vmcore.size == 100
        assert vmcore.read_at(10, 50) == bytes(range(10, 60))
        assert vmcore.read_at(90, 50) == bytes(range(90, 100))
        assert vmcore.read_at(200, 50) == b""


def test_vmcore_that_cannot_be_read_is_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> bytes:
        raise OSError(5, "Input/output error")

    (tmp_path / "vmcore").write_bytes(bytes(100))
    with VmcoreFile(str(tmp_path / "vmcore")) as vmcore:
        monkeypatch.setattr(os, "pread", refused)
        with pytest.raises(CannotTellError, match="cannot be read at byte 10: Input/output error"):
            vmcore.read_at(10, 50)
