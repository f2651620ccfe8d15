# SPDX-License-Identifier: MIT
"""A full Debian guest while it runs: its crash dump service, its journal, its uevents, and the dumps on its disk."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Callable

import crash_hotplug
from crash_hotplug_lab.distro import judge
from crash_hotplug_lab.distro.image import DebianMachine
from crash_hotplug_lab.qemu import host_tools
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.guest import Guest
from crash_hotplug_lab.qemu.results import Moment, Result

_BOOT_LIMIT = 400.0
_COPY = "/opt/crash-hotplug"
_EVENTS = "/run/crash-hotplug-lab.events"


class DebianGuest(Guest):
    """A full Debian guest."""

    shows_details = True

    def __init__(self, machine: DebianMachine, directory: Path, result: Result, say: Callable[[str], None]) -> None:
        """Take the machine; ``directory`` takes the files that come back from the guest."""
        super().__init__(machine, directory, result, say)
        self.command = ("env", f"PYTHONPATH={_COPY}", *self.command)
        self.cpus: list[int] = []
        """Numbers of the plugged CPUs."""
        self.planted: tuple[int, int] | None = None
        """Physical address and value of the planted word."""

    async def boot(self) -> None:
        """Wait until the system is up, and kdump-tools has loaded the crash image."""
        await self._agent.connect(_BOOT_LIMIT)
        self.event("booted", (await self.run("uname", "-r")).strip())
        said = await self.run("kdump-config", "status")
        if "ready to kdump" not in said or "Not ready" in said:
            raise GuestError(f"kdump-tools did not load a crash image: {said.strip()}")
        self.event("kdump-tools", " ".join(said.split()))

    async def copy_source(self) -> None:
        """Copy this checkout into the guest; nothing is installed."""
        raw = io.BytesIO()
        package = Path(crash_hotplug.__file__).parent
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for room in ("__init__.py", "__main__.py", "core", "linux", "cli"):
                tar.add(package / room, f"crash_hotplug/{room}", filter=_without_cache)
        await self._agent.put("/tmp/source.tar", raw.getvalue())
        await self.run("mkdir", "-p", _COPY)
        await self.run("tar", "-xf", "/tmp/source.tar", "-C", _COPY)

    async def install(self, deb: Path) -> None:
        """Install a package file with dpkg."""
        await self._agent.put(f"/tmp/{deb.name}", deb.read_bytes())
        said = await self.run("dpkg", "-i", f"/tmp/{deb.name}", timeout=300)
        self.command = ("crash-hotplug",)
        self.event("installed", said.strip().splitlines()[-1])

    async def set_service_options(self, options: str) -> None:
        """Set options of the service, as an administrator would."""
        await self._agent.put("/etc/default/crash-hotplug", f'OPTIONS="{options}"\n'.encode())

    async def look(self, name: str) -> Moment:
        """Save a snapshot and judge it, as every guest does; the verdict goes into the time line."""
        moment = await super().look(name)
        self.event(f"status {name}", f"{moment.verdict}: {moment.reason}")
        return moment

    async def record_events(self) -> None:
        """Start to record the kernel's uevents of CPUs and memory, as udev receives them."""
        await self.run("systemd-run", "-q", "--unit=lab-events", "sh", "-c",
                       f"exec udevadm monitor --kernel -s cpu -s memory > {_EVENTS}")  # fmt: skip
        await asyncio.sleep(3)

    async def events(self) -> list[judge.TimedUevent]:
        """Return the recorded uevents; a copy is kept beside the result."""
        text = str(await self._agent.order("read", path=_EVENTS))
        (self.directory / "uevents.txt").write_text(text)
        return judge.parse_events(text)

    async def add_dimm(self, name: str, size: int) -> None:
        """Plug a DIMM and wait until all of it is online."""
        start, end = self.dimms[name] = await self.machine.add_dimm(name, size)
        await self.wait_online(name)
        self.event(f"DIMM {name}", f"phys {start:#x} to {end:#x}, online")

    async def add_cpu(self, name: str) -> None:
        """Plug a CPU and bring it online."""
        number = await self.plug_cpu(name)
        self.cpus.append(number)
        self.event(f"CPU {number}", "online")

    async def cpu_seconds(self, unit: str) -> float:
        """Return the CPU time of a unit and of all processes that it started."""
        said = (await self.run("systemctl", "show", "-p", "CPUUsageNSec", "--value", unit)).strip()
        return int(said) / 1e9 if said.isdigit() else 0.0

    async def let_udev(self, *system_calls: str) -> None:
        """Allow programs started by udev rules more system calls, by a drop-in of udev's unit."""
        directory = "/etc/systemd/system/systemd-udevd.service.d"
        await self.run("mkdir", "-p", directory)
        text = f"[Service]\nSystemCallFilter={' '.join(system_calls)}\n"
        await self._agent.put(f"{directory}/kexec.conf", text.encode())
        await self.run("systemctl", "daemon-reload")
        await self.run("systemctl", "restart", "systemd-udevd.service")

    async def journal(self) -> str:
        """Return the journal of this boot; a copy is kept beside the result."""
        text = await self.run("journalctl", "-b", "-o", "short-monotonic", "--no-pager", timeout=300)
        (self.directory / "journal.txt").write_text(text)
        return text

    async def panic(self, cpu: int, limit: float) -> None:
        """Panic on a CPU, and wait until the capture kernel has ended the machine.

        :raise StuckError: the machine does not end
        """
        self.event("panic", f"on CPU {cpu}")
        await self._agent.send("panic", cpu=cpu)
        await self.machine.wait_dumped(limit)
        self.event("the machine ended")


def saved_dumps(disk: Path, directory: Path) -> list[Path]:
    """Copy the dumps in /var/crash out of a disk, in the form that debuggers read.

    kdump-tools pipes every dump, so makedumpfile writes it flattened (-F); ``makedumpfile -R`` restores its order.

    :raise LabError: makedumpfile cannot restore one
    """
    host_tools.replay_journal(disk)
    host_tools.read_directory(disk, "/var/crash", directory)
    found = []
    for flattened in sorted(directory.glob("crash/*/dump.*")):
        vmcore = directory / f"vmcore.{flattened.name.partition('.')[2]}"
        with flattened.open("rb") as file:
            command = [*host_tools.makedumpfile(), "-R", str(vmcore)]
            try:
                done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, timeout=300)
            except subprocess.TimeoutExpired:  # makedumpfile 1.7 waits for ever for a missing end
                raise LabError(f"{flattened.name} breaks off: makedumpfile -R does not come to its end") from None
        if done.returncode:
            raise LabError(f"makedumpfile -R does not take {flattened.name}: {(done.stderr or done.stdout).strip()}")
        flattened.unlink()
        found.append(vmcore)
    return found


def _without_cache(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member
