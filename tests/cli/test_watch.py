# SPDX-License-Identifier: MIT
"""The start, the output and the exit codes of ``crash-hotplug watch``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crash_hotplug.cli import watch
from tests.cli.running import run
from tests.linux.fake_kexec import FakeKexec


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKexec:
    fake = FakeKexec(tmp_path)
    monkeypatch.setattr(watch, "Sysroot", lambda: fake.sysroot)
    monkeypatch.setattr(watch, "LiveMachine", lambda _sysroot: fake.machine())
    return fake


def test_once_corrects_the_header_and_says_so(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(capsys, "watch", "--once", "--json")
    assert (first.code, first.json["verdict"], first.json["outcome"]) == (0, "accurate", "updated")
    second = run(capsys, "watch", "--once")
    assert (second.code, second.out) == (0, "ACCURATE: a panic now would be dumped completely\n")
    fake.unload()
    assert run(capsys, "watch", "--once").code == 3


def test_once_writes_the_metrics(fake: FakeKexec, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(capsys, "watch", "--once", "--metrics-file", tmp_path / "metrics.prom")
    assert "crash_hotplug_accurate 1\n" in (tmp_path / "metrics.prom").read_text()


def test_once_has_the_exit_code_of_the_verdict(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    fake.write_file("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    ran = run(capsys, "watch", "--once")
    assert (ran.code, ran.out.split(":")[0]) == (4, "in-place")


def test_watch_does_not_start_where_it_cannot_work(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    (fake.root / "proc" / "kcore").unlink()
    ran = run(capsys, "watch")
    assert (ran.code, "kcore does not exist" in ran.err) == (5, True)


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "1e9"])
def test_seconds_out_of_range_are_wrong_usage(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    assert run(capsys, "watch", "--heartbeat", seconds).code == 2


@pytest.mark.parametrize("kind", ["device", "fifo", "link", "directory"])
@pytest.mark.parametrize("once", [["--once"], []], ids=["once", "service"])
def test_metrics_file_that_is_not_a_regular_file_is_wrong_usage(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str, once: list[str]
) -> None:
    path = tmp_path / "metrics.prom"
    if kind == "device":
        path = Path("/dev/null")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("elsewhere")
    else:
        path.mkdir()
    before = path.lstat()
    ran = run(capsys, "watch", *once, "--metrics-file", path)
    assert (ran.code, fake.loads) == (2, [])
    assert ran.err.endswith(f"argument --metrics-file: {path} exists and is not a regular file\n")
    assert (path.lstat().st_mode, path.lstat().st_ino) == (before.st_mode, before.st_ino)


def test_json_without_once_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "watch", "--json").code == 2


def test_log_has_priorities_for_the_journal_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    watch._Log().say(4, "one\ntwo")
    assert capfd.readouterr().err == "crash-hotplug watch: one two\n"
    stderr = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stderr.st_dev}:{stderr.st_ino}")
    log = watch._Log()
    monkeypatch.setattr("sys.stderr", os.fdopen(os.dup(2), "w"))
    log.say(4, "one")
    assert capfd.readouterr().err == "<4>one\n"
