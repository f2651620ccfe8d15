# SPDX-License-Identifier: MIT
"""A full reload by the distribution's own tool, for which scripts stand in here."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crash_hotplug import __version__
from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.linux.loading import reload
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.loading.load import LoadRecord
from crash_hotplug.linux.loading.reload import (
    ReloadParts,
    find_reload_tool,
    outside_this_unit,
    reload_outside,
    update_by_reload,
)
from tests.linux.fake_kexec import FakeKexec


def tool(directory: Path, name: str, script: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def reload_with(directory: Path) -> Report:
    parts = ReloadParts(lambda loaded: find_reload_tool(loaded, str(directory)), lambda: None, user=lambda: 0)
    return run_patiently(update_by_reload(FakeKexec(directory).machine(), parts=parts))


@pytest.mark.parametrize(("name", "word"), [("kdumpctl", "reload"), ("kdump-config", "try-reload")])
def test_installed_tool_is_run(tmp_path: Path, name: str, word: str) -> None:
    path = tool(tmp_path, name, f'echo "$@" > {tmp_path}/ran')
    assert find_reload_tool(search=str(tmp_path)) == [path, word]
    assert reload_with(tmp_path) == (Outcome.RELOADED, f"{path} {word}")
    assert (tmp_path / "ran").read_text() == f"{word}\n"


def test_kdump_config_is_chosen_before_alts_kdumpctl(tmp_path: Path) -> None:
    for name in ("kdumpctl", "kdump-config"):
        tool(tmp_path, name, "exit 0")
    assert find_reload_tool(True, str(tmp_path)) == [str(tmp_path / "kdump-config"), "try-reload"]


@pytest.mark.parametrize(("name", "word"), [("kdumpctl", "start"), ("kdump-config", "load")])
def test_lost_image_is_loaded_by_the_installed_tool(tmp_path: Path, name: str, word: str) -> None:
    """kdump-config try-reload loads nothing where nothing is loaded."""
    path = tool(tmp_path, name, f'echo "$@" > {tmp_path}/ran')
    fake = FakeKexec(tmp_path)
    fake.unload()
    parts = ReloadParts(lambda loaded: find_reload_tool(loaded, str(tmp_path)), lambda: None, user=lambda: 0)
    run_patiently(update_by_reload(fake.machine(), parts=parts))
    assert (tmp_path / "ran").read_text() == f"{word}\n"
    assert path


def test_interrupted_reload_puts_the_previous_image_back(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path)

    def unload_and_interrupt(_command: list[str]) -> subprocess.CompletedProcess[str]:
        fake.unload()
        raise KeyboardInterrupt

    parts = ReloadParts(lambda _loaded: ["kdumpctl", "reload"], lambda: None, unload_and_interrupt, user=lambda: 0)
    report = run_patiently(update_by_reload(fake.machine(), parts=parts))
    assert report == (Outcome.FAILED, "the load was interrupted; the previous image was put back")
    assert fake.digest_fits()


def test_reload_without_a_tool_fails(tmp_path: Path) -> None:
    assert find_reload_tool(search=str(tmp_path)) is None
    report = reload_with(tmp_path)
    assert report.outcome is Outcome.FAILED
    assert "neither kdumpctl nor kdump-config is installed, nor openSUSE's load-once.sh" in report.sentence


@pytest.mark.parametrize(
    ("script", "said"), [("echo one; echo two >&2; exit 3", "failed: two"), ("exit 7", "exit code 7")]
)
def test_failing_tool_is_reported_with_its_output(tmp_path: Path, script: str, said: str) -> None:
    tool(tmp_path, "kdumpctl", script)
    report = reload_with(tmp_path)
    assert report.outcome is Outcome.FAILED
    assert said in report.sentence


@pytest.fixture(autouse=True)
def no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_reload_outside_reports_what_the_command_says_with_the_reason() -> None:
    said = program("""print('{"schema": 1, "outcome": "reloaded", "reason": "kdumpctl reload"}')""")
    report = reload_outside("no kcore", command=said)
    assert (report.outcome, report.sentence) == (Outcome.RELOADED, "kdumpctl reload: no kcore")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("""print('{"outcome": "failed", "reason": "neither is installed"}')""", "no kcore; neither is installed"),
        ("import sys; sys.exit('a\\nlast words\\n')", "no kcore; the reload failed: last words"),
        ("print('no JSON'); raise SystemExit(7)", "no kcore; the reload failed: exit code 7"),
        ("print('[]')", "no kcore; the reload failed: exit code 0"),
    ],
)
def test_reload_outside_reports_a_failing_command(code: str, sentence: str) -> None:
    report = reload_outside("no kcore", command=program(code))
    assert (report.outcome, report.sentence) == (Outcome.FAILED, sentence)


def test_reload_outside_reports_a_missing_program() -> None:
    report = reload_outside("no kcore", command=["/does/not/exist"])
    assert (report.outcome, "did not start" in report.sentence) == (Outcome.FAILED, True)


def test_reload_outside_calls_back_while_it_waits_and_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "_WAKE_SECONDS", 0.05)
    monkeypatch.setattr(reload, "_SECONDS", 0.3)
    awake: list[int] = []
    report = reload_outside("", lambda: awake.append(1), program("import time; time.sleep(1)"))
    assert "did not end" in report.sentence
    assert len(awake) >= 2


def test_outside_this_unit_uses_systemd_run_inside_a_unit_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: f"/usr/bin/{name}")
    assert outside_this_unit({}) == []
    assert outside_this_unit({"INVOCATION_ID": "0123"})[:3] == ["/usr/bin/systemd-run", "--quiet", "--wait"]
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    assert outside_this_unit({"INVOCATION_ID": "0123"}) == []


def test_reload_outside_has_the_keyring_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it kdumpctl runs kexec through sudo."""
    monkeypatch.setattr("shutil.which", lambda name, path: f"/usr/bin/{name}")
    assert "--property=KeyringMode=shared" in outside_this_unit({"INVOCATION_ID": "0123"})


