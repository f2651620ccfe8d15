# SPDX-License-Identifier: MIT
"""CPU time of whole commands as multiples of an empty Python process: ``python -m tests.benchmarks.process_cost``.

The commands run in turn, so that a busy host slows all of them alike.  Each figure is the median of user and system
time, as the kernel accounts them to the process (wait4).  Of the commands on a large machine (large_machine.py) peak
memory is shown as well.
"""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.large_machine import large_live_tree, large_saved_tree
from tests.benchmarks.test_growth import tree_with_ranges
from tests.trees import tree, vmcore_head

ROOT = Path(__file__).parent.parent.parent
EMPTY = ("-c", "pass")
STATUS = ("status", "--sysroot", str(tree("6.1-c", 0)))
COMMANDS = {
    "--version": ("-m", "crash_hotplug", "--version"),
    "status --sysroot": ("-m", "crash_hotplug", *STATUS),
    "imports of update": ("-c", "import crash_hotplug.cli.arguments, crash_hotplug.cli.update"),
}
RUN = """
import atexit, sys
from crash_hotplug.__main__ import run

def print_peak():
    with open("/proc/self/status") as status:
        sys.stderr.writelines(line for line in status if line.startswith("VmHWM"))

atexit.register(print_peak)
"""
"""Runs the command line, and prints the peak memory of this process; ru_maxrss would include the parent's."""
RUN_LIVE = """
from crash_hotplug.cli import update
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.sysroot import Sysroot

class LiveTree(Sysroot):
    is_live = True

live = LiveMachine(LiveTree(sys.argv.pop()), hardware="x86_64")
update.LiveMachine = lambda: live
"""
"""Takes the tree that the last argument names for the running machine."""


class Cost(NamedTuple):
    """The cost of one command."""

    seconds: float
    """CPU time."""
    ratio: float
    """The CPU time as a multiple of an empty process's."""
    peak_mib: float


def cpu_seconds(arguments: tuple[str, ...], code: int = 0) -> float:
    """Run Python with *arguments* and return the CPU time of that process.

    :param code: the exit code that is right
    """
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, *arguments],
            {"PYTHONPATH": str(ROOT / "src")},
            file_actions=[(os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, null, 2)],
        )
    finally:
        os.close(null)
    _child, status, usage = os.wait4(child, 0)
    assert os.waitstatus_to_exitcode(status) == code, arguments
    return usage.ru_utime + usage.ru_stime


def ratio_of_many_ranges(directory: Path, number: int = 100_000) -> float:
    """Return how many times the CPU time of an empty process ``status --json`` of that many ranges takes."""
    command = ("-m", "crash_hotplug", "status", "--json", "--sysroot", str(tree_with_ranges(directory, number)))
    times = [(cpu_seconds(command, 4), cpu_seconds(EMPTY)) for _ in range(5)]
    large, empty = (statistics.median(column) for column in zip(*times))
    return float(large / empty)


def costs_on_large_machine(directory: Path, runs: int = 5) -> dict[str, Cost]:
    """Return the cost of each command on the machine of large_machine.py."""
    saved = str(large_saved_tree(directory))
    code, live_code = f"{RUN}run()", f"{RUN}{RUN_LIVE}run()"
    commands = {
        "status": (4, ("-c", code, "status", "--sysroot", saved)),
        "status --json": (4, ("-c", code, "status", "--json", "--sysroot", saved)),
        "audit": (4, ("-c", code, "audit", "--sysroot", saved, str(vmcore_head("6.1-c")))),
    }
    if platform.machine() == "x86_64":  # the tree of a running machine has to be of this architecture
        # The reserved region has no place for the header of so many ranges: all but the kexec_load is done.
        commands["update --dry-run"] = (5, ("-c", live_code, "update", "--dry-run", str(large_live_tree(directory))))
    times = [[cpu_seconds(arguments, right) for right, arguments in commands.values()] for _ in range(runs)]
    empty = statistics.median(cpu_seconds(EMPTY) for _ in range(runs))
    seconds = (statistics.median(column) for column in zip(*times))
    peaks = (_peak_mib(arguments) for _right, arguments in commands.values())
    return {name: Cost(s, s / empty, peak) for name, s, peak in zip(commands, seconds, peaks)}


def _peak_mib(arguments: tuple[str, ...]) -> float:
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False)
    found = re.search(r"^VmHWM:\s*(\d+) kB$", ran.stderr, re.MULTILINE)
    assert found is not None, ran.stderr
    return int(found[1]) / 1024


def ratios(runs: int) -> dict[str, float]:
    """Return how many times the CPU time of an empty process each command takes."""
    measured = [EMPTY, *COMMANDS.values()]
    for arguments in measured:
        cpu_seconds(arguments)  # the first run compiles
    times = [[cpu_seconds(arguments) for arguments in measured] for _ in range(runs)]
    empty, *commands = (statistics.median(column) for column in zip(*times))
    return {name: seconds / empty for name, seconds in zip(COMMANDS, commands)}


if __name__ == "__main__":
    for name, ratio in ratios(int(sys.argv[1]) if sys.argv[1:] else 60).items():
        print(f"{name:<20} {ratio:.2f} times python3 -c pass")  # noqa: T201
    with tempfile.TemporaryDirectory() as directory:
        print(f"status --json of 100,000 ranges: {ratio_of_many_ranges(Path(directory)):.0f} times")  # noqa: T201
        print("8,192 ranges, 24,577 blocks, 4,096 CPUs:")  # noqa: T201
        for name, cost in costs_on_large_machine(Path(directory)).items():
            print(f"{name:<20} {cost.ratio:.1f} times, {cost.seconds:.2f} s, {cost.peak_mib:.0f} MiB")  # noqa: T201
