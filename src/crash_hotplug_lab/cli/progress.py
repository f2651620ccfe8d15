# SPDX-License-Identifier: MIT
"""The progress of runs on the terminal: a line for each finished run, and a live line for each running one."""

from __future__ import annotations

from types import TracebackType
from typing import Callable

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from crash_hotplug.cli.output import printable
from crash_hotplug_lab.qemu.plan import PlannedRun
from crash_hotplug_lab.qemu.results import Result

_COLOURS = {
    "pass": "green",
    "fault": "yellow",
    "fail": "bold red",
    "broken": "bold red",
    "skip": "dim",
    "recorded": "cyan",
}


def say(what: str) -> None:
    """Show a slow step on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"{printable(what)} ...", markup=False)


class Terminal:
    """Shows runs on standard output, or on standard error if the results are printed as JSON or KTAP."""

    def __init__(self, total: int, quiet: bool) -> None:
        """Prepare for ``total`` runs; ``quiet`` shows them on standard error."""
        self._out = Console(stderr=quiet, highlight=False, soft_wrap=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=self._out, transient=True, disable=not self._out.is_terminal)
        self._total, self._done = total, 0
        self._tasks: dict[str, Callable[[], None]] = {}

    def __enter__(self) -> Terminal:
        """Start the live display."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live display and restore the terminal."""
        self._progress.stop()

    def began(self, run: PlannedRun) -> Callable[[str], None]:
        """Show a running run; return the function that shows its steps."""
        task = self._progress.add_task(
            f"{run.scenario.name} {run.kernel.name} {run.loader} {run.update}", total=None, what=""
        )
        self._tasks[run.name] = lambda: self._progress.remove_task(task)

        def tell(what: str) -> None:
            self._progress.update(task, what=what)

        return tell

    def ended(self, result: Result) -> None:
        """Show the result of a run."""
        self._done += 1
        self._tasks.pop(result.name, lambda: None)()
        colour = _COLOURS[result.outcome]
        which = f"{result.scenario:22} {result.kernel:5} {result.loader:3} {result.update:8}"
        self._out.print(
            f"{self._done:3}/{self._total} [{colour}]{result.outcome.upper():7}[/] {which}{result.seconds:5.0f} s  ",
            end="",
        )
        self._out.print(printable(result.reason), markup=False)