def test_reload_outside_searches_no_other_packages() -> None:
    flags = reload._COMMAND[: reload._COMMAND.index("-c")]
    code = "import sys; print('site' in sys.modules, sys.flags.isolated)"
    assert subprocess.run([*flags, "-c", code], capture_output=True, text=True, check=True).stdout == "False 1\n"


def test_reload_outside_starts_this_program() -> None:
    command = [*reload._COMMAND[: reload._COMMAND.index("update")], "--version"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == f"crash-hotplug {__version__}\n"


def test_recorded_load_holds_the_lock_and_gives_it_back(tmp_path: Path) -> None:
    fake, held, during = FakeKexec(tmp_path), [False], []

    @contextlib.contextmanager
    def locks() -> Iterator[None]:
        assert not held[0]
        held[0] = True
        yield
        held[0] = False

    def load(*_arguments: object) -> str:
        during.append(held[0])
        return "kexec_file_load"

    fake.locks = locks
    record = LoadRecord(CaptureKernel("/boot/k", None, "nr_cpus=1"), Strategy.AUTO, 8192, None)
    parts = ReloadParts(lambda _loaded: None, lambda: record, load=load, user=lambda: 0)
    report = run_patiently(update_by_reload(fake.machine(), parts=parts))
    assert (report.outcome, during, held) == (Outcome.RELOADED, [True], [False])


def test_record_that_was_removed_meanwhile_is_a_failure(tmp_path: Path) -> None:
    records = [LoadRecord(CaptureKernel("/boot/k", None, ""), Strategy.AUTO, 8192, None)]
    parts = ReloadParts(lambda _loaded: None, lambda: records.pop() if records else None, user=lambda: 0)
    report = run_patiently(update_by_reload(FakeKexec(tmp_path).machine(), parts=parts))
    assert (report.outcome, "the record of the last load was removed" in report.sentence) == (Outcome.FAILED, True)


def test_reload_outside_has_a_session_of_its_own() -> None:
    """Stopping the service must not end a reload half way."""
    code = "import os, json; print(json.dumps({'outcome': 'failed', 'reason': str(os.getsid(0) == os.getpid())}))"
    assert reload_outside("no kcore", command=program(code)).sentence == "no kcore; True"
