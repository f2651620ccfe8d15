"""Several runs one after another (or side by side): their directory, their results, and what the machine was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import time
from pathlib import Path
from typing import Callable, Protocol

from crash_hotplug_lab.qemu import cachedir, hosttools, kernels, machine, results, userland
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.plan import Run
from crash_hotplug_lab.qemu.results import Outcome, Result
from crash_hotplug_lab.qemu.run import run as run_once


class Progress(Protocol):
    """Who is told how the runs go."""

    def began(self, run: Run) -> Callable[[str], None]:
        """Take note that a run began; return whom to tell what happens in it."""

    def ended(self, result: Result) -> None:
        """Take note that a run ended."""


def new_directory() -> Path:
    """Return a fresh directory for the results of this session, in the cache."""
    base = cachedir.cache_dir("results")
    path = base / time.strftime("%Y%m%d-%H%M%S")
    path.mkdir(exist_ok=True)
    latest = base / "latest"
    with contextlib.suppress(OSError):
        latest.unlink(missing_ok=True)
        latest.symlink_to(path.name)
    return path


def prepare(keys: list[str], say: Callable[[str], None], again: bool = False) -> list[Kernel]:
    """Fetch what is missing for some kernels: the tools, each kernel, and the userland of its release.

    :param again: ask the mirror for newer versions even of what is there
    :raise LabError: when something cannot be had
    """
    there = {key: kernels.ready(key) for key in keys}
    if again or not hosttools.ready():
        say("fetching QEMU and makedumpfile")
        hosttools.fetch()
    found = []
    for key in keys:
        kernel = None if again else there[key]
        if kernel is None:
            say(f"fetching kernel {key}")
            kernel = kernels.fetch(key)
        found.append(kernel)
    for release in dict.fromkeys(kernel.userland for kernel in found):
        prepare_userland(release, say, again)
    return found


def prepare_userland(release: str, say: Callable[[str], None], again: bool = False) -> None:
    """Fetch a release's userland for the guest, unless it is there."""
    if again or userland.archive_of(release) is None:
        say(f"fetching the guest's userland from {release}")
        userland.fetch(release)


async def run_all(runs: list[Run], directory: Path, progress: Progress, jobs: int, keep: bool) -> list[Result]:
    """Do every run, at most ``jobs`` at a time; the result file is written anew after each.

    :raise LabError: when the lab is not set up
    """
    gate = asyncio.Semaphore(jobs)
    done: list[Result] = []

    async def one(run: Run) -> None:
        async with gate:
            result = await _one(run, directory, progress, keep)
            done.append(result)
            done.sort(key=lambda r: order[r.name])
            results.write(done, directory, facts())
            progress.ended(result)

    order = {run.name: number for number, run in enumerate(runs)}
    await asyncio.gather(*(one(run) for run in runs))
    return done


async def _one(run: Run, directory: Path, progress: Progress, keep: bool) -> Result:
    if run.skipped:  # nothing is booted
        kernel = run.kernel
        result = Result(run.scenario.name, run.scenario.title, kernel.key, kernel.version, kernel.release, run.loader,
                        run.update)  # fmt: skip
        result.outcome, result.reason = Outcome.SKIP.value, run.skipped
        return result
    own = directory / run.name
    own.mkdir(exist_ok=True)
    return await run_once(run.kernel, run.scenario, run.loader, run.update, own, progress.began(run), keep, run.number)


def facts() -> dict[str, object]:
    """Return what the runs' speed and emulation depend on."""
    accel = "kvm" if machine.has_kvm() else "tcg"
    return {"accelerator": accel, "processors": os.cpu_count() or 1, "host": platform.release()}


def exit_failed(done: list[Result]) -> bool:
    """Whether some run was not as expected, or could not be finished."""
    if not done:
        raise LabError("no run fits what was asked for; `crash-hotplug-lab list` shows what there is")
    return any(r.outcome in (Outcome.FAIL.value, Outcome.BROKEN.value) for r in done)
