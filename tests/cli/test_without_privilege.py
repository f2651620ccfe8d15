# SPDX-License-Identifier: MIT
"""A user without privilege: every command reports its answer and the missing privilege."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import crash_hotplug.cli
import crash_hotplug.core
import crash_hotplug.linux
from crash_hotplug.cli.main import main
from tests.cli.running import Ran
from tests.family_trees import build

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def run_as_nobody(*arguments: object) -> Ran:
    """Run one command line as a user without privilege, in a child process."""
    for package in (crash_hotplug.core, crash_hotplug.linux, crash_hotplug.cli):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)  # nobody may not be able to read the checkout later
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            try:
                os._exit(_in_child(out.fileno(), err.fileno(), [str(argument) for argument in arguments]))
            finally:
                os._exit(99)
        _pid, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return Ran(os.waitstatus_to_exitcode(status), out.read().decode(), err.read().decode())


def _in_child(out: int, err: int, arguments: list[str]) -> int:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    with open(1, "w", closefd=False) as sys.stdout, open(2, "w", closefd=False) as sys.stderr:
        return main(arguments)


@pytest.fixture
def masked() -> Iterator[Path]:
    """Give a machine as such a user sees it: addresses are 0, some files may not be read."""
    directory = Path(tempfile.mkdtemp())  # pytest's own directories are closed to others
    directory.chmod(0o755)
    tree = build(directory / "tree", "debian")
    (tree / "proc/iomem").write_text("00000000-00000000 : System RAM\n")
    (tree / "proc/kallsyms").write_text("0000000000000000 D kexec_crash_image\n")
    for path in [tree / "proc/kcore", *tree.glob("sys/devices/system/cpu/cpu*/crash_notes"), tree / "crash-image"]:
        path.chmod(0o400)
    yield tree
    shutil.rmtree(directory)


@needs_root
@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (("status",), 5, ("run as root", "one is loaded")),
        (("status", "--json"), 5, ("run as root",)),
        (("header", "-o", "/nowhere/header"), 5, ("run as root",)),
        (("snapshot", "-o", "/nowhere/snapshot"), 5, ("run as root",)),
        (("doctor",), 4, ("fails silently", "its loader is not known", "run as root")),
        (("doctor", "--fix"), 1, ("is not installed",)),
    ],
)
def test_masked_machine_has_its_exit_code_and_a_sentence(
    masked: Path, command: tuple[str, ...], code: int, says: tuple[str, ...]
) -> None:
    ran = run_as_nobody(*command, "--sysroot", masked)
    said = ran.out + ran.err
    assert ran.code == code, said
    for words in says:
        assert words in said
    assert "Traceback" not in said


@needs_root
@pytest.mark.parametrize("action", ["--fix", "--undo"])
def test_live_machine_is_not_changed_without_root(action: str) -> None:
    ran = run_as_nobody("doctor", action)
    assert (ran.code, ran.out) == (1, "")
    assert "run as root; nothing was changed" in ran.err


@needs_root
def test_manifest_that_only_root_may_read_is_one_sentence(masked: Path) -> None:
    state = masked / "var/lib/crash-hotplug"
    state.mkdir(parents=True)
    (state / "doctor.json").write_text("{}")
    (state / "doctor.json").chmod(0o600)
    ran = run_as_nobody("doctor", "--undo", "--sysroot", masked)
    assert ran.code == 5
    assert "/var/lib/crash-hotplug/doctor.json cannot be read: Permission denied; run as root" in ran.err


@needs_root
def test_fix_in_a_tree_of_another_user_is_one_sentence(masked: Path) -> None:
    unit = masked / "usr/lib/systemd/system/crash-hotplug.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\n")
    ran = run_as_nobody("doctor", "--fix", "--sysroot", masked)
    assert ran.code == 1
    assert "Permission denied" in ran.err
    assert "Traceback" not in ran.err


def test_control_process_becomes_nobody() -> None:
    if os.geteuid() == 0:
        assert run_as_nobody("--version").code == 0
    assert main(["--version"]) == 0
