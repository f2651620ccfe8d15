# SPDX-License-Identifier: MIT
"""The command line itself: help, wrong usage, a reader that goes away."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crash_hotplug.cli.main import CRASH_HOTPLUG
from crash_hotplug.cli.streams import OutputError
from tests.cli.running import run
from tests.trees import tree

ROOT = Path(__file__).parent.parent.parent


def crash_hotplug(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "crash_hotplug", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_help_names_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    ran = run(capsys, "--help")
    assert ran.code == 0
    assert all(name in ran.out for name in CRASH_HOTPLUG.commands)
    assert "5  cannot tell" in ran.out


@pytest.mark.parametrize("command", CRASH_HOTPLUG.commands)
def test_help_of_every_command_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str], command: str) -> None:
    ran = run(capsys, command, "--help")
    assert ran.code == 0
    assert "examples:" in ran.out
    assert "exit status:" in ran.out
    assert "--json" in ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("frobnicate",),
        ("status", "--frobnicate"),
        ("status", "extra"),
        ("header",),
        ("header", "-o", "x", "--dialect", "klingon"),
        ("header", "-o", "x", "--backup-region", "there"),
        ("snapshot",),
        ("audit",),
    ],
)
def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    ran = run(capsys, *arguments)
    assert ran.code == 2
    assert "usage: crash-hotplug" in ran.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("header", "-o", "-", "--json"), "--json requires a file"),
        (("doctor", "--dry-run", "--json"), "--dry-run requires --fix or --undo"),
        (("watch", "--json"), "--json requires --once"),
        (("watch", "--once", "--heartbeat", "5"), "--once looks at once and exits"),
        (("watch", "--once", "--max-delay", "5"), "--once looks at once and exits"),
        (("load",), "give a KERNEL to load, or --unload"),
        (("load", "--unload", "--initrd", "x"), "--unload takes no option"),
        (("load", "--unload", "--append", "x"), "--unload takes no option"),
        (("load", "--unload", "--reuse-cmdline"), "--unload takes no option"),
        (("load", "--unload", "--strategy", "file"), "--unload takes no option"),
        (("load", "--unload", "--allow-unsigned"), "--unload takes no option"),
        (("load", "--unload", "--hotplug-size", "4096"), "--unload takes no option"),
        (("update", "--strategy", "reload", "--dry-run"), "--dry-run shows an update in place"),
        (("update", "--strategy", "reload", "--verify", "full"), "--verify full is about an update in place"),
        (("update", "--strategy", "reload", "--max-memory-ranges", "5"), "--max-memory-ranges is about an update in"),
    ],
)
def test_options_that_do_not_fit_together_are_wrong_usage(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    ran = run(capsys, *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert sentence in ran.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("status", "--sysroot", "/nowhere"), "/nowhere cannot be opened: No such file or directory"),
        (("status", "--sysroot", "/etc"), "/etc is not a saved tree"),
        (("status", "--elfcorehdr", "/nowhere"), "the elfcorehdr /nowhere cannot be opened: there is no such file"),
        (("status", "--elfcorehdr", "/etc"), "the elfcorehdr /etc is not a regular file"),
        (("audit", "/nowhere"), "/nowhere cannot be opened: there is no such file"),
        (("audit", "/dev/zero"), "/dev/zero is not a regular file"),
        (("audit", "a\0b"), "embedded null"),
        (("snapshot", "-o", "x.zip"), "names an archive of another kind"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    ran = run(capsys, *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert sentence in ran.err


def test_command_runs_as_a_process_from_a_checkout() -> None:
    shown = crash_hotplug("status", "--sysroot", str(tree("6.1-c", 1)))
    assert shown.returncode == 4
    assert shown.stdout.startswith("NOT ACCURATE")
    assert crash_hotplug("--version").stdout.startswith("crash-hotplug ")


def test_output_that_cannot_be_written_is_printed_without_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_arguments: object) -> int:
        raise OutputError("standard output \x1b[2J cannot be written")

    monkeypatch.setattr("crash_hotplug.cli.status.run", fail)
    monkeypatch.setattr("crash_hotplug.cli.main.discard_output", lambda: None)
    ran = run(capsys, "status")
    assert (ran.code, "\x1b" in ran.err, "cannot be written" in ran.err) == (1, False, True)


def test_closed_pipe_is_no_traceback() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [sys.executable, "-m", "crash_hotplug", "status", "--json", "--sysroot", str(tree("6.1-c", 1))]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, "")


def test_command_imports_no_other_command() -> None:
    code = "import sys; from crash_hotplug.cli.main import main; main(sys.argv[1:]); print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, "status", "--json", "--sysroot", str(tree("6.1-c", 0))]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    loaded = shown.splitlines()[-1].split()
    assert "crash_hotplug.cli.status" in loaded
    assert not {
        "crash_hotplug.linux.loading.live_machine",
        "crash_hotplug.cli.audit",
        "crash_hotplug.cli.snapshot",
        "tarfile",
    } & set(loaded)
