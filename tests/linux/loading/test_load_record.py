# SPDX-License-Identifier: MIT
"""The record of a load is written, and read only where root has written it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy
from crash_hotplug.linux.loading.load import LoadRecord, forget_record, read_record, save_record

RECORD = LoadRecord(CaptureKernel("/boot/vmlinuz", "/boot/initrd", "nr_cpus=1"), Strategy.AUTO, 8192, None)
OTHER = LoadRecord(CaptureKernel("/k", None, "", allow_unsigned=True), Strategy.KEXEC_TOOLS, 10, 0x20000)


def test_saved_record_is_read_back(tmp_path: Path) -> None:
    directory = str(tmp_path / "run")
    assert read_record(directory) is None
    for record in (RECORD, OTHER):
        save_record(record, directory)
        assert read_record(directory) == record
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["loaded.json"]
    forget_record(directory)
    forget_record(directory)
    assert read_record(directory) is None


@pytest.mark.parametrize("value", [None, 1, "true", False])
def test_record_allows_unsigned_kernels_only_where_it_says_so(tmp_path: Path, value: object) -> None:
    save_record(OTHER, str(tmp_path))
    path = tmp_path / "loaded.json"
    content = json.loads(path.read_text())
    content.pop("allow_unsigned")
    path.write_text(json.dumps(content if value is None else {**content, "allow_unsigned": value}))
    found = read_record(str(tmp_path))
    assert found is not None
    assert found.files.allow_unsigned is False


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_record_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    save_record(RECORD, str(tmp_path))
    (tmp_path / "loaded.json").chmod(mode)
    with pytest.raises(InputError, match="may have been written by a user other than root"):
        read_record(str(tmp_path))


def test_record_behind_a_link_is_refused(tmp_path: Path) -> None:
    save_record(RECORD, str(tmp_path / "elsewhere"))
    (tmp_path / "loaded.json").symlink_to(tmp_path / "elsewhere" / "loaded.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_record(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"kernel": 1}', "[" * 9999])
def test_malformed_record_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "loaded.json"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError, match="is not a record of crash-hotplug load"):
        read_record(str(tmp_path))


@pytest.mark.parametrize(("key", "value"), [("strategy", "magic"), ("hotplug_size", "many"), ("max_memory_ranges", [])])
def test_record_with_a_wrong_value_is_refused(tmp_path: Path, key: str, value: object) -> None:
    save_record(RECORD, str(tmp_path))
    path = tmp_path / "loaded.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(InputError):
        read_record(str(tmp_path))


def test_save_record_reports_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CrashHotplugError, match="cannot be written"):
        save_record(RECORD, str(tmp_path / "file"))


def test_record_that_is_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "loaded.json", 0o600)
    with pytest.raises(InputError, match="may have been written by a user other than root"):
        read_record(str(tmp_path))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_record_of_another_user_is_refused(tmp_path: Path) -> None:
    save_record(RECORD, str(tmp_path))
    os.chown(tmp_path / "loaded.json", 65534, 65534)
    with pytest.raises(InputError, match="may have been written by a user other than root"):
        read_record(str(tmp_path))
