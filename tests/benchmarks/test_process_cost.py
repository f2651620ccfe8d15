# SPDX-License-Identifier: MIT
"""What a command imports before it does anything, which is most of the CPU time of a short one.

The figures themselves: ``python -m tests.benchmarks.process_cost``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.process_cost import ROOT, STATUS, ratio_of_many_ranges, ratios

HEAVY = {"ctypes", "dataclasses", "datetime", "inspect", "pathlib", "shutil", "subprocess", "tarfile", "typing"}
"""Each of them takes a tenth to one and a half times as long to import as Python takes to start."""


def modules_after(code: str) -> set[str]:
    """Return the modules that a process has imported after *code*; without site, which may import anything."""
    command = [sys.executable, "-S", "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_version_is_printed_without_any_import_but_its_own() -> None:
    before = modules_after("import gc, os, sys")
    after = modules_after("from crash_hotplug.cli.main import main\nmain(['--version'])")
    assert {name for name in after - before if not name.startswith("crash_hotplug")} <= {"__future__"}


def test_status_of_a_saved_tree_imports_nothing_heavy() -> None:
    loaded = modules_after(f"from crash_hotplug.cli.main import main\nmain({STATUS!r})")
    assert "crash_hotplug.cli.status" in loaded
    assert not HEAVY & loaded
    assert not {name for name in loaded if name.startswith(("crash_hotplug.linux.loading", "crash_hotplug.cli.audit"))}


def test_status_as_a_process_is_a_small_multiple_of_an_empty_one() -> None:
    assert ratios(runs=7)["status --sysroot"] < 7


def test_status_of_100_000_ranges_is_a_bounded_multiple_of_an_empty_process(tmp_path: Path) -> None:
    """75 times, about a second; json's own indentation alone took 200 times."""
    ratio = ratio_of_many_ranges(tmp_path)
    print(f"status --json of 100,000 ranges: {ratio:.0f} times the CPU time of python3 -c pass")  # noqa: T201
    assert ratio < 180


def test_garbage_collector_is_on_again_when_a_command_runs() -> None:
    code = """
import gc, sys
from crash_hotplug.__main__ import run
from crash_hotplug.linux import kexec_state
states = []
kexec_state.read_kexec_state = lambda _sysroot: states.append((gc.isenabled(), gc.get_freeze_count() > 0))
sys.argv[1:] = ["status"]
try:
    run()
except AttributeError:
    assert states == [(True, True)], states
"""
    assert "crash_hotplug.cli.status" in modules_after(code)


@pytest.mark.parametrize("command", ["header", "snapshot", "audit", "doctor"])
def test_command_imports_no_other_command(command: str) -> None:
    loaded = modules_after(f"import crash_hotplug.cli.{command}")
    others = {"status", "header", "snapshot", "audit", "update", "watch", "load"} - {command}
    assert not {f"crash_hotplug.cli.{other}" for other in others} & loaded
