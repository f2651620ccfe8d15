# SPDX-License-Identifier: MIT
"""``crash-hotplug load``: the load that its arguments request, and its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.cli import load
from crash_hotplug.cli.load import capture_cmdline
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.reload import Loaded
from crash_hotplug.linux.loading.capture_kernel import Strategy
from crash_hotplug.linux.loading.load import LoadRecord
from tests.cli.running import run

Asked = list[tuple[LoadRecord, bool]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Record the requested loads, and whether the room is a must."""
    made: Asked = []

    def load_once(_machine: object, record: LoadRecord, room_is_a_must: bool, _say: object) -> Loaded:
        made.append((record, room_is_a_must))
        return Loaded("kexec_file_load", None)

    monkeypatch.setattr(load, "load_once", load_once)
    return made


def test_load_loads_a_kernel_and_makes_it_ready(
    asked: Asked, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run(capsys, "load", "vmlinuz", "--initrd", "initrd", "--append", "nr_cpus=1 panic=1")
    assert (ran.code, ran.out) == (0, "loaded: by kexec_file_load; ready for hot-plug\n")
    record, must = asked[0]
    assert record.files == (f"{tmp_path}/vmlinuz", f"{tmp_path}/initrd", "nr_cpus=1 panic=1", False)
    assert (record.strategy, record.memory_ranges, record.hotplug_size, must) == (Strategy.AUTO, 8192, None, False)
    assert run(capsys, "load", "vmlinuz", "--json").json["ready_for_hotplug"] is True


def test_allow_unsigned_is_passed_on(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "load", "k", "--allow-unsigned").code == 0
    assert asked[0][0].files.allow_unsigned is True


def test_requested_room_is_a_must(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "load", "k", "--hotplug-size", "0x20000", "--strategy", "kexec-tools")
    run(capsys, "load", "k", "--max-memory-ranges", "100", "--strategy", "file")
    found = [(record.hotplug_size, record.memory_ranges, record.strategy.value, must) for record, must in asked]
    assert found == [(0x20000, 8192, "kexec-tools", True), (None, 100, "file", True)]


def test_load_reports_why_the_image_is_not_ready(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_once", lambda *_: Loaded("kexec_file_load", "lockdown (integrity) forbids it"))
    ran = run(capsys, "load", "k")
    assert (ran.code, "not made ready for hot-plug: lockdown" in ran.out) == (0, True)
    assert run(capsys, "load", "k", "--max-memory-ranges", "9").code == 1


def test_refused_load_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> Loaded:
        raise CrashHotplugError("kexec_file_load failed: it is forbidden; the previous image is still loaded")

    monkeypatch.setattr(load, "load_once", refused)
    ran = run(capsys, "load", "k")
    assert (ran.code, ran.err.strip().endswith("the previous image is still loaded")) == (1, True)


def test_unload_calls_the_unloader(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(load, "unload", lambda _machine: done.append("unloaded"))
    ran = run(capsys, "load", "--unload")
    assert (ran.code, ran.out) == (0, "unloaded: no crash image is loaded now\n")
    assert run(capsys, "load", "--unload", "--json").json["outcome"] == "unloaded"
    assert done == ["unloaded", "unloaded"]


def test_reused_command_line_lacks_the_options_of_the_running_kernel() -> None:
    own = "BOOT_IMAGE=/vmlinuz root=/dev/sda1 crashkernel=192M quiet hugepages=64"
    assert capture_cmdline(own, "nr_cpus=1") == "root=/dev/sda1 quiet nr_cpus=1"
    assert capture_cmdline("", "") == ""


def test_wrong_usage_loads_nothing(asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ("load",),
        ("load", "k", "--unload"),
        ("load", "k", "--max-memory-ranges", "0"),
        ("load", "k", "--hotplug-size", "0"),
        ("load", "k", "--hotplug-size", "64K"),
        ("load", "k", "--hotplug-size", "0x10000000"),
        ("load", "k", "--hotplug-size", "-4096"),
        ("load", "k", "--hotplug-size", "65536", "--max-memory-ranges", "8"),
        ("load", "k", "--strategy", "magic"),
        ("load", "k", "--strategy", "file", "--allow-unsigned"),
    ):
        assert run(capsys, *arguments).code == 2
    assert asked == []
