# SPDX-License-Identifier: MIT
"""CPU time of whole commands as multiples of an empty Python process: ``python -m tests.benchmarks.process_cost``.

The commands run in turn, so that a busy host slows all of them alike.  Each figure is the median of user and system
time, as the kernel accounts them to the process (wait4).
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.test_growth import tree_with_ranges
from tests.trees import tree

ROOT = Path(__file__).parent.parent.parent
EMPTY = ("-c", "pass")
STATUS = ("status", "--sysroot", str(tree("6.1-c", 0)))
COMMANDS = {
    "--version": ("-m", "crash_hotplug", "--version"),
    "status --sysroot": ("-m", "crash_hotplug", *STATUS),
    "imports of update": ("-c", "import crash_hotplug.cli.arguments, crash_hotplug.cli.update"),
}


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
