# SPDX-License-Identifier: MIT
"""One run of a scenario in a guest: boot, load, every step, and the panic."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shlex
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from crash_hotplug_lab.qemu import dump, keepers, memory_devices
from crash_hotplug_lab.qemu.command_steps import take_command, take_shell
from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.guest import Guest, said
from crash_hotplug_lab.qemu.guest_architecture import X86_64, GuestArchitecture
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.qemu.shift_kcore import shift_kcore
from crash_hotplug_lab.scenario.records import BUSY_PATTERN, BUSY_REGISTERS, Action, Scenario

_LOADER_OPTIONS = {"c": ("-c",), "s": ("-s",), "ch": ("-c", "--hotplug")}
_PROGRAMS = {
    "updates": "measure_updates.py", "kills": "kill_updates.py", "handler": "measure_handler.py",
    "watch-idle": "watch_idle.py", "watch-events": "watch_events.py", "watch-trouble": "watch_trouble.py",
    "watch-forged": "watch_forged.py",
}  # fmt: skip
_BOOT_LIMIT = 180.0
_PT_LOAD = 1


@dataclass
class Observed:
    """Facts that a run collected, for the judge."""

    architecture: GuestArchitecture = X86_64
    dimms: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Physical range of every DIMM that was ever plugged, as QEMU reported it."""
    online: set[str] = field(default_factory=set)
    """DIMMs that are online and that the guest was not asked to release."""
    gone: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Removed DIMMs whose place is still empty."""
    plugged: list[tuple[int, int, str]] = field(default_factory=list)
    """DIMMs that QEMU had at the panic."""
    unplugged: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of memory blocks that virtio-mem plugged in part: described as RAM, and not plugged."""
    cpu_count: int = 0
    """CPUs that QEMU had at the panic."""
    words: list[tuple[int, int]] = field(default_factory=list)
    """Physical address at the panic and value of each planted word."""
    busy_cpu: int | None = None
    busy_pid: int = 0
    registers: tuple[int, ...] = ()
    """Values of registers 8 to 15 of the busy CPU."""
    panic_cpu: int = 0
    panic_pid: int = 0
    capture_started: bool = False
    vmcore: Path | None = None
    """The vmcore, if the capture kernel saved a whole one."""
    vmcore_error: str = ""
    stuck_at: list[int] = field(default_factory=list)
    """Instruction pointer of each CPU of a guest that hung after its panic."""
    snapshot: Path | None = None
    """The last snapshot before the panic."""


