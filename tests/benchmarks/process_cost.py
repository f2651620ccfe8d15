"""CPU time of whole commands as multiples of an empty Python process: ``python -m tests.benchmarks.process_cost``.

The commands run in turn, so that a busy host slows all of them alike.  Each figure is the median of user and system
time, as the kernel accounts them to the process (wait4).
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from tests.trees import tree

ROOT = Path(__file__).parent.parent.parent
EMPTY = ("-c", "pass")
VERSION = ("-m", "crash_hotplug", "--version")
STATUS = ("-m", "crash_hotplug", "status", "--sysroot", str(tree("6.1-c", 0)))
UPDATE_IMPORTS = ("-c", "import crash_hotplug.cli.update")
_NAMES = {VERSION: "--version", STATUS: "status --sysroot", UPDATE_IMPORTS: "imports of update"}


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """Run Python with *arguments* and return the CPU time of that process."""
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
    assert status == 0, arguments
    return usage.ru_utime + usage.ru_stime


def ratios(*commands: tuple[str, ...], runs: int) -> list[float]:
    """Return for each command how many times the CPU time of an empty process it takes."""
    times: dict[tuple[str, ...], list[float]] = {arguments: [] for arguments in (EMPTY, *commands)}
    for arguments in times:
        cpu_seconds(arguments)  # the first run compiles
    for _ in range(runs):
        for arguments, seconds in times.items():
            seconds.append(cpu_seconds(arguments))
    empty = statistics.median(times[EMPTY])
    return [statistics.median(times[arguments]) / empty for arguments in commands]


def main(runs: int = 60) -> None:
    """Print a line a command."""
    for arguments, ratio in zip(_NAMES, ratios(*_NAMES, runs=runs)):
        print(f"{_NAMES[arguments]:<20} {ratio:.2f} times python3 -c pass")  # noqa: T201


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
