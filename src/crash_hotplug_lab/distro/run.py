# SPDX-License-Identifier: MIT
"""One run of a full guest, with or without this package: hot-plug, a panic, and the dump of the family's tools.

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

from crash_hotplug_lab.distro import judge, race
from crash_hotplug_lab.distro.guest import DebianGuest, saved_dumps
from crash_hotplug_lab.distro.image import MEMORY, RELEASES, DebianImage, DebianMachine
from crash_hotplug_lab.distro.sides import CORRECTED, LAST_RESORT, LOCKS, NEED_NO_PACKAGE, RELOAD, RULE, SIDES
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.results import Result

SERVICE = "crash-hotplug.service"
_LIMIT = 1800.0
_RACE_LIMIT = 4000.0
_DUMP_LIMIT = 900.0
_LOCKED_SECONDS = 20
_RELOADS_OVER = 60
"""Seconds after the last event until the service has waited for quiet and reloaded."""


@dataclass(frozen=True)
class Plugged:
    """The CPUs and DIMMs that are plugged into a guest."""

    name: str
    """The second part of the results' name, behind the family's."""
    dimms: int
    dimm_size: int
    """Bytes."""
    cpus: int
    memory: int
    """Bytes that the guest has from the start."""
    panics: bool = True
    """Whether the guest panics afterwards."""
    rounds: int = 50
    """Rounds of the side ``locks``, which come first; each plugs a DIMM."""


FEW = Plugged("guest", 4, 256 << 20, 2, MEMORY)
STORM = Plugged("storm", 16, 2 << 30, 6, 3 << 30, panics=False)
"""256 memory blocks of 128 MiB."""


async def run(image: DebianImage, side: str, deb: Path | None, directory: Path, say: Callable[[str], None],
              plugged: Plugged = FEW, loader: str = "") -> Result:  # fmt: skip
    """Run one side.  The result records every failure of the guest; the serial log and the journal lie beside it.

    :param deb: the package to install, for every side that needs it (NEED_NO_PACKAGE has the others)
    :param loader: how the family's tools load the image: ``c`` for kexec_load, ``s`` for kexec_file_load, "" for
        their own choice
    :raise LabError: the lab is not set up; never for a fault of the guest
    """
    kernel, family = image.kernel(), image.family
    title = f"{family.title % RELEASES[image.release]}, {SIDES[side]}"
    result = Result(f"{family.name}-{plugged.name}", title, kernel.key, kernel.version, kernel.release,
                    f"{family.project or 'kdump-tools'} {loader}".strip(), side)  # fmt: skip
    result.files = directory.name
    begin = time.monotonic()
    disk = image.copy(directory / "disk")
    slots = plugged.dimms + (plugged.rounds if side == LOCKS else 0)
    machine = DebianMachine(kernel, image.initramfs, disk, directory, memory=plugged.memory, slots=slots)
    guest = DebianGuest(machine, family, directory, result, say)
    try:
        async with machine:
            limit = _RACE_LIMIT if side == LOCKS else _LIMIT
            await asyncio.wait_for(_live(guest, side, deb, result, plugged, loader), limit)
        if plugged.panics:
            _judge_dump(guest, side, result)
    except (GuestError, asyncio.TimeoutError) as error:
        result.reason = str(error) or "the time limit is over"
    else:
        judge.conclude(result, side, not plugged.panics, family, guest.kernel_updates)
    finally:
        disk.unlink(missing_ok=True)
    result.seconds = round(time.monotonic() - begin, 1)
    return result


async def _live(guest: DebianGuest, side: str, deb: Path | None, result: Result, plugged: Plugged,
                loader: str) -> None:  # fmt: skip
    await guest.boot()
    if loader:
        await guest.choose_loader(loader)
    await _set_up(guest, result, side, deb)
    await guest.look("loaded")
    await guest.ask_kernel_updates()
    await guest.record_events()
    mark = float((await guest.run("cat", "/proc/uptime")).split()[0])
    spent = await guest.cpu_seconds()
    if side == LOCKS:
        await race.race(guest, result, plugged.rounds)
    for number in range(plugged.dimms):
        await guest.add_dimm(f"d{number}", plugged.dimm_size)
    for number in range(plugged.cpus):
        await guest.add_cpu(f"c{number}")
    await guest.run("udevadm", "settle", "--timeout=900", timeout=1000)
    await asyncio.sleep(_RELOADS_OVER if side == LAST_RESORT else 5)
    await guest.reloads_over()
    spent = await guest.cpu_seconds() - spent
    if side == RELOAD:
        await _reload(guest, result)
    await guest.look("before-panic")
    journal = judge.journal_since(await guest.journal(), mark)
    recorded = judge.Recorded(guest.family, await guest.events(), journal, await guest.kexec_calls(), spent,
                              guest.kernel_updates)  # fmt: skip
    guest.event("figures", recorded.figures(side))
    if side == LOCKS:
        guest.event("overlaps", race.overlaps(recorded.calls))
    judge.judge_hotplug(result, side, recorded, (guest.directory / "loaded", guest.directory / "before-panic"))
    if plugged.panics:
        word = secrets.randbits(64)
        guest.planted = (await guest.plant(f"d{plugged.dimms - 1}", word), word)
        await guest.panic(guest.cpus[-1], _DUMP_LIMIT)


def _judge_dump(guest: DebianGuest, side: str, result: Result) -> None:
    assert guest.planted is not None
    if judge.breaks_off(guest.family, side, guest.kernel_updates):
        judge.judge_broken_dump(result, guest.machine.serial_log)
        return
    plugged = (sorted(guest.dimms.values()), guest.cpus)
    try:
        dumps = saved_dumps(guest.family, guest.machine.dump, guest.directory)
        stale = judge.stays_stale(guest.family, side, guest.kernel_updates)
        judge.judge_dump(result, stale, dumps, guest.directory / "before-panic", plugged, guest.planted)
        for vmcore in dumps:
            vmcore.unlink()
    except LabError as error:
        result.check("the dump that was saved", False, str(error))


async def _set_up(guest: DebianGuest, result: Result, side: str, deb: Path | None) -> None:
    """Let ``doctor`` judge the guest as it is; then prepare the side: install the package, or change udev's unit."""
    await guest.copy_source()
    family = guest.family
    before = await guest.own("doctor")
    said = (before["out"] or before["err"]).strip()
    guest.event("doctor", said)
    if guest.machine.kernel.has_crash_hotplug:  # an update may not be needed there, depending on the loader
        result.check("doctor has an answer", before["rc"] in (0, 4), said)
    elif family.rule_works:
        result.check("doctor says that the rule reloads the image", before["rc"] == 0 and family.rule in said, said)
    else:
        result.check("doctor says that the rule will fail", before["rc"] == 4 and family.rule in said, said)
    if side == RULE:
        await guest.let_udev("kexec_load", "kexec_file_load")
    if side == CORRECTED:
        await guest.correct_rule()
    if side in NEED_NO_PACKAGE:
        return
    assert deb is not None
    await guest.install(deb)
    version, page = await guest.run("crash-hotplug", "--version"), "/usr/share/man/man8/crash-hotplug-watch.8.gz"
    result.check("dpkg -i, --version, man page", (await guest.answer("test", "-s", page))["rc"] == 0, version.strip())
    await _fix_and_undo(guest, result)
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


