"""One run: boot a guest, load a crash image, let the scenario's steps happen, panic, and judge what came back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Callable

from crash_hotplug_lab.qemu import initramfs
from crash_hotplug_lab.qemu.errors import GuestError, StuckError
from crash_hotplug_lab.qemu.guest_run import Guest
from crash_hotplug_lab.qemu.judge import judge
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import Machine
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.scenario.records import Scenario


async def run(kernel: Kernel, scenario: Scenario, loader: str, update: str, directory: Path,
              say: Callable[[str], None], keep: bool = False, number: int = 0) -> Result:  # fmt: skip
    """Run a scenario once.  Whatever happens in the guest is in the result; the serial log is beside it.

    :param directory: takes the run's files; it has to exist
    :param say: told what happens, one short phrase at a time
    :param keep: leave the vmcore beside the result
    :param number: which repetition, where there are several
    :raise LabError: when the lab is not set up; never for what a guest did
    """
    result = Result(scenario.name, scenario.title, kernel.key, kernel.version, kernel.release, loader, update)
    result.files, result.number = directory.name, number
    begin = time.monotonic()
    image = initramfs.build(kernel, directory)
    guest = Guest(scenario, kernel, loader, update, directory, result, say)
    try:
        async with Machine(
            kernel,
            image,
            directory,
            scenario.machine.memory,
            scenario.machine.cpus,
            scenario.machine.ram_holes,
            scenario.most_dimms,
            scenario.machine.max_memory,
            scenario.counts_instructions,
        ) as machine:
            await asyncio.wait_for(guest.live(machine), scenario.time_limit)
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
