# SPDX-License-Identifier: MIT
"""One run of a full Debian guest, with or without this package: hot-plug, a panic, and the dump of kdump-tools.

Without the package, the distribution's udev rule has to keep the crash image up to date; with it, the service does,
after ``doctor --fix``.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from crash_hotplug_lab.distro import judge
from crash_hotplug_lab.distro.guest import DebianGuest, saved_dumps
from crash_hotplug_lab.distro.image import MEMORY, RELEASES, DebianImage, DebianMachine
from crash_hotplug_lab.distro.sides import LAST_RESORT, RELOAD, RULE, SIDES, WITH, WITHOUT
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.results import Result

SERVICE = "crash-hotplug.service"
_UDEV = "systemd-udevd.service"
_LIMIT = 1800.0
_DUMP_LIMIT = 900.0
_LOCK = "/var/crash/kdump_lock"
_LOCKED_SECONDS = 20
_RELOADS_OVER = 60
"""Seconds after the last event until the service has waited for quiet and reloaded."""


@dataclass(frozen=True)
class Plugged:
    """The CPUs and DIMMs that are plugged into a guest."""

    name: str
    dimms: int
    dimm_size: int
    """Bytes."""
    cpus: int
    memory: int
    """Bytes that the guest has from the start."""
    panics: bool = True
    """Whether the guest panics afterwards."""


FEW = Plugged("debian-guest", 4, 256 << 20, 2, MEMORY)
STORM = Plugged("debian-storm", 16, 2 << 30, 6, 3 << 30, panics=False)
"""256 memory blocks of 128 MiB."""


async def run(image: DebianImage, side: str, deb: Path | None, directory: Path, say: Callable[[str], None],
              plugged: Plugged = FEW) -> Result:  # fmt: skip
    """Run one side.  The result records every failure of the guest; the serial log and the journal lie beside it.

    :param deb: the package to install, for every side but ``without`` and ``rule``
    :raise LabError: the lab is not set up; never for a fault of the guest
    """
    kernel = image.kernel()
    result = Result(plugged.name, f"Debian {RELEASES[image.release]}, {SIDES[side]}", kernel.key, kernel.version,
                    kernel.release, "kdump-tools", side)  # fmt: skip
    result.files = directory.name
    begin = time.monotonic()
    disk = image.copy(directory / "disk")
    machine = DebianMachine(kernel, image.initramfs, disk, directory, memory=plugged.memory)
    guest = DebianGuest(machine, directory, result, say)
    try:
        async with machine:
            await asyncio.wait_for(_live(guest, side, deb, result, plugged), _LIMIT)
        if plugged.panics:
            _judge_dump(guest, side, result)
    except (GuestError, asyncio.TimeoutError) as error:
        result.reason = str(error) or f"the time limit of {_LIMIT:.0f} s is over"
    else:
        judge.conclude(result, side, storm=not plugged.panics)
    finally:
        disk.unlink(missing_ok=True)
    result.seconds = round(time.monotonic() - begin, 1)
    return result


async def _live(guest: DebianGuest, side: str, deb: Path | None, result: Result, plugged: Plugged) -> None:
    await guest.boot()
    await _set_up(guest, result, side, deb)
    await guest.look("loaded")
    await guest.record_events()
    mark = float((await guest.run("cat", "/proc/uptime")).split()[0])
    keeper = SERVICE if side in (WITH, LAST_RESORT) else _UDEV
    spent = await guest.cpu_seconds(keeper)
    for number in range(plugged.dimms):
        await guest.add_dimm(f"d{number}", plugged.dimm_size)
    for number in range(plugged.cpus):
        await guest.add_cpu(f"c{number}")
    await guest.run("udevadm", "settle", "--timeout=900", timeout=1000)
    await asyncio.sleep(_RELOADS_OVER if side == LAST_RESORT else 5)
    guest.event(f"CPU time of {keeper}", f"{await guest.cpu_seconds(keeper) - spent:.1f} s")
    if side == RELOAD:
        await _reload(guest, result)
    await guest.look("before-panic")
    events, journal = await guest.events(), judge.journal_since(await guest.journal(), mark)
    trees = (guest.directory / "loaded", guest.directory / "before-panic")
    judge.judge_hotplug(result, side, events, journal, trees)
    if plugged.panics:
        word = secrets.randbits(64)
        guest.planted = (await guest.plant(f"d{plugged.dimms - 1}", word), word)
        await guest.panic(guest.cpus[-1], _DUMP_LIMIT)


def _judge_dump(guest: DebianGuest, side: str, result: Result) -> None:
    assert guest.planted is not None
    if side == RULE:
        judge.judge_broken_dump(result, guest.machine.serial_log)
        return
    plugged = (sorted(guest.dimms.values()), guest.cpus)
    try:
        dumps = saved_dumps(guest.machine.dump, guest.directory)
        judge.judge_dump(result, side, dumps, guest.directory / "before-panic", plugged, guest.planted)
        for vmcore in dumps:
            vmcore.unlink()
    except LabError as error:
        result.check("the dump that kdump-tools saved", False, str(error))


async def _set_up(guest: DebianGuest, result: Result, side: str, deb: Path | None) -> None:
    """Let ``doctor`` judge the guest as it is; then prepare the side: install the package, or change udev's unit."""
    await guest.copy_source()
    before = await guest.own("doctor")
    said = (before["out"] or before["err"]).strip()
    guest.event("doctor", said)
    if guest.machine.kernel.has_crash_hotplug:  # an update may not be needed there, depending on the loader
        result.check("doctor has an answer", before["rc"] in (0, 4), said)
    else:
        result.check("doctor says that the rule will fail", before["rc"] == 4 and "50-kdump-tools" in said, said)
    if side == RULE:
        await guest.let_udev("kexec_load", "kexec_file_load")
    if side in (WITHOUT, RULE):
        return
    assert deb is not None
    await guest.install(deb)
    version, page = await guest.run("crash-hotplug", "--version"), "/usr/share/man/man8/crash-hotplug-watch.8.gz"
    result.check("dpkg -i, --version, man page", (await guest.answer("test", "-s", page))["rc"] == 0, version.strip())
    fixed = await guest.own("doctor", "--fix")
    guest.event("doctor --fix", (fixed["out"] or fixed["err"]).strip())
    result.check("doctor --fix", fixed["rc"] == 0, (fixed["out"] or fixed["err"]).strip())
    await guest.run("kdump-config", "reload")  # for the capture kernel's new command line
    if side == RELOAD:
        await guest.run("systemctl", "stop", SERVICE)
        return
    if side == LAST_RESORT:
        await guest.set_service_options("--strategy reload")
    await guest.run("systemctl", "restart", SERVICE, timeout=300)  # returns when it has taken that image over
    active = (await guest.answer("systemctl", "is-active", SERVICE))["out"].strip()
    result.check("the service is active", active == "active", active)
    after = await guest.own("doctor")
    result.check("doctor is content after --fix", after["rc"] == 0, (after["out"] or after["err"]).strip())


async def _reload(guest: DebianGuest, result: Result) -> None:
    """Reload through kdump-config while another process has its lock, which kdump-config has to wait for."""
    await guest.run("systemd-run", "-q", "--unit=lab-lock", "flock", _LOCK, "sleep", str(_LOCKED_SECONDS))
    done = await guest.own("update", "--strategy", "reload")
    said = (done["out"] or done["err"]).strip()
    guest.event("update --strategy reload", said)
    result.check("update --strategy reload", done["rc"] == 0 and "kdump-config" in said, said)
    held = (await guest.answer("systemctl", "is-active", "lab-lock.service"))["out"].strip()
    result.check("it waited for kdump-config's lock", held != "active", f"{done['seconds']} s; the lock was held "
                 f"{_LOCKED_SECONDS} s")  # fmt: skip
