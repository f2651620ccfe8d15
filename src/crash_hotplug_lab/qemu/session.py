# SPDX-License-Identifier: MIT
"""A session of runs: one run from boot to verdict, several one after another or side by side, and their results."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Callable, Protocol

from crash_hotplug_lab.qemu import host_tools, initramfs, kernels, machine, results
from crash_hotplug_lab.qemu.debian import cache_dir
from crash_hotplug_lab.qemu.errors import GuestError, LabError, StuckError
from crash_hotplug_lab.qemu.guest_architecture import X86_64, GuestArchitecture
from crash_hotplug_lab.qemu.guest_run import GuestRun
from crash_hotplug_lab.qemu.judge import judge
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.memory_devices import boot_options, modules_of
from crash_hotplug_lab.qemu.plan import PlannedRun
from crash_hotplug_lab.qemu.results import Result, RunOutcome
from crash_hotplug_lab.scenario.records import Scenario

HELLO = """\
Kernel {release}.  `kexec -p -{loader} /boot/vmlinuz --initrd=/boot/capture.img --reuse-cmdline` loads a crash image,
`python3 -m crash_hotplug status` judges it, `poweroff -f` ends the guest; so does Ctrl-a x.
"""
"""Shown before the shell of a guest starts; ``release`` is that of the kernel, ``loader`` the one that it has."""


class Progress(Protocol):
    """Shows the progress of the runs."""

    def began(self, run: PlannedRun) -> Callable[[str], None]:
        """Show that a run began; return the function that shows its steps."""

    def ended(self, result: Result) -> None:
        """Show that a run ended."""


def new_directory() -> Path:
    """Return a new directory for the results of this session, in the cache."""
    base = cache_dir("results")
    path = base / time.strftime("%Y%m%d-%H%M%S")
    path.mkdir(exist_ok=True)
    latest = base / "latest"
    with contextlib.suppress(OSError):
        latest.unlink(missing_ok=True)
        latest.symlink_to(path.name)
    return path


def prepare(keys: list[str], say: Callable[[str], None], again: bool = False,
            architecture: GuestArchitecture = X86_64) -> list[Kernel]:  # fmt: skip
    """Fetch the tools, some kernels, and the userland of each one's release, where they are missing.

    :param again: ask the mirror for newer versions of everything
    :raise LabError: a package cannot be had
    """
    there = {key: kernels.ready(key, architecture) for key in keys}
    tools = [tools for tools in host_tools.tool_sets(architecture) if again or not tools.ready]
    if tools:
        say("fetching QEMU and makedumpfile")
        for each in tools:
            each.fetch()
    found = []
    for key in keys:
        kernel = None if again and not architecture.kernels[key].is_built else there[key]
        if kernel is None:
            say(f"fetching kernel {architecture.kernel_name(key)}")
            kernel = kernels.fetch(key, architecture)
        found.append(kernel)
    for release in dict.fromkeys(kernel.userland for kernel in found):
        prepare_userland(release, say, again, architecture)
    return found


def prepare_userland(release: str, say: Callable[[str], None], again: bool = False,
                     architecture: GuestArchitecture = X86_64) -> None:  # fmt: skip
    """Fetch a release's userland for the guest, unless it is there."""
    if again or initramfs.userland_archive(release, architecture) is None:
        say(f"fetching the guest's userland from {release}")
        initramfs.fetch_userland(release, architecture)


async def run_all(runs: list[PlannedRun], directory: Path, progress: Progress, jobs: int, keep: bool) -> list[Result]:
    """Run everything, at most ``jobs`` runs at a time, and rewrite the result file after each run.

    :raise LabError: the lab is not set up
    """
    gate = asyncio.Semaphore(jobs)
    done: list[Result] = []

    async def one(run: PlannedRun) -> None:
        async with gate:
            result = await _run_or_skip(run, directory, progress, keep)
            done.append(result)
            done.sort(key=lambda r: order[r.name])
            results.write(done, directory, facts())
            progress.ended(result)

    order = {run.name: number for number, run in enumerate(runs)}
    await asyncio.gather(*(one(run) for run in runs))
    return done


