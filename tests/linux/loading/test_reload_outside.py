"""A reload in a process of its own, for which small programs stand in here."""

from __future__ import annotations

import sys

import pytest

from crash_hotplug.core.update import Outcome
from crash_hotplug.linux.loading.reload import reload_outside
from crash_hotplug.linux.loading.reload import outside_this_unit


@pytest.fixture(autouse=True)
def no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)


def program(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_the_command_says_is_reported_with_the_reason() -> None:
    said = program("""print('{"schema": 1, "outcome": "reloaded", "reason": "kdumpctl reload"}')""")
    report = reload_outside.reload_outside("no kcore", command=said)
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
def test_a_reload_that_fails(code: str, sentence: str) -> None:
    report = reload_outside.reload_outside("no kcore", command=program(code))
    assert (report.outcome, report.sentence) == (Outcome.FAILED, sentence)


def test_a_program_that_is_not_there() -> None:
    report = reload_outside.reload_outside("no kcore", command=["/does/not/exist"])
    assert (report.outcome, "did not start" in report.sentence) == (Outcome.FAILED, True)


def test_the_service_stays_awake_and_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload_outside, "_WAKE_SECONDS", 0.05)
    monkeypatch.setattr(reload_outside, "_SECONDS", 0.3)
    awake: list[int] = []
    report = reload_outside.reload_outside("", lambda: awake.append(1), program("import time; time.sleep(1)"))
    assert "did not end" in report.sentence
    assert len(awake) >= 2


def test_a_reload_leaves_the_sandbox_of_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: f"/usr/bin/{name}")
    assert outside_this_unit({}) == []
    assert outside_this_unit({"INVOCATION_ID": "0123"})[:3] == ["/usr/bin/systemd-run", "--quiet", "--wait"]
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    assert outside_this_unit({"INVOCATION_ID": "0123"}) == []
