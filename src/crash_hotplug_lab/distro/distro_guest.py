"""A full Debian guest while it runs: orders, what udev and the journal say, snapshots, and the dump on its disk."""

from __future__ import annotations

import asyncio
import io
import shlex
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any, Callable

import crash_hotplug
from crash_hotplug_lab.distro import disk_tools, distro_judge
from crash_hotplug_lab.distro.distro_machine import DebianMachine
from crash_hotplug_lab.qemu import dump, hosttools
from crash_hotplug_lab.qemu.agent import Agent
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.results import Event, Moment, Result

_BOOT_LIMIT = 400.0
_COPY = "/opt/crash-hotplug"
_EVENTS = "/run/crash-hotplug-lab.events"


class DebianGuest:
    """Drives a guest; what happens goes into the result's time line."""

    def __init__(self, machine: DebianMachine, directory: Path, result: Result, say: Callable[[str], None]) -> None:
        """Take the machine; ``directory`` takes what comes back from it."""
        self.machine = machine
        self.command: tuple[str, ...] = ("env", f"PYTHONPATH={_COPY}", "python3", "-m", "crash_hotplug")
        """How this project is run in the guest; another word once its package is installed there."""
        self.dimms: dict[str, tuple[int, int]] = {}
        """Physical range of each plugged DIMM, as QEMU says."""
        self.cpus: list[int] = []
        """Numbers of the plugged CPUs."""
        self.planted: tuple[int, int] | None = None
        """Physical address and value of the planted word."""
        self._agent = Agent(machine)
        self.directory, self._result, self._say = directory, result, say
        self._began = time.monotonic()

    def event(self, what: str, detail: str = "") -> None:
        """Add to the time line, and tell the person who waits."""
        self._result.events.append(Event(round(time.monotonic() - self._began, 2), what, detail))
        self._say(f"{what} {detail}".strip())

    async def boot(self) -> None:
        """Wait until the system is up, and kdump-tools has loaded the crash image."""
        await self._agent.connect(_BOOT_LIMIT)
        self.event("booted", (await self.run("uname", "-r")).strip())
        said = await self.run("kdump-config", "status")
        if "ready to kdump" not in said or "Not ready" in said:
            raise GuestError(f"kdump-tools did not load a crash image: {said.strip()}")
        self.event("kdump-tools", " ".join(said.split()))

    async def answer(self, *argv: str, timeout: float = 180) -> dict[str, Any]:
        """Run a program in the guest: ``rc``, ``out``, ``err``, ``seconds``."""
        return await self._agent.run(*argv, timeout=timeout)

    async def run(self, *argv: str, timeout: float = 180) -> str:
        """Run a program in the guest that has to succeed; return what it said.

        :raise GuestError: it failed
        """
        done = await self.answer(*argv, timeout=timeout)
        if done["rc"]:
            said = (done["err"] or done["out"]).strip()[-400:]
            raise GuestError(f"in the guest, {shlex.join(argv)} failed: {said or done['rc']}")
        return str(done["out"])

    async def own(self, *arguments: str, timeout: float = 180) -> dict[str, Any]:
        """Run a command of this project in the guest."""
        return await self.answer(*self.command, *arguments, timeout=timeout)

    async def copy_source(self) -> None:
        """Bring this checkout into the guest: to look at it, without anything of it being installed."""
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
        """Give the service options, as an administrator would."""
        await self._agent.put("/etc/default/crash-hotplug", f'OPTIONS="{options}"\n'.encode())

    async def look(self, name: str) -> Moment:
        """Save a snapshot in the guest, bring it back, and let ``status`` judge it."""
        target = f"/root/{name}.tar.gz"
        done = await self.own("snapshot", "-o", target)
        if done["rc"]:
            raise GuestError(f"snapshot failed in the guest: {(done['err'] or done['out']).strip()[-300:]}")
        await self._agent.fetch(target, self.directory / f"{name}.tar.gz")
        await self.run("rm", target)
        with tarfile.open(self.directory / f"{name}.tar.gz") as archive:
            archive.extractall(self.directory, members=[m for m in archive if ".." not in m.name])
        report = dump.own_command("status", "--sysroot", str(self.directory / name), "--json")
        moment = Moment(name, round(time.monotonic() - self._began, 2), report["verdict"], report.get("reason", ""))
        memory = report.get("memory", {})
        for key in ("ram", "described", "crashkernel"):
            getattr(moment, key).extend((int(r["start"], 16), int(r["end"], 16)) for r in memory.get(key, ()))
        self._result.moments.append(moment)
        self.event(f"status {name}", f"{moment.verdict}: {moment.reason}")
        return moment

    async def record_events(self) -> None:
        """Let udev write down what the kernel tells it of CPUs and memory from now on."""
        await self.run("systemd-run", "-q", "--unit=lab-events", "sh", "-c",
                       f"exec udevadm monitor --kernel -s cpu -s memory > {_EVENTS}")  # fmt: skip
        await asyncio.sleep(3)

    async def events(self) -> list[distro_judge.Event]:
        """Return what the kernel told udev since then; it is kept beside the result too."""
        text = await self._agent.order("read", path=_EVENTS)
        (self.directory / "uevents.txt").write_text(text)
        return distro_judge.parse_events(text)

    async def add_dimm(self, name: str, size: int) -> None:
        """Plug a DIMM and wait until all of it is online."""
        start, end = await self.machine.add_dimm(name, size)
        self.dimms[name] = (start, end)
        block = int(await self._agent.order("read", path="/sys/devices/system/memory/block_size_bytes"), 16)
        for number in range(start // block, end // block):
            await self._until(f"/sys/devices/system/memory/memory{number}/state", "online")
        self.event(f"DIMM {name}", f"phys {start:#x} to {end:#x}, online")

    async def add_cpu(self, name: str) -> None:
        """Plug a CPU and bring it online: one that never started resets the machine at the panic, under emulation."""
        number = await self.machine.add_cpu(name)
        path = f"/sys/devices/system/cpu/cpu{number}/online"
        await self._until(path, "")
        await self._agent.order("write", path=path, text="1")
        self.cpus.append(number)
        self.event(f"CPU {number}", "online")

    async def cpu_seconds(self, unit: str) -> float:
        """Return the CPU time that a unit and all that it started has taken so far."""
        said = (await self.run("systemctl", "show", "-p", "CPUUsageNSec", "--value", unit)).strip()
        return int(said) / 1e9 if said.isdigit() else 0.0

    async def plant(self, dimm: str, word: int) -> None:
        """Write a word into a process's memory that lies in a DIMM."""
        start, end = self.dimms[dimm]
        self.planted = (int(await self._agent.order("plant", start=start, end=end, word=word)), word)

    async def let_udev(self, *system_calls: str) -> None:
        """Let what udev's rules start use more system calls, as an administrator would: by a drop-in of its unit."""
        directory = "/etc/systemd/system/systemd-udevd.service.d"
        await self.run("mkdir", "-p", directory)
        text = f"[Service]\nSystemCallFilter={' '.join(system_calls)}\n"
        await self._agent.put(f"{directory}/kexec.conf", text.encode())
        await self.run("systemctl", "daemon-reload")
        await self.run("systemctl", "restart", "systemd-udevd.service")

    async def journal(self) -> str:
        """Return this boot's journal; it is kept beside the result too."""
        text = await self.run("journalctl", "-b", "-o", "short-monotonic", "--no-pager", timeout=300)
        (self.directory / "journal.txt").write_text(text)
        return text

    async def panic(self, cpu: int, limit: float) -> None:
        """Panic on a CPU, and wait until the capture kernel has ended the machine.

        :raise StuckError: it never ends
        """
        self.event("panic", f"on CPU {cpu}")
        await self._agent.send("panic", cpu=cpu)
        await self.machine.wait_dumped(limit)
        self.event("the machine ended")

    async def _until(self, path: str, text: str, limit: float = 90) -> None:
        end = time.monotonic() + limit
        while time.monotonic() < end:
            try:
                if text in (await self._agent.order("read", path=path)).strip():
                    return
            except GuestError:
                if not self.machine.running:
                    raise
            await asyncio.sleep(0.2)
        raise GuestError(f"waited {limit:.0f} s for {path} to become {text or 'there'}")


def saved_dumps(disk: Path, directory: Path) -> list[Path]:
    """Bring what kdump-tools saved out of a disk: the dumps in /var/crash, in the form that debuggers read.

    kdump-tools pipes every dump, so makedumpfile writes it flattened (-F); ``makedumpfile -R`` is how it is put right.
    """
    disk_tools.replay_journal(disk)
    disk_tools.read_directory(disk, "/var/crash", directory)
    found = []
    for flattened in sorted(directory.glob("crash/*/dump.*")):
        vmcore = directory / f"vmcore.{flattened.name.partition('.')[2]}"
        with flattened.open("rb") as file:
            command = [*hosttools.makedumpfile(), "-R", str(vmcore)]
            try:
                done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, timeout=300)
            except subprocess.TimeoutExpired:  # where the end is missing, makedumpfile 1.7 waits for more without end
                raise LabError(f"{flattened.name} breaks off: makedumpfile -R does not come to its end") from None
        if done.returncode:
            raise LabError(f"makedumpfile -R does not take {flattened.name}: {(done.stderr or done.stdout).strip()}")
        flattened.unlink()
        found.append(vmcore)
    return found


def _without_cache(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member
