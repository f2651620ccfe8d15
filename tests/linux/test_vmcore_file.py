# SPDX-License-Identifier: MIT
"""Dumps out of files and pipes."""

from __future__ import annotations

import os
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.vmcore_file import VmcoreFile, VmcorePipe


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


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Callable[[bytes], VmcorePipe]]:
    """Return a function that makes a pipe out of bytes."""
    processes = []

    def make(data: bytes) -> VmcorePipe:
        (tmp_path / "piped").write_bytes(data)
        processes.append(subprocess.Popen(["cat", str(tmp_path / "piped")], stdout=subprocess.PIPE))
        assert processes[-1].stdout is not None
        return VmcorePipe(processes[-1].stdout.fileno(), "a pipe")

    yield make
    for process in processes:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=60)


def test_pipe_is_read_from_its_beginning_to_its_end(piped: Callable[[bytes], VmcorePipe]) -> None:
    data = bytes(range(256)) * 40_000  # 10 MB
    pipe = piped(data)
    assert pipe.read_at(0, 16) == data[:16]
    assert pipe.read_at(3 << 20, 1 << 20) == data[3 << 20 : 4 << 20]
    assert pipe.read_at(10, 100) == data[10:110]  # the beginning is kept
    assert pipe.read_at((4 << 20) - 5, 10) == data[(4 << 20) - 5 : (4 << 20) + 5]
    assert pipe.read_at(9_000_000, 2 << 20) == data[9_000_000:]
    assert pipe.read_at(1 << 62, 5) == b""
    assert pipe.size == len(data)


def test_pipe_that_is_read_behind_its_position_is_cannot_tell(piped: Callable[[bytes], VmcorePipe]) -> None:
    pipe = piped(bytes(6 << 20))
    assert pipe.read_at(5 << 20, 1) == b"\0"
    for offset, length in ((5 << 20, 1), (4 << 20, 1), ((4 << 20) - 1, 2)):
        with pytest.raises(CannotTellError, match=r"a pipe cannot be read again at byte .*: it is no file"):
            pipe.read_at(offset, length)
    assert pipe.read_at((5 << 20) + 1, 3) == bytes(3)


def test_pipe_keeps_little_in_memory(piped: Callable[[bytes], VmcorePipe]) -> None:
    pipe = piped(bytes(40 << 20))
    tracemalloc.start()
    assert pipe.size == 40 << 20
    _now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 << 20


def test_pipe_that_cannot_be_read_is_cannot_tell(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(CannotTellError, match="a directory cannot be read at byte 0: Is a directory"):
        VmcorePipe(descriptor, "a directory").read_at(0, 1)
    os.close(descriptor)
