"""``crash-hotplug load``: what it gives the kernel, and what it says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from crash_hotplug.cli import load
from crash_hotplug.cli.load import capture_cmdline
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.handler import Outcome, Report
from crash_hotplug.linux import kexec_file_load
from crash_hotplug.linux.update_once import LOOK
from tests.cli.running import run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes | None, int]]:
    """Keep what would be given to kexec_file_load: command line and flags."""
    made: list[tuple[bytes | None, int]] = []

    def call(_kernel: int, _initrd: int, cmdline: bytes | None, flags: int) -> None:
        made.append((cmdline, flags))

    def unlocked(_seconds: float) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(kexec_file_load, "_call", call)
    monkeypatch.setattr(load, "kdump_locks", unlocked)
    monkeypatch.setattr(load, "give_room", lambda *_: None)
    monkeypatch.setattr(load, "update_in_place", lambda *_: Report(LOOK, Outcome.UPDATED, "done"))
    return made


def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bytes(0x202) + b"HdrS" + bytes(100))
    return path


def test_a_kernel_is_loaded_and_made_ready(
    calls: list[tuple[bytes | None, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"initrd")
    ran = run(capsys, "load", kernel(tmp_path), "--initrd", initrd, "--append", "nr_cpus=1 panic=1")
    assert (ran.code, ran.out) == (0, "loaded: ready for hot-plug\n")
    assert run(capsys, "load", kernel(tmp_path), "--json").json["ready_for_hotplug"] is True
    assert calls == [(b"nr_cpus=1 panic=1\0", 2), (b"\0", 6)]


def test_what_keeps_it_from_being_ready_is_said(
    calls: list[tuple[bytes | None, int]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "give_room", lambda *_: "lockdown (integrity) forbids kexec_load")
    ran = run(capsys, "load", kernel(tmp_path))
    assert "not made ready for hot-plug: lockdown" in ran.out
    assert len(calls) == 1


def test_unload(calls: list[tuple[bytes | None, int]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "load", "--unload").code == 0
    assert calls == [(None, 3)]


def test_files_are_checked_before_the_loaded_image_is_dropped(
    calls: list[tuple[bytes | None, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("no kernel")
    for arguments in (
        ("load", tmp_path / "text"),
        ("load", tmp_path / "missing"),
        ("load", kernel(tmp_path), "--initrd", tmp_path / "missing"),
        ("load", kernel(tmp_path), "--append", "x" * 3000),
    ):
        assert run(capsys, *arguments).code == 1
    assert calls == []


def test_the_kernels_own_command_line_is_reused_without_what_is_its_own() -> None:
    own = "BOOT_IMAGE=/vmlinuz root=/dev/sda1 crashkernel=192M quiet hugepages=64"
    assert capture_cmdline(own, "nr_cpus=1") == "root=/dev/sda1 quiet nr_cpus=1"
    assert capture_cmdline("", "") == ""


def test_a_kernel_that_refuses_is_a_sentence() -> None:
    """Flags that no kernel knows are refused before anything is touched, with or without privilege."""
    with pytest.raises(CrashHotplugError, match="kexec_file_load failed"):
        kexec_file_load._call(-1, -1, None, 1 << 30)


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("load",), ("load", "k", "--unload"), ("load", "k", "--max-memory-ranges", "0")):
        assert run(capsys, *arguments).code == 2
