# SPDX-License-Identifier: MIT
"""A snapshot of a live machine: the files that only such a machine has, and those that may not be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux import btf_file, kallsyms
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.snapshot import take_snapshot, write_directory
from crash_hotplug.linux.sysroot import Sysroot
from tests.failing_calls import RestorableKexec
from tests.trees import tree


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RestorableKexec:
    monkeypatch.setattr(kallsyms, "_live", {})
    monkeypatch.setattr(btf_file, "_live_layout", lambda: None)
    return RestorableKexec(tmp_path)


def test_snapshot_of_a_live_machine_keeps_the_notes_of_absent_cpus_and_the_image(
    fake: RestorableKexec, tmp_path: Path
) -> None:
    snapshot = take_snapshot(fake.sysroot)
    assert snapshot.missing == []
    notes = json.loads(snapshot.files["/possible-cpus.json"])["crash_notes"]
    assert len(notes) == 8
    assert snapshot.files["/crash-image/elfcorehdr"].startswith(fake.header[:64])
    assert len(snapshot.files["/proc/kcore"]) < 4096  # its headers, not memory
    write_directory(snapshot, str(tmp_path / "saved"))
    assert read_machine(Sysroot(str(tmp_path / "saved"))).cpus == read_machine(fake.sysroot).cpus


def test_snapshot_without_a_loaded_image_has_none(fake: RestorableKexec) -> None:
    fake.unload()
    snapshot = take_snapshot(fake.sysroot)
    assert not any(path.startswith("/crash-image") for path in snapshot.files)
    assert snapshot.missing == []


def test_snapshot_names_each_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Sysroot.read

    def refused(sysroot: Sysroot, path: str, limit: int = 64 << 10) -> bytes | None:
        if path in ("/sys/devices/system/memory/memory3/state", "/proc/kcore"):
            raise CannotTellError(f"{path} cannot be read")
        return read(sysroot, path, limit)

    monkeypatch.setattr(Sysroot, "read", refused)
    snapshot = take_snapshot(Sysroot(str(tree("6.1-c", 1))))
    assert snapshot.missing == ["/sys/devices/system/memory/memory3/state cannot be read"]


@pytest.mark.parametrize("missing", ["proc/kallsyms", "proc/kcore"])
def test_snapshot_names_kernel_files_that_do_not_exist(fake: RestorableKexec, missing: str) -> None:
    (fake.root / missing).unlink()
    sentences = take_snapshot(Sysroot(str(fake.root))).missing
    assert any(f"{missing} does not exist" in sentence for sentence in sentences)