class GuestRun(Guest):
    """A guest that takes the steps of a scenario."""

    def __init__(self, machine: QemuMachine, scenario: Scenario, loader: str, update: str, directory: Path,
                 result: Result, say: Callable[[str], None]) -> None:  # fmt: skip
        """Take the scenario, the loader and the way of updating; nothing is booted yet."""
        super().__init__(machine, directory, result, say)
        self.seen = Observed(machine.kernel.architecture, dimms=self.dimms)
        self.panicked = False
        self._scenario, self._loader, self._update = scenario, loader, update
        self._paced_at = 0.0
        self._kmem: set[str] = set()
        """Names of devices that the kmem driver was given."""
        self._actions = {
            "add-cpu": self._add_cpu, "remove-cpu": self._remove_cpu, "online-cpu": self._online_cpu,
            "offline-cpu": self._offline_cpu, "add-dimm": self._add_dimm, "add-kmem": self._add_kmem,
            "add-virtio-mem": self._resize_virtio_mem, "resize-virtio-mem": self._resize_virtio_mem,
            "remove-dimm": self._remove_dimm, "offline-block": self._offline_block, "online-block": self._online_block,
            "plant": self._plant, "busy": self._busy, "load": self._load_step, "update": self._update_step,
            "command": self._command, "shell": self._shell, "look": self._look_step,
            "flip": self._flip, "measure": self._measure, "wait": self._wait, "pace": self._pace, "panic": self._panic,
            "storm": self._storm, "shift-kcore": self._shift_kcore, "end": self._end,
            "panic-within": self._panic_within,
        }  # fmt: skip

    async def live(self) -> None:
        """Boot, load, take every step, and wait for the dump of the panic, the last step."""
        self._began = time.monotonic()
        await self._agent.connect(_BOOT_LIMIT * self.machine.kernel.architecture.time_factor)
        self.event("booted", self.machine.kernel.release)
        await self._load()
        await self._look("loaded")
        if self._update == "watch":
            await keepers.start_watch(self._agent)
            self.event("watch", await keepers.wait_accurate(self._agent))
        if any(action.do == "panic-within" for action in self._scenario.actions):
            await self._live_until_it_panics()
            return
        for action in self._scenario.actions[:-1]:
            await self._take(action)
        looked = any(action.do == "look" for action in self._scenario.actions)
        if len(self._scenario.actions) > 1 and not looked:
            await self._look("before-panic")
        if self._update == "watch":
            self.event("watch's log", await keepers.watch_log(self._agent))
        await self._see_plugged()
        self.seen.cpu_count = await self.machine.cpu_count()
        words = await self._agent.order("where")
        self.seen.words = [(now, value) for now, (_, value) in zip(words, self.seen.words)]
        await self._take(self._scenario.actions[-1])
        if self._scenario.ends_without_dump:
            return
        await self.machine.wait_dumped(self._scenario.time_limit)

    async def _see_plugged(self) -> None:
        """Ask QEMU what is plugged.  Of a virtio-mem device the guest has whole memory blocks, the last in part."""
        block = await self.block_size()
        # The guest has less of an NVDIMM than QEMU, and QEMU does not list a CXL device
        devices = [device for device in await self.machine.dimms() if device[2] not in self._kmem]
        devices += [(*self.dimms[name], name) for name in self._kmem & self.seen.online]
        for start, end, name in devices:
            whole = -(-end // block) * block
            if start < end:
                self.seen.plugged.append((start, whole, name))
            if start < end < whole:
                self.seen.unplugged.append((end, whole))

    async def _live_until_it_panics(self) -> None:
        """Take steps until the panic that one of them armed; only completed steps count as plugged."""
        try:
            for action in self._scenario.actions:
                await self._take(action)
        except GuestError as error:
            if not self.panicked:
                raise
            self.event("panicked", str(error))
        await self.machine.wait_dumped(self._scenario.time_limit)

    def after_death(self) -> None:
        """Read from the serial log whether the capture kernel saved the vmcore, and cut the dump's disk to its size."""
        log = (self.directory / "serial.log").read_text(errors="replace")
        size = re.search(r"crash-hotplug-lab: vmcore size (\d+)", log)
        self.seen.capture_started = size is not None
        failed = re.search(r"crash-hotplug-lab: vmcore failed: (.*)", log)
        if size:
            self.event("capture kernel", f"{int(size.group(1)) >> 20} MiB of vmcore")
        if size and "crash-hotplug-lab: vmcore saved" in log:
            self.seen.vmcore = self.directory / "vmcore"
            os.truncate(self.seen.vmcore, int(size.group(1)))
        elif size:
            self.seen.vmcore_error = failed.group(1).strip() if failed else "the capture kernel did not finish"

    async def _take(self, action: Action) -> None:
        await self._actions[action.do](action)

    @property
    def _append(self) -> str:
        """The capture kernel's command line."""
        words = self.machine.kernel.architecture.capture_append.split()
        return " ".join(word for word in words if word not in self._scenario.load.capture_without)

    def _load_command(self, *options: str) -> list[str]:
        return ["kexec", "-p", *options, "/boot/vmlinuz", "--initrd=/boot/capture.img", f"--append={self._append}"]

    async def _load(self) -> None:
        if self._loader == "own":
            files = ("/boot/vmlinuz", "--initrd", "/boot/capture.img", "--append", self._append)
            done = await self.own("load", *files)
            if done["rc"] or "; ready for hot-plug" not in said(done):
                raise GuestError(f"crash-hotplug load failed in the guest: {said(done)}")
            self.event("loaded", f"crash-hotplug load, {done['seconds']} s: {said(done)}")
            return
        options = _LOADER_OPTIONS[self._loader]
        done = await self.answer(*self._load_command(*options))
        if done["rc"]:
            lines = (done["err"] or done["out"]).strip().splitlines()
            raise GuestError(f"kexec -p {' '.join(options)} failed in the guest: {lines[-1] if lines else done['rc']}")
        self.event("loaded", f"kexec -p {' '.join(options)}, {done['seconds']} s")

    async def _look(self, name: str) -> None:
        """Save a snapshot; compare ``status`` there and here, and the header that this checkout builds."""
        moment = await self.look(name)
        self.seen.snapshot = self.directory / name
        live = await self.own("status", "--json")
        there = json.loads(live["out"] or "{}")
        layout = there.get("in_place", {}).get("kimage_layout")
        detail = f"{there.get('reason') or live['err'].strip()}; layout of struct kimage: {layout}"
        self._result.check(f"status in the guest, {name}", there.get("verdict") == moment.verdict, detail)
        self.event(f"status {name}", f"{moment.verdict}: {moment.reason}")
        if moment.verdict == "accurate":
            await self._own_header(name)

    async def _own_header(self, name: str) -> None:
        """Compare the header that this checkout builds in the guest with the loaded one, byte for byte."""
        loaded = self.directory / name / "crash-image/elfcorehdr"
        if not loaded.exists():
            return
        rules: tuple[str, ...] = ()
        if name == "loaded":
            rewritten = self._loader == "ch" and self.machine.kernel.source.rewrites_headers
            rules = ("--loader", "kexec-tools" if self._loader in ("c", "ch") and not rewritten else "kernel")
            if self._loader == "own":  # the take-over describes every possible CPU on every kernel
                rules = (*rules, "--possible-cpus")
        target = f"/tmp/{name}.elfcorehdr"
        done = await self.own("header", *rules, "-o", target)
        if done["rc"]:
            self._result.check(f"own header, {name}", False, (done["err"] or done["out"]).strip()[-200:])
            return
        own = self.directory / f"{name}.elfcorehdr"
        await self._agent.fetch(target, own)
        mine, theirs = own.read_bytes(), loaded.read_bytes()
        same = _header(mine) == _header(theirs)
        how = "built from nothing" if rules else "brought to this machine"
        detail = f"{how}, byte for byte the loaded one, padding aside"
        if not same and _entries(mine) == _entries(theirs):
            # On arm64 a DIMM may begin where the RAM ends; kexec-tools keeps the two lines of /proc/iomem apart
            same, detail = True, f"{how}, the loaded one but for ranges that touch, which are one entry here"
        self._result.check(f"own header, {name}", same, detail)

    async def _add_cpu(self, action: Action) -> None:
        cpu = action.arguments["cpu"]
        number = await self.plug_cpu(f"cpu{cpu}")
        if number != cpu:
            raise GuestError(f"QEMU plugged CPU {number}, not CPU {cpu}: it plugs the first that is free")
        self.event(str(action), f"CPU {number}, online")

    async def _remove_cpu(self, action: Action) -> None:
        name = f"cpu{action.arguments['cpu']}"
        if not await self.machine.remove(name):
            raise GuestError(f"the guest did not release {name}")
        self.event(str(action), "removed")

    async def _online_cpu(self, action: Action) -> None:
        await self._set_cpu(action, "1")

    async def _offline_cpu(self, action: Action) -> None:
        await self._set_cpu(action, "0")

    async def _set_cpu(self, action: Action, online: str) -> None:
        path = f"/sys/devices/system/cpu/cpu{action.arguments['cpu']}/online"
        await self.write(path, online)
        self.event(str(action), path)

    async def _add_dimm(self, action: Action) -> None:
        name, size, address = action.arguments["name"], action.arguments["size"], action.arguments.get("address", 0)
        self._plugged(name, await self.machine.add_dimm(name, size, address, action.arguments.get("node", 0)))
        start, end = self.dimms[name]
        if action.arguments.get("leave-offline"):
            await self.wait_present(name)
            self.event(str(action), f"phys {start:#x} to {end:#x}, offline")
            return
        await self.wait_online(name, bring_online=True)
        self.seen.online.add(name)
        self.event(str(action), f"phys {start:#x} to {end:#x}, online")

    def _plugged(self, name: str, place: tuple[int, int]) -> None:
        """Record the place of memory that was plugged."""
        start, end = self.dimms[name] = place
        self.seen.gone = {n: r for n, r in self.seen.gone.items() if r[0] >= end or r[1] <= start}

    async def _add_kmem(self, action: Action) -> None:
        name = action.arguments["name"]
        self._kmem.add(name)
        self._plugged(name, await memory_devices.give_to_kmem(self, action))
        start, end = self.dimms[name]
        await self.wait_online(name, bring_online=True)
        self.seen.online.add(name)
        self.event(str(action), f"phys {start:#x} to {end:#x}, online")

    async def _resize_virtio_mem(self, action: Action) -> None:
        name, size = action.arguments["name"], action.arguments.get("requested", 0)
        start, end = await memory_devices.resize(self, name, size)
        if start == end:
            if name in self.seen.online:
                self.seen.gone[name] = self.dimms[name]
            self.seen.online.discard(name)
            self.event(str(action), "nothing is plugged")
            return
        self._plugged(name, (start, end))
        await self.wait_online(name, bring_online=True)
        self.seen.online.add(name)
        self.event(str(action), f"{size:#x} bytes from phys {start:#x} on; the memory blocks end at {end:#x}")

    async def _remove_dimm(self, action: Action) -> None:
        name = action.arguments["name"]
        self.seen.online.discard(name)
        if name in self._kmem:
            await memory_devices.take_from_kmem(self, name)
        elif not await self.machine.remove(name):
            raise GuestError(f"the guest did not release {name}")
        self.seen.gone[name] = self.seen.dimms[name]
        self.event(str(action), "removed")

    async def _offline_block(self, action: Action) -> None:
        await self._set_block(action, "offline")

    async def _online_block(self, action: Action) -> None:
        await self._set_block(action, "online_movable")

    async def _set_block(self, action: Action, state: str) -> None:
        path = f"{(await self.blocks(action.arguments['dimm']))[action.arguments['block']]}/state"
        await self.write(path, state)
        self.event(str(action), path)

    async def _plant(self, action: Action) -> None:
        value = secrets.randbits(64)
        phys = await self.plant(action.arguments["dimm"], value)
        self.seen.words.append((phys, value))
        self.event(str(action), f"{value:#018x} at phys {phys:#x}")

    async def _busy(self, action: Action) -> None:
        self.seen.busy_cpu = action.arguments["cpu"]
        self.seen.busy_pid = await self._agent.order("busy", cpu=self.seen.busy_cpu, pattern=BUSY_PATTERN)
        self.seen.registers = tuple(BUSY_REGISTERS.values())
        await asyncio.sleep(0.5)
        self.event(str(action), f"registers 8 to 15 from {self.seen.registers[0]:#x}")

    async def _load_step(self, action: Action) -> None:
        await self._load()

    async def _update_step(self, action: Action) -> None:
        if self._update == "reload":
            await self._load()
        elif self._update == "in-place" and action.arguments.get("resident"):
            self.event("update in place", await self._agent.order("update"))
        elif self._update == "in-place":
            done = await self.own("update")
            self.event("update in place", said(done))
            if done["rc"]:
                raise GuestError(f"the update in place failed: {said(done)}")
        elif self._update == "watch":
            self.event("watch", await keepers.wait_accurate(self._agent))
        elif self._update == "kernel":
            await asyncio.sleep(0.3)  # the handler has run when sysfs says online; removals may take longer
            self.event("update", "left to the kernel's own handler")
        else:
            self.event("update", "the image is not updated")

    async def _flip(self, action: Action) -> None:
        if self.seen.snapshot is None:
            raise GuestError("there is no snapshot with the addresses of the crash image")
        image = dump.crash_image(self.seen.snapshot)
        where = action.arguments["in"]
        # the last byte of the page: padding of the boot description, or zeros behind the header's last entry
        phys = (image.boot_description if where == "boot_params" else image.elfcorehdr) + 4095
        if where != "boot_params" and self._loader in ("c", "ch"):
            phys -= 4096 - 1024  # kexec-tools pads to 1 KiB
        await self.machine.flip_bit(phys)
        self.event(str(action), f"the byte at phys {phys:#x}")

    async def _command(self, action: Action) -> None:
        await take_command(
            self._agent, self.machine, action, self.seen.snapshot, self._append, self._result, self.event
        )

    async def _shell(self, action: Action) -> None:
        await take_shell(self._agent, action, self._append, self.event)

    async def _look_step(self, action: Action) -> None:
        await self._look("before-panic")

    async def _measure(self, action: Action) -> None:
        """Run a measuring program in the guest (experiments/, or `bench`); its output goes into the time line."""
        what, number = action.arguments["what"], str(action.arguments["number"])
        if what == "bench":
            program = ["-m", "crash_hotplug_lab", "bench", "--yes", "--rounds", number]
            for option in ("-c", "-s"):
                program += ["--against", shlex.join(self._load_command(option))]
        else:
            program = [f"/lab/{_PROGRAMS[what]}", number, *action.arguments.get("of", "").split()]
            if what == "updates" and self._scenario.counts_instructions:
                program.append("counted")
        done = await self.answer("python3", *program, timeout=self._scenario.time_limit)
        (self.directory / f"{what}.txt").write_text(f"{said(done)}\n")
        self.event(str(action), "; ".join(said(done).splitlines()))
        if done["rc"]:
            raise GuestError(f"{action} failed: {(done['err'] or done['out']).strip()[-300:]}")

    async def _storm(self, action: Action) -> None:
        self._result.storm = await keepers.storm(self.machine, self._agent, action, self._scenario.time_limit)
        self.event(str(action), str(self._result.storm))

    async def _shift_kcore(self, action: Action) -> None:
        output = await shift_kcore(self, action.arguments["number"], self._scenario.time_limit)
        self.event(str(action), "; ".join(output.splitlines()))

    async def _end(self, action: Action) -> None:
        self.event(str(action), "the guest is switched off")

    async def _wait(self, action: Action) -> None:
        await asyncio.sleep(float(action.arguments["seconds"]))

    async def _pace(self, action: Action) -> None:
        """Wait until the seconds have passed since the last ``pace`` step, so that every update sees the same rate."""
        await asyncio.sleep(max(0.0, self._paced_at + float(action.arguments["seconds"]) - time.monotonic()))
        self._paced_at = time.monotonic()

    async def _panic(self, action: Action) -> None:
        self.seen.panic_cpu, self.seen.panic_pid = action.arguments["cpu"], self._agent.pid
        self.event(str(action))
        self.panicked = True
        await self._agent.send("panic", cpu=action.arguments["cpu"])

    async def _panic_within(self, action: Action) -> None:
        delay = secrets.randbelow(int(1000 * action.arguments["seconds"])) / 1000
        self.seen.panic_cpu = action.arguments["cpu"]
        self.seen.panic_pid = await self._agent.order("panic_after", cpu=action.arguments["cpu"], seconds=delay)
        self.panicked = True
        self.event(str(action), f"in {delay} s")


def _header(raw: bytes) -> bytes:
    """Return an elfcorehdr without the padding behind its last program header (e_phnum is at 56)."""
    return raw[: 64 + 56 * int.from_bytes(raw[56:58], "little")]


def _entries(raw: bytes) -> list[tuple[int, ...]]:
    """Return the program headers of an elfcorehdr, those of ranges that touch merged."""
    merged: list[tuple[int, ...]] = []
    for entry in struct.iter_unpack("<IIQQQQQQ", _header(raw)[64:]):
        if merged and entry[0] == merged[-1][0] == _PT_LOAD:
            kind, flags, offset, virtual, physical, file_size, size, align = merged[-1]
            if entry[2:5] == (offset + size, virtual + size, physical + size) and file_size == size:
                merged[-1] = (kind, flags, offset, virtual, physical, file_size + entry[5], size + entry[6], align)
                continue
        merged.append(entry)
    return merged
