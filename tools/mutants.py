# SPDX-License-Identifier: MIT
"""Plant one fault at a time into the product, and see that its tests notice: ``python3 tools/mutants.py``.

``tests/mutants/*.toml`` list the faults.  Each entry has

file      a path below src/crash_hotplug
before    a text that stands in the file exactly once
after     the fault in its place
tests     the arguments of pytest for the tests that have to fail; the table ``[tests]`` of the list has them for a file
survives  why no test can notice it (a fault without effect); optional

``--discover FILE`` plants every systematic fault of a file instead, and prints those that its tests do not notice:
candidates for a test and for the list.  Each run works in a copy of the work tree.

mutmut and cosmic-ray make the systematic faults only, thousands of them in hours of tests.  A list has the faults that
matter, runs in minutes, and gives the same result each time.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import NamedTuple, NoReturn

import hypothesis  # noqa: F401 (imported once, here, and not in every child)
import pytest
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from systematic_faults import systematic_faults

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PRODUCT = Path("src/crash_hotplug")
LISTS = ROOT / "tests/mutants"
NOT_COPIED = ("build", "dist")
"""Directories of the work tree that no test reads; neither are those whose names begin with a dot."""
MEMORY_LIMIT = 4 << 30
"""Bytes of address space of a run: a fault may make a loop collect without end."""


class ListError(Exception):
    """A list of faults does not fit the source."""


class Fault(NamedTuple):
    """One fault."""

    file: str
    """Below src/crash_hotplug."""
    line: int
    before: str
    after: str
    text: str
    """The whole file, with the fault in it."""
    tests: tuple[str, ...]
    """Arguments of pytest."""
    survives: str = ""
    """Why no test can notice it; empty where one has to."""

    def __str__(self) -> str:
        """Return place and change in one line."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file}:{self.line}: {before}  →  {after or '(nothing)'}"


class Run(NamedTuple):
    """What came of one run of tests."""

    noticed: bool
    seconds: float
    output: str


def read_lists() -> list[Fault]:
    """Return the faults of every list.

    :raise ListError: an entry does not fit the source
    """
    faults = []
    for path in sorted(LISTS.glob("*.toml")):
        table = tomllib.loads(path.read_text())
        for number, entry in enumerate(table["fault"], 1):
            try:
                faults.append(_fault(entry, table.get("tests", {})))
            except (ListError, OSError, SyntaxError) as error:
                raise ListError(f"{path.name}, fault {number} ({entry.get('before')!r}): {error}") from error
            except KeyError as error:
                raise ListError(f"{path.name}, fault {number}: {error} is missing") from error
    return faults


def _fault(entry: dict[str, object], tests_of: dict[str, list[str]]) -> Fault:
    unknown = entry.keys() - {"file", "before", "after", "tests", "survives"}
    if unknown:
        raise ListError(f"unknown keys: {', '.join(unknown)}")
    file, before, after = str(entry["file"]), str(entry["before"]), str(entry["after"])
    tests = entry.get("tests") or tests_of[file]
    assert isinstance(tests, list)
    source = (ROOT / PRODUCT / file).read_text()
    if source.count(before) != 1:
        raise ListError(f"stands {source.count(before)} times in {file}")
    text = source.replace(before, after)
    if text == source:
        raise ListError("it changes nothing")
    compile(text, file, "exec")
    for test in tests:
        if not test.startswith("-") and not (ROOT / test.split("::")[0]).exists():
            raise ListError(f"{test} does not exist")
    line = source[: source.index(before)].count("\n") + 1
    return Fault(file, line, before, after, text, tuple(tests), str(entry.get("survives", "")))


def discovered(file: str, tests: Sequence[str]) -> Iterator[Fault]:
    """Yield every systematic fault of a file."""
    source = (ROOT / PRODUCT / file).read_text()
    for edit in systematic_faults(source):
        yield Fault(file, edit.line, source[edit.start : edit.end], edit.text, edit.apply(source), tuple(tests))