async def _fix_and_undo(guest: DebianGuest, result: Result) -> None:
    """Let ``doctor`` fix the guest, undo that, and fix it again; load an image if its command line changed."""
    before = await guest.digests()
    for what in ("--fix", "--undo", "--fix"):
        done = await guest.own("doctor", what)
        said = (done["out"] or done["err"]).strip()
        guest.event(f"doctor {what}", said)
        result.check(f"doctor {what}", done["rc"] == 0, said)
        if what == "--undo":
            changed = set(before.splitlines()) ^ set((await guest.digests()).splitlines())
            result.check("--undo leaves every file as it was", not changed, "; ".join(sorted(changed)))
    if " ".join(guest.family.reload) in said:  # else the command line is what it was
        await guest.run(*guest.family.reload, timeout=600)


async def _reload(guest: DebianGuest, result: Result) -> None:
    """Reload through the family's tool while another process has its lock, which the tool has to wait for."""
    family = guest.family
    await guest.run("systemd-run", "-q", "--unit=lab-lock", "flock", family.lock, "sleep", str(_LOCKED_SECONDS))
    done = await guest.own("update", "--strategy", "reload")
    said = (done["out"] or done["err"]).strip()
    guest.event("update --strategy reload", said)
    result.check("update --strategy reload", done["rc"] == 0 and family.says in said, said)
    held = (await guest.answer("systemctl", "is-active", "lab-lock.service"))["out"].strip()
    result.check(f"it waited for the lock {family.lock}", held != "active", f"{done['seconds']} s; the lock was held "
                 f"{_LOCKED_SECONDS} s")  # fmt: skip
