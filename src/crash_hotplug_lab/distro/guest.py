# SPDX-License-Identifier: MIT
"""A full guest while it runs: its crash dump service, its journal, its uevents, and the dumps on its disk."""

from __future__ import annotations

import asyncio
import io
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Callable

import crash_hotplug
from crash_hotplug_lab.distro import judge, kexec_calls
from crash_hotplug_lab.distro.family import DEBIAN, Family
from crash_hotplug_lab.distro.image import DebianMachine
from crash_hotplug_lab.distro.kexec_calls import KexecCall
from crash_hotplug_lab.qemu import host_tools
from crash_hotplug_lab.qemu.errors import GuestError, LabError
from crash_hotplug_lab.qemu.guest import Guest
from crash_hotplug_lab.qemu.results import Moment, Result

_BOOT_LIMIT = 400.0
_QUIET_LOOKS = 4
_FLATTENED = b"makedumpfile\0\0\0\0"
"""Signature of makedumpfile's flattened format (IMPLEMENTATION of makedumpfile)."""
_COPY = "/opt/crash-hotplug"
_EVENTS = "/run/crash-hotplug-lab.events"
_TOUCHED = ("/etc", "/usr/lib/udev", "/usr/lib/systemd", "/usr/lib/kdump", "/run/udev/rules.d")
"""Directories in which ``doctor --fix`` might change a file."""
_CGROUPS = ("system.slice", "init.scope")
_OWN_UNITS = ("system.slice/crash-hotplug-lab.service", "system.slice/lab-events.service")


class DebianGuest(Guest):
    """A full Debian guest with the kdump tools of a family."""

    shows_details = True

    def __init__(self, machine: DebianMachine, family: Family, directory: Path, result: Result,
                 say: Callable[[str], None]) -> None:  # fmt: skip
        """Take the machine; ``directory`` takes the files that come back from the guest."""
        super().__init__(machine, directory, result, say)
        self.family = family
        self.command = ("env", f"PYTHONPATH={_COPY}", *self.command)
        self.cpus: list[int] = []
        """Numbers of the plugged CPUs."""
        self.planted: tuple[int, int] | None = None
        """Physical address and value of the planted word."""
        self.kernel_updates = False
        """Whether the kernel updates the header of the loaded image by itself."""

    async def boot(self) -> None:
        """Wait until the system is up, and the family's unit has loaded the crash image."""
        await self._agent.connect(_BOOT_LIMIT)
        self.event("booted", (await self.run("uname", "-r")).strip())
        state = (await self.answer("systemctl", "is-active", self.family.unit))["out"].strip()
        if state != "active" or not await self.has_image():
            raise GuestError(f"{self.family.unit} did not load a crash image: it is {state}")
        self.event(self.family.unit, state)

    async def has_image(self) -> bool:
        """Whether a crash image is loaded."""
        return await self.read("/sys/kernel/kexec_crash_loaded") == "1"

    async def choose_loader(self, loader: str) -> None:
        """Set the system call of the family's tools (``c`` or ``s``), and load the image again by it."""
        assert self.family.kexec_args is not None
        file, setting = self.family.kexec_args
        await self.run("sed", "-i", "-e", f"/^{setting}=/d", "-e", f'$a{setting}="-{loader}"', file)
        await self.run(*self.family.reload, timeout=600)
        self.event(f"{setting} in {file}", f"-{loader}")

    async def ask_kernel_updates(self) -> None:
        """Read what the family's rule asks: whether the kernel updates the header of the loaded image."""
        found = await self.answer("cat", *(f"/sys/devices/system/{kind}/crash_hotplug" for kind in ("cpu", "memory")))
        self.kernel_updates = found["out"].split() == ["1", "1"]
        self.event("the kernel updates the header", "yes" if self.kernel_updates else "no")

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
        """Start to record the kernel's uevents of CPUs and memory, as udev receives them, and the calls of kexec."""
        for file, value in kexec_calls.SETTINGS:
            await self.write(f"{kexec_calls.TRACING}/{file}", value)
        await self.run("systemd-run", "-q", "--unit=lab-events", "sh", "-c",
                       f"exec udevadm monitor --kernel -s cpu -s memory > {_EVENTS}")  # fmt: skip
        await asyncio.sleep(3)

    async def events(self) -> list[judge.TimedUevent]:
        """Return the recorded uevents; a copy is kept beside the result."""
        text = str(await self._agent.order("read", path=_EVENTS))
        (self.directory / "uevents.txt").write_text(text)
        return judge.parse_events(text)

    async def kexec_calls(self) -> list[KexecCall]:
        """Return the recorded calls of kexec_load and kexec_file_load; a copy is kept beside the result."""
        text = str(await self._agent.order("read", path=f"{kexec_calls.TRACING}/trace"))
        (self.directory / "kexec-calls.txt").write_text(text)
        return kexec_calls.parse_calls(text)

    async def reloads_over(self, limit: float = 900.0) -> None:
        """Wait until no program that reloads the image has run for some seconds.

        :raise GuestError: one still runs after ``limit`` seconds
        """
        end, quiet = time.monotonic() + limit, 0
        while quiet < _QUIET_LOOKS:
            if time.monotonic() > end:
                raise GuestError(f"reloads were still going on {limit:.0f} s after the last event")
            found = await self.answer("pgrep", "-f", "kdump-udev-throttler|kdumpctl|kdump-config|kdump/load")
            quiet = quiet + 1 if found["rc"] == 1 else 0
            await asyncio.sleep(1)

    async def digests(self) -> str:
        """Return the digest of each file that ``doctor --fix`` might change, and the target of each link."""
        find = ("find", *_TOUCHED, "(", "-type", "f", "-exec", "sha256sum", "{}", "+", ")", "-o", "-type", "l",
                "-printf", "%p -> %l\n")  # fmt: skip
        return "\n".join(sorted(str((await self.answer(*find))["out"]).splitlines()))

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

    async def cpu_seconds(self) -> float:
        """Return the CPU time of all services and of systemd, without the lab's own.

        A rule may start its reload in a unit of its own (``systemd-run``), so no single unit has all of it.
        """
        spent = 0
        for sign, groups in ((1, _CGROUPS), (-1, _OWN_UNITS)):
            for group in groups:
                found = await self.answer("sed", "-n", "s/^usage_usec //p", f"/sys/fs/cgroup/{group}/cpu.stat")
                spent += sign * int(found["out"] or 0)
        return spent / 1e6

    async def let_udev(self, *system_calls: str) -> None:
        """Allow programs started by udev rules more system calls, by a drop-in of udev's unit."""
        directory = "/etc/systemd/system/systemd-udevd.service.d"
        await self.run("mkdir", "-p", directory)
        text = f"[Service]\nSystemCallFilter={' '.join(system_calls)}\n"
        await self._agent.put(f"{directory}/kexec.conf", text.encode())
        await self.run("systemctl", "daemon-reload")
        await self.run("systemctl", "restart", "systemd-udevd.service")

    async def correct_rule(self) -> None:
        """Let the rule start its reload outside udev's sandbox, and the capture kernel leave the DIMMs alone."""
        rule, starts = self.family.rule, self.family.rule_starts
        outside = rf's#(PROGRAM=|RUN\+=)"{starts}"#RUN+="/usr/bin/systemd-run --no-block --collect {starts}"#'
        places = [f"{place}/{rule}" for place in ("/usr/lib/udev/rules.d", "/usr/lib/kdump", "/run/udev/rules.d")]
        found = [path for path in places if (await self.answer("test", "-e", path))["rc"] == 0]
        await self.run("sed", "-i", "-E", outside, *found)
        await self.run("udevadm", "control", "--reload")
        for path in found:
            self.event(path, await self.read(path))
        if self.family is DEBIAN:  # openSUSE's load.sh passes it by itself
            append = r's#^(KDUMP_CMDLINE_APPEND="[^"]*)"#\1 acpi_no_memhotplug"#'
            await self.run("sed", "-i", "-E", append, "/etc/default/kdump-tools")
            await self.run(*self.family.reload, timeout=600)

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