class Tree:
    """A copy of the work tree in which one run at a time works."""

    def __init__(self, path: Path) -> None:
        """Copy the work tree to *path*."""
        self.path = path
        for item in ROOT.iterdir():
            if item.is_dir() and not item.name.startswith(".") and item.name not in NOT_COPIED:
                shutil.copytree(item, path / item.name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            elif item.is_file():
                shutil.copy2(item, path / item.name)

    def start(self, fault: Fault | None, tests: Sequence[str]) -> int:
        """Start the tests in a child with a process group of its own, and return its process id."""
        if fault is not None:
            planted = self.path / PRODUCT / fault.file
            self._planted = planted, planted.read_bytes(), planted.stat().st_mtime_ns
            planted.write_text(fault.text)
            os.utime(planted, (0, 0))  # a .pyc of the right source has another time
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            self._run_tests(tests, writes_bytecode=fault is None)
        return pid

    def restore(self, fault: Fault | None) -> str:
        """Take the fault out, and return what the tests printed."""
        if fault is not None:
            path, data, mtime = self._planted
            path.write_bytes(data)
            os.utime(path, ns=(mtime, mtime))
        shutil.rmtree(self.path / ".hypothesis", ignore_errors=True)  # examples that failed are not for the next run
        return (self.path / "log").read_text(errors="replace")

    def _run_tests(self, tests: Sequence[str], writes_bytecode: bool) -> NoReturn:
        """Run pytest in this process, the child, which has imported it already, and exit."""
        status = 1
        try:
            os.setsid()
            os.chdir(self.path)
            log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            for descriptor in (1, 2):
                os.dup2(log, descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
            os.environ["PYTHONPATH"] = str(self.path / "src")  # of the commands that tests start
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = not writes_bytecode
            options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--rootdir", str(self.path)]
            status = int(pytest.main([*options, *tests]))
            sys.stdout.flush()
        finally:
            os._exit(status)


def run_all(
    trees: Sequence[Tree], tasks: Sequence[tuple[Fault | None, Sequence[str]]], limits: Sequence[float]
) -> Iterator[tuple[int, Run]]:
    """Run tests side by side, one run a tree, and yield each one's number and result as it ends.

    :param limits: seconds that each may take; one that takes longer is ended, and counts as noticed
    """
    waiting = list(reversed(range(len(tasks))))
    free = list(trees)
    running: dict[int, tuple[int, Tree, float]] = {}
    try:
        while waiting or running:
            while waiting and free:
                number, tree = waiting.pop(), free.pop()
                running[tree.start(*tasks[number])] = number, tree, time.monotonic()
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                for child, (number, _tree, began) in running.items():
                    if time.monotonic() - began > limits[number]:
                        _kill(child)
                time.sleep(0.005)
                continue
            number, tree, began = running.pop(pid)
            _kill(pid)  # the processes that its tests left
            output = tree.restore(tasks[number][0])
            free.append(tree)
            yield number, Run(status != 0, time.monotonic() - began, output)
    finally:
        for child in running:
            _kill(child)


def _kill(process_group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process_group, signal.SIGKILL)


def plant(faults: Sequence[Fault], jobs: int, console: Console) -> Iterator[tuple[Fault, Run]]:
    """Run the tests without a fault, then with each one, and yield the results.

    :raise ListError: tests fail without a fault
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = []
        for number in range(jobs):
            path = Path(scratch) / str(number)
            path.mkdir()
            trees.append(Tree(path))
        suites = sorted({fault.tests for fault in faults})
        seconds = {}
        for number, run in run_all(trees, [(None, suite) for suite in suites], [600.0] * len(suites)):
            if run.noticed:
                raise ListError(f"{' '.join(suites[number])} fails without a fault:\n{run.output}")
            seconds[suites[number]] = run.seconds
        ordered = sorted(faults, key=lambda fault: -seconds[fault.tests])  # the longest first: all trees end together
        limits = [10 + 5 * seconds[fault.tests] for fault in ordered]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, auto_refresh=False, disable=not console.is_terminal) as progress:
            bar = progress.add_task("faults", total=len(ordered))
            for number, run in run_all(trees, [(fault, fault.tests) for fault in ordered], limits):
                progress.update(bar, advance=1, refresh=True)
                yield ordered[number], run


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="mutants.py", description=str(__doc__).split("\n\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="only check that every fault of the lists can be planted")
    parser.add_argument("--only", metavar="WORD", help="plant only the faults that have WORD in file, text or tests")
    parser.add_argument("--sample", type=int, metavar="N", help="plant N of the faults, chosen at random")
    parser.add_argument("--seed", type=int, default=date.today().toordinal(), help="of the sample (default: the day)")
    parser.add_argument("--discover", nargs="+", metavar="FILE", default=[], help="below src/crash_hotplug")
    parser.add_argument(
        "--tests", nargs="+", metavar="TEST", default=[], help="what --discover runs (default: [tests])"
    )
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="runs side by side")
    return parser.parse_args(argv)


def choose(arguments: argparse.Namespace) -> list[Fault]:
    """Return the faults that the command line asks for.

    :raise ListError: a list does not fit the source
    """
    if arguments.discover:
        tables = [tomllib.loads(path.read_text()).get("tests", {}) for path in sorted(LISTS.glob("*.toml"))]
        tests_of = {file: tests for table in tables for file, tests in table.items()}
        faults = [f for file in arguments.discover for f in discovered(file, arguments.tests or tests_of[file])]
    else:
        faults = read_lists()
    if arguments.only:
        faults = [f for f in faults if arguments.only in " ".join((f.file, f.before, f.after, *f.tests))]
    if arguments.sample is not None:
        print(f"seed {arguments.seed}")
        faults = random.Random(arguments.seed).sample(faults, min(arguments.sample, len(faults)))
    return faults


def main(argv: Sequence[str]) -> int:
    """Plant what is asked for; return 1 where a fault was not noticed, or a reason why it cannot be is wrong."""
    arguments = parse_arguments(argv)
    console = Console(highlight=False, soft_wrap=True)
    began = time.monotonic()
    counted: Counter[str] = Counter()
    try:
        faults = choose(arguments)
        if arguments.check:
            print(f"{len(faults)} faults can be planted")
            return 0
        for fault, run in plant(faults, arguments.jobs, console):
            if run.noticed and fault.survives:
                counted["wrongly excused"] += 1
                console.print(f"noticed, although excused ({fault.survives}): {fault}", markup=False)
            elif not run.noticed and not fault.survives:
                counted["survived"] += 1
                console.print(f"survived: {fault}", markup=False)
            else:
                counted["survived with a reason" if fault.survives else "noticed"] += 1
    except ListError as error:
        print(error, file=sys.stderr)
        return 1
    shown = ", ".join(f"{number} {what}" for what, number in sorted(counted.items()))
    print(f"{sum(counted.values())} faults: {shown}; {time.monotonic() - began:.0f} s")
    return 1 if counted["survived"] or counted["wrongly excused"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
