# SPDX-License-Identifier: MIT
"""A guest that takes orders: programs run in it, CPUs and memory plugged into it, snapshots of it, its time line."""

from __future__ import annotations

import asyncio
import shlex
import tarfile
import time
from collections.abc import Awaitable
from functools import partial
from pathlib import Path
from typing import Any, Callable

from crash_hotplug.cli import exit_codes
from crash_hotplug_lab.qemu import dump
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import Moment, Result, TimelineEntry

_MEMORY = "/sys/devices/system/memory"


class Guest:
    """A running guest; its time line goes into a result."""

    shows_details = False
    """Whether the user sees the details of the time line while the guest runs."""

    def __init__(self, machine: QemuMachine, directory: Path, result: Result, say: Callable[[str], None]) -> None:
        """Take the machine, which need not run yet; ``directory`` takes the files that come back from the guest."""
        self.machine, self.directory = machine, directory
        self.command: tuple[str, ...] = ("python3", "-m", "crash_hotplug")
        """Command line of this project in the guest."""
        self.dimms: dict[str, tuple[int, int]] = {}
        """Physical range of each DIMM that was ever plugged, as QEMU reports it."""
        self._agent = Agent(machine)
        self._result, self._say = result, say
        self._began = time.monotonic()

    def event(self, what: str, detail: str = "") -> None:
        """Add an entry to the time line, and show it to the user."""
        self._result.events.append(TimelineEntry(self._seconds(), what, detail))
        self._say(f"{what} {detail}".strip() if self.shows_details else what)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 2)

    async def answer(self, *argv: str, timeout: float = 180) -> dict[str, Any]:
        """Run a program in the guest: ``rc``, ``out``, ``err``, ``seconds``."""
        return await self._agent.run(*argv, timeout=timeout)

    async def run(self, *argv: str, timeout: float = 180) -> str:
        """Run a program in the guest that has to succeed; return its output.

        :raise GuestError: it failed
        """
        done = await self.answer(*argv, timeout=timeout)
        if done["rc"]:
            raise GuestError(f"in the guest, {shlex.join(argv)} failed: {said(done)[-400:] or done['rc']}")
        return str(done["out"])

    async def spawn(self, *argv: str, log: str) -> int:
        """Start a program in the guest, with its output in a file there; return its process id."""
        return int(await self._agent.order("spawn", argv=list(argv), log=log))

    async def own(self, *arguments: str, timeout: float = 180) -> dict[str, Any]:
        """Run a command of this project in the guest, as :meth:`answer` does."""
        return await self.answer(*self.command, *arguments, timeout=timeout)

    async def look(self, name: str) -> Moment:
        """Save a snapshot in the guest and unpack it in the directory here; let ``status`` of this checkout judge it.

        :raise GuestError: the guest could not save it
        """
        target = f"/tmp/{name}.tar.gz"
        done = await self.own("snapshot", "-o", target)
        incomplete = done["rc"] == exit_codes.CANNOT_TELL and self.machine.kernel.unmaps_image
        if done["rc"] and not incomplete:
            raise GuestError(f"snapshot failed in the guest: {said(done)[-300:]}")
        archive = self.directory / f"{name}.tar.gz"
        await self._agent.fetch(target, archive)
        with tarfile.open(archive) as members:
            for member in members.getmembers():
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise LabError(f"the snapshot holds a path that leads out of it: {member.name}")
            members.extractall(self.directory)
        report = dump.own_command("status", "--sysroot", str(self.directory / name), "--json")
        moment = Moment(name, self._seconds(), report["verdict"], report.get("reason", ""))
        memory = report.get("memory", {})
        for key in ("ram", "described", "crashkernel"):
            getattr(moment, key).extend((int(r["start"], 16), int(r["end"], 16)) for r in memory.get(key, ()))
        self._result.moments.append(moment)
        return moment

    async def plug_cpu(self, name: str) -> int:
        """Plug a CPU and bring it online; return its number.

        Under emulation, a CPU that is present and never started resets the machine when the panic's NMI reaches it.
        """
        number = await self.machine.add_cpu(name)
        path = f"/sys/devices/system/cpu/cpu{number}/online"
        await self.until(lambda: self.read(path), f"CPU {number} to appear")
        await self.write(path, "1")
        return number

    async def wait_online(self, dimm: str, bring_online: bool = False) -> None:
        """Wait until all memory blocks of a DIMM are online.

        :param bring_online: write the state of offline blocks, for a kernel without the boot parameter that does it
        """
        for block in await self.blocks(dimm):
            await self.until(partial(self._check_online, block, bring_online), f"{dimm} to come online")

    async def wait_present(self, dimm: str) -> None:
        """Wait until the last memory block of a DIMM is there; the kernel makes them in order."""
        last = (await self.blocks(dimm))[-1]
        await self.until(partial(self.read, f"{last}/state"), f"{dimm} to appear")

    async def blocks(self, dimm: str) -> list[str]:
        """Return the sysfs directories of a DIMM's memory blocks (Documentation/admin-guide/mm/memory-hotplug)."""
        size = await self.block_size()
        start, end = self.dimms[dimm]
        return [f"{_MEMORY}/memory{number}" for number in range(start // size, end // size)]

    async def block_size(self) -> int:
        """Return the bytes in a memory block of the guest."""
        return int(await self.read(f"{_MEMORY}/block_size_bytes"), 16)

    async def _check_online(self, block: str, bring_online: bool) -> None:
        state = await self.read(f"{block}/state")
        if state == "offline" and bring_online:
            await self.write(f"{block}/state", "online_movable")
        elif state != "online":
            raise GuestError(f"{block} is {state}")

    async def read(self, path: str) -> str:
        """Return a text file of the guest, without white space at its ends."""
        return str(await self._agent.order("read", path=path)).strip()

    async def write(self, path: str, text: str) -> None:
        """Write a text file of the guest, such as one of sysfs."""
        await self._agent.order("write", path=path, text=text)

    async def plant(self, dimm: str, word: int) -> int:
        """Write a 64-bit word into a page of a DIMM; return its physical address."""
        start, end = self.dimms[dimm]
        return int(await self._agent.order("plant", start=start, end=end, word=word))

    async def until(self, attempt: Callable[[], Awaitable[object]], what: str, limit: float = 90) -> None:
        """Try something until it raises no GuestError.

        :raise GuestError: it still does after ``limit`` seconds, or QEMU has ended
        """
        end = time.monotonic() + limit
        while True:
            try:
                await attempt()
            except GuestError as error:
                if not self.machine.running or time.monotonic() > end:
                    raise GuestError(f"waited {limit:.0f} s for {what}: {error}") from None
                await asyncio.sleep(0.2)
            else:
                return


def said(done: dict[str, Any]) -> str:
    """Return the output of a program in the guest, that on standard error where it printed no other."""
    return str(done["out"] or done["err"]).strip()