def saved_dumps(family: Family, disk: Path, directory: Path) -> list[Path]:
    """Copy the dumps of the family's tools out of a disk, in the form that debuggers read.

    kdump-tools and openSUSE's kdump-save pipe every dump, so makedumpfile writes it flattened (-F); ``makedumpfile -R``
    restores its order.

    :raise LabError: makedumpfile cannot restore one
    """
    host_tools.replay_journal(disk)
    host_tools.read_directory(disk, "/var/crash", directory)
    found = []
    for number, saved in enumerate(sorted(directory.glob(family.dumps))):
        vmcore = directory / f"vmcore.{number}"
        with saved.open("rb") as file:
            if file.read(len(_FLATTENED)) == _FLATTENED:
                _rearrange(saved, vmcore)
            else:
                saved.rename(vmcore)
        found.append(vmcore)
    return found


def _rearrange(flattened: Path, vmcore: Path) -> None:
    with flattened.open("rb") as file:
        command = [*host_tools.makedumpfile(), "-R", str(vmcore)]
        try:
            done = subprocess.run(command, stdin=file, capture_output=True, text=True, check=False, timeout=300)
        except subprocess.TimeoutExpired:  # makedumpfile 1.7 waits for ever for a missing end
            raise LabError(f"{flattened.name} breaks off: makedumpfile -R does not come to its end") from None
    if done.returncode:
        raise LabError(f"makedumpfile -R does not take {flattened.name}: {(done.stderr or done.stdout).strip()}")
    flattened.unlink()


def _without_cache(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in member.name else member