async def _run_or_skip(run: PlannedRun, directory: Path, progress: Progress, keep: bool) -> Result:
    if run.skipped:  # nothing is booted
        kernel = run.kernel
        result = Result(run.scenario.name, run.scenario.title, kernel.name, kernel.version, kernel.release, run.loader,
                        run.update)  # fmt: skip
        result.outcome, result.reason = RunOutcome.SKIP.value, run.skipped
        return result
    own = directory / run.name
    own.mkdir(exist_ok=True)
    return await run_once(run.kernel, run.scenario, run.loader, run.update, own, progress.began(run), keep, run.number)


async def run_once(kernel: Kernel, scenario: Scenario, loader: str, update: str, directory: Path,
                   say: Callable[[str], None], keep: bool = False, number: int = 0) -> Result:  # fmt: skip
    """Run a scenario once: boot a guest, load a crash image, take the steps, panic, and judge the vmcore.

    The result records every failure of the guest; the serial log lies beside it.

    :param directory: takes the run's files; it has to exist
    :param say: gets a short phrase for each step
    :param keep: leave the vmcore beside the result
    :param number: of the repetition, where there are several
    :raise LabError: the lab is not set up; never for a fault of the guest
    """
    result = Result(scenario.name, scenario.title, kernel.name, kernel.version, kernel.release, loader, update)
    result.files, result.number = directory.name, number
    begin = time.monotonic()
    image = initramfs.build(kernel, directory, modules_of(scenario), scenario.load.capture_modules)
    hardware = scenario.machine
    qemu = QemuMachine(kernel, image, directory, hardware.memory, hardware.cpus, hardware.ram_holes,
                       scenario.most_dimms, hardware.max_memory, scenario.counts_instructions,
                       hardware.crashkernel_cma, hardware.nodes, hardware.append,
                       boot_options(scenario))  # fmt: skip
    guest = GuestRun(qemu, scenario, loader, update, directory, result, say)
    try:
        async with qemu:
            await asyncio.wait_for(guest.live(), scenario.time_limit)
    except (GuestError, asyncio.TimeoutError) as error:
        limit = f"the run's time limit of {scenario.time_limit:.0f} s is over"
        result.reason = str(error) or limit
        guest.event("given up", result.reason)
        guest.seen.stuck_at = error.addresses if isinstance(error, StuckError) else []
        if guest.panicked and not isinstance(error, asyncio.TimeoutError):  # out of time tells nothing about the guest
            guest.after_death()
            judge(result, scenario, guest.seen)
    else:
        if not scenario.ends_without_dump:
            guest.after_death()
        say("reading the vmcore")
        judge(result, scenario, guest.seen)
    finally:
        image.unlink(missing_ok=True)
        vmcore = directory / "vmcore"
        if not keep or not guest.seen.vmcore:
            vmcore.unlink(missing_ok=True)
    result.seconds = round(time.monotonic() - begin, 1)
    return result


def run_shell(kernel: Kernel) -> int:
    """Boot a guest with a shell on this terminal; return QEMU's exit code when it has ended."""
    with tempfile.TemporaryDirectory(prefix="crash-hotplug-") as scratch:
        directory = Path(scratch)
        qemu = QemuMachine(kernel, initramfs.build(kernel, directory), directory)
        qemu.make_disk()
        return subprocess.run(qemu.command(shell=True), check=False).returncode


def facts() -> dict[str, object]:
    """Return the facts about the host that the speed of a run depends on."""
    accel = "kvm" if machine.has_kvm() else "tcg"
    return {"accelerator": accel, "processors": os.cpu_count() or 1, "host": platform.release()}


def exit_failed(done: list[Result]) -> bool:
    """Whether a run was not as expected, or could not be finished.

    :raise LabError: there was no run
    """
    if not done:
        raise LabError("no run matches the options; `crash-hotplug-lab list` shows scenarios, kernels and loaders")
    return any(r.outcome in (RunOutcome.FAIL.value, RunOutcome.BROKEN.value) for r in done)
