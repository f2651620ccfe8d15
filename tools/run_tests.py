# SPDX-License-Identifier: MIT
"""Run every test on every supported Python: several jobs side by side, each one's output in one piece when it ends.

``python3 tools/run_tests.py [WORD...]``; with words, only the jobs that have one of them in their name.  The Python
that runs this program runs everything; the others of the machine run the pure tests, each in a virtual environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SUPPORTED = [(3, minor) for minor in range(9, 14)]
PACKAGES = ["pytest", "hypothesis", "jsonschema", "pyelftools", "pytest-benchmark"]

GUESTS = "tests/lab/qemu/test_real_kernels.py"
FAMILIES = "tests/lab/qemu/test_family_guests.py"
EXPLORE = "tests/lab/model/test_explore.py"
FAULTS = "tests/lab/model/test_planted_faults.py"
DISTRIBUTIONS = (
    "tests/packaging/test_packages.py",
    "tests/packaging/test_rpm.py",
    "tests/lab/qemu/test_doctor_debian.py",
)
MUTANTS = "tests/test_mutants.py"
ELSEWHERE = (GUESTS, FAMILIES, EXPLORE, FAULTS, MUTANTS, *DISTRIBUTIONS)
"""Files with a job of their own; every other file belongs to the pure tests, a new one too."""

ON_EVERY_PYTHON = (
    "tests/core", "tests/linux", "tests/cli", "tests/lab/model", "tests/lab/scenario", "tests/test_captures.py",
    "tests/test_fuzz.py", "tests/test_schemas.py", "--ignore", "tests/lab/model/test_external_tools.py",
    "--ignore", EXPLORE, "--ignore", FAULTS,
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of pytest."""

    name: str
    arguments: tuple[str, ...]
    python: str = sys.executable
    version: str = ""
    """Of another Python, for which a virtual environment has to be made; ``python`` is then its interpreter."""


@dataclass(frozen=True)
class Done:
    """A job that has ended."""

    job: Job
    output: str
    failed: bool
    seconds: float
    cpu_seconds: float
    """User and system time of all its processes."""

    @property
    def counts(self) -> Counter[str]:
        """How many tests passed, failed, were skipped, out of pytest's closing line."""
        closing = [line for line in self.output.splitlines() if re.search(r"\d+ \w+.* in \d+\.\d+s", line)]
        found = re.findall(r"(\d+) (passed|failed|skipped|deselected|xfailed|xpassed|warnings?|errors?)",
                           closing[-1] if closing else "")  # fmt: skip
        return Counter({word: int(number) for number, word in found})


def jobs() -> Iterator[Job]:
    """Yield every job; those that take longest come first, and guests wait more than they compute."""
    yield Job("guests of 6.1", (GUESTS, "-k", "not 6.12-"))
    yield Job("guests of 6.12", (GUESTS, "-k", "6.12-"))
    yield Job("guests of families", (FAMILIES,))
    yield Job("pure tests", tuple(word for path in ELSEWHERE for word in ("--ignore", path)))
    yield Job("planted faults", (FAULTS,))
    yield Job("mutants", (MUTANTS,))
    yield Job("packages", DISTRIBUTIONS)
    yield Job("searches", (EXPLORE,))
    for version, path in interpreters():
        yield Job(f"Python {version}", ON_EVERY_PYTHON, path, version)


def interpreters() -> Iterator[tuple[str, str]]:
    """Yield version and path of each supported Python but this one: from PATH, else from pyenv."""
    for major, minor in SUPPORTED:
        version = f"{major}.{minor}"
        candidates = [shutil.which(f"python{version}"), *map(str, pyenv_pythons(version))]
        for path in candidates:
            if path is not None and (major, minor) != sys.version_info[:2] and answers(path, version):
                yield version, path
                break


def pyenv_pythons(version: str) -> list[Path]:
    """Return pyenv's interpreters of that version; they need not be on PATH."""
    return sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python3"))


def answers(path: str, version: str) -> bool:
    """Whether the program is a Python of that version (a pyenv shim may be there and not work)."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    shown = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
    return shown.stdout.strip() == version


def environment(version: str, path: str) -> str | None:
    """Make (once) and return the virtual environment's Python; None where it cannot be made."""
    directory = ROOT / f".venv-{version}"
    python = str(directory / "bin" / "python")
    stamp = directory / "ready"
    if not stamp.exists():
        commands = [
            [path, "-m", "venv", "--clear", str(directory)],
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES],
        ]
        for command in commands:
            if subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT).returncode:
                return None
        stamp.touch()
    return python


def run(job: Job) -> Done:
    """Run one job to its end."""
    print(f"... {job.name}", flush=True)
    began = time.monotonic()
    python = environment(job.version, job.python) if job.version else job.python
    if python is None:
        return Done(job, "no virtual environment could be made, skipped\n", False, time.monotonic() - began, 0.0)
    cache = [] if job.name == "pure tests" else ["-p", "no:cacheprovider"]  # one process at a time writes it
    with tempfile.TemporaryFile() as output:
        # wait4 knows the time of this child and its children only, whatever else runs at the same time
        process = subprocess.Popen([python, "-m", "pytest", "-q", *cache, *job.arguments], cwd=ROOT,
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=output)  # fmt: skip
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    seconds = time.monotonic() - began
    return Done(job, text, process.returncode != 0, seconds, usage.ru_utime + usage.ru_stime)


def main(words: list[str]) -> int:
    """Run the jobs; return 1 where one failed."""
    began = time.monotonic()
    chosen = [job for job in jobs() if not words or any(word in job.name for word in words)]
    done: list[Done] = []
    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:  # guests are idle part of the time
        for future in as_completed([pool.submit(run, job) for job in chosen]):
            one = future.result()
            done.append(one)
            print(f"--- {one.job.name}\n{one.output}", flush=True)
    print(f"{'job':<16} {'minutes':>7} {'CPU':>5}")
    total: Counter[str] = Counter()
    for one in sorted(done, key=lambda one: chosen.index(one.job)):
        total += one.counts
        shown = ", ".join(f"{number} {word}" for word, number in one.counts.items())
        minutes = f"{one.seconds / 60:7.1f} {one.cpu_seconds / 60:5.1f}"
        print(f"{one.job.name:<16} {minutes}  {'FAILED  ' if one.failed else ''}{shown}")
    seconds = time.monotonic() - began
    counted = ", ".join(f"{number} {word}" for word, number in total.items() if word != "deselected")
    print(f"==== {counted} in {seconds:.2f}s ({seconds / 60:.1f} minutes) ====")
    return 1 if any(one.failed for one in done) or not done else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
