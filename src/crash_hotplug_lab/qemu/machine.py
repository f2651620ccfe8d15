# SPDX-License-Identifier: MIT
"""One QEMU machine: its command line, its QMP connection, its CPUs and DIMMs, and its gdb stub."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from crash_hotplug_lab.qemu import host_tools
from crash_hotplug_lab.qemu.errors import GuestError, LabError, StuckError
from crash_hotplug_lab.qemu.guest_architecture import X86_64
from crash_hotplug_lab.qemu.kernels import Kernel

MIB = 1 << 20
_MAX_MEMORY = 64 << 30
_RESERVED = 8 << 30
"""Largest RAM at boot for which the host reserves memory; of more, a guest uses only a part."""
_SLOTS = 16
"""Default number of slots for DIMMs; QEMU allows 256."""
_DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_SPINNING = 10
"""Seconds after which CPUs that never moved are taken to spin."""


def has_kvm() -> bool:
    """Whether hardware virtualisation works here; a bare /dev/kvm may exist where it cannot."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
        os.close(os.open("/dev/kvm", os.O_RDWR))
    except OSError:
        return False
    return "vmx" in flags or "svm" in flags


class QemuMachine:
    """A running QEMU.  Use it as an asynchronous context manager, which ends QEMU in any case."""

    def __init__(self, kernel: Kernel, initramfs: Path, out: Path, memory: int = 1 << 30, cpus: int = 2,
                 ram_holes: int = 0, slots: int = 0, max_memory: int = 32 << 30,
                 counts_instructions: bool = False, crashkernel_cma: int = 0, nodes: int = 1, append: str = "",
                 devices: Sequence[str] = ()) -> None:  # fmt: skip
        """Describe the machine; ``out`` takes the serial log and the dump's disk.

        :param nodes: NUMA nodes; RAM and CPUs at boot are in the first
        :param append: more words of the kernel's command line
        :param devices: more options of QEMU
        """
        self.kernel = kernel
        self.out = out
        self.serial_log = out / "serial.log"
        self.dump = out / "vmcore"
        self._initramfs = initramfs
        self._memory = memory
        self._cpus = cpus
        self._ram_holes = ram_holes
        self._slots = max(slots, _SLOTS)
        self._max_memory = max_memory
        self._counts_instructions = counts_instructions
        self._crashkernel_cma = crashkernel_cma
        self._nodes = nodes
        self._more_words = append
        self._devices = devices
        self._run = Path(tempfile.mkdtemp(prefix="crash-hotplug-"))  # UNIX socket paths are at most 107 bytes
        self._qmp = QMPClient("lab")
        self._process: asyncio.subprocess.Process | None = None

    @property
    def agent_socket(self) -> Path:
        """Socket of the guest's second serial port."""
        return self._run / "agent"

    @property
    def gdb_socket(self) -> Path:
        """Socket of QEMU's gdb stub."""
        return self._run / "gdb"

    def make_disk(self) -> None:
        """Make the sparse disk that takes the vmcore, as large as all memory the machine can have."""
        with self.dump.open("wb") as disk:
            disk.truncate(self._max_memory + self._memory)

    def command(self, shell: bool = False) -> list[str]:
        """Return QEMU's command line.

        :param shell: put the guest's console on this terminal and start a shell there
        """
        architecture = self.kernel.architecture
        kvm = architecture is X86_64 and has_kvm() and not self._counts_instructions
        return [
            *host_tools.qemu(architecture), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            *self._accelerator(kvm), *architecture.machine(self.kernel.series, kvm, self._counts_instructions),
            "-m", f"{self._memory // MIB}M,slots={self._slots},maxmem={self._max_memory >> 30}G",
            "-smp", f"{self._cpus}{architecture.topology}", *self._ram(),
            "-kernel", str(self.kernel.vmlinuz), "-initrd", str(self._initramfs), "-append", self._append(shell),
            "-gdb", f"unix:{self.gdb_socket},server=on,wait=off",
            "-qmp", f"unix:{self._run / 'qmp'},server=on,wait=off",
            "-serial", "mon:stdio" if shell else f"file:{self.serial_log}",
            "-chardev", f"socket,id=agent,path={self.agent_socket},server=on,wait=off", "-serial", "chardev:agent",
            "-drive", f"if=none,id=dump,file={self.dump},format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap",
            "-device", architecture.disk, *self._devices,
        ]  # fmt: skip

    def _ram(self) -> list[str]:
        """Return the options that place the RAM at boot in the first of several nodes, or that leave it unreserved."""
        if self._nodes == 1 and self._memory <= _RESERVED:
            return []
        backend = ["-object", f"memory-backend-ram,id=ram,size={self._memory},reserve=off"]
        if self._nodes == 1:
            return [*backend, "-machine", "memory-backend=ram"]
        others = [word for node in range(1, self._nodes) for word in ("-numa", f"node,nodeid={node}")]
        return [*backend, "-numa", "node,nodeid=0,memdev=ram", *others]

    def _accelerator(self, kvm: bool) -> list[str]:
        if self._counts_instructions:
            # A nanosecond each: the guest's clock does not depend on the load of the host
            return ["-accel", "tcg,thread=single", "-icount", "shift=0"]
        return ["-accel", "kvm" if kvm else "tcg,thread=multi"]

    def _append(self, shell: bool) -> str:
        # Memory goes to a zone that it can be removed from; Debian's kernels since 6.12 would choose another
        architecture = self.kernel.architecture
        words = (
            f"console={architecture.console} quiet panic=1 crashkernel={architecture.crashkernel // MIB}M "
            "memhp_default_state=online_movable rdinit=/init"
        )
        if self._crashkernel_cma:
            words = f"{words} crashkernel={self._crashkernel_cma // MIB}M,cma"
        if self._ram_holes:
            # one page every 2 MiB from 64 MiB on, below the place that crashkernel= finds
            holes = ",".join(f"4K${(64 << 20) + hole * (2 << 20):#x}" for hole in range(self._ram_holes))
            words = f"{words} memmap={holes}"
        words = f"{words} {self._more_words}".rstrip()
        return f"{words} lab=shell" if shell else words

    async def __aenter__(self) -> QemuMachine:
        """Start QEMU and connect to it."""
        self.make_disk()
        command = self.command()
        (self.out / "qemu.log").write_text(" ".join(command) + "\n")
        with (self.out / "qemu.log").open("ab") as log:
            # setpriv ends QEMU when this process ends, in whatever way
            self._process = await asyncio.create_subprocess_exec(*_DIE_WITH_PARENT, *command, stdout=log, stderr=log)
        for _ in range(100):
            try:
                await self._qmp.connect(str(self._run / "qmp"))
            except QMPError:
                if self._process.returncode is not None:
                    break
                await asyncio.sleep(0.1)
            else:
                return self
        await self.__aexit__()
        said = (self.out / "qemu.log").read_text(errors="replace").strip().splitlines()[1:]
        raise LabError(f"QEMU did not start: {said[-1] if said else 'it printed nothing'}")

    async def __aexit__(self, *_: object) -> None:
        """Stop QEMU and remove its sockets."""
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        with contextlib.suppress(QMPError, OSError, EOFError):  # QEMU is gone already
            await self._qmp.disconnect()
        shutil.rmtree(self._run, ignore_errors=True)

    @property
    def running(self) -> bool:
        """Whether QEMU still runs; it ends when the guest resets."""
        return self._process is not None and self._process.returncode is None

    async def qmp(self, command: str, **arguments: Any) -> Any:  # noqa: ANN401 JSON
        """Execute one QMP command.

        :raise GuestError: QEMU refuses it or is gone
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return await self._qmp.execute(command, named)
        except ExecuteError as error:
            raise GuestError(f"QEMU refused {command}: {error}") from None
        except QMPError as error:
            raise GuestError(f"QEMU is gone ({error})") from None

    async def add_cpu(self, name: str) -> int:
        """Plug the first free CPU and return its index among QEMU's slots."""
        slots = await self.qmp("query-hotpluggable-cpus")
        slots.sort(key=lambda slot: slot["props"]["socket-id"])
        for index, slot in enumerate(slots):
            if "qom-path" not in slot:
                await self.qmp("device_add", driver=slot["type"], id=name, **slot["props"])
                return index
        raise GuestError("every CPU slot of the machine is taken")

    async def add_dimm(self, name: str, size: int, address: int = 0, node: int = 0) -> tuple[int, int]:
        """Plug a DIMM of ``size`` bytes, at a physical address where one is given; return its physical range."""
        await self.qmp("object-add", qom_type="memory-backend-ram", id=f"mem-{name}", size=size, reserve=False)
        place = {key: value for key, value in (("addr", address), ("node", node)) if value}
        await self.qmp("device_add", driver="pc-dimm", id=name, memdev=f"mem-{name}", **place)
        for start, end, device in await self.dimms():
            if device == name:
                return start, end
        raise GuestError(f"QEMU does not list the DIMM {name} that was just plugged")

    async def remove(self, name: str, timeout: float = 60) -> bool:
        """Ask the guest to release a device; return whether it did within ``timeout`` seconds (it may refuse).

        The answer is read from QEMU's tree of devices: no DEVICE_DELETED comes for a CPU under emulation.
        """
        refusals: EventListener = EventListener(("MEM_UNPLUG_ERROR", "DEVICE_UNPLUG_GUEST_ERROR"))
        end = time.monotonic() + timeout
        with self._qmp.listen(refusals):
            await self.qmp("device_del", id=name)
            while any(device["name"] == name for device in await self.qmp("qom-list", path="/machine/peripheral")):
                if time.monotonic() > end or not refusals.empty():
                    return False
                await asyncio.sleep(0.1)
        if any(memory.get("id") == f"mem-{name}" for memory in await self.qmp("query-memdev")):
            await self.qmp("object-del", id=f"mem-{name}")
        return True

    async def dimms(self) -> list[tuple[int, int, str]]:
        """Return physical start, end and name of each plugged DIMM, as QEMU reports them.

        Of a virtio-mem device it is the plugged part, which the guest's driver takes from the region's beginning.
        """
        found = []
        for device in await self.qmp("query-memory-devices"):
            data = device["data"]
            start = data["memaddr"] if "memaddr" in data else data["addr"]
            found.append((start, start + data["size"], data.get("id", "")))
        return sorted(found)

    async def wait_dumped(self, timeout: float) -> None:
        """Wait until QEMU has ended after a panic, or until a CPU spins on one instruction.

        Purgatory spins when the digest does not match.  It runs identity-mapped, so only low addresses count: a kernel
        that copies with one ``rep movs`` for seconds (removed memory reads slowly) is not taken for it.

        :raise StuckError: the guest does not end
        """
        assert self._process is not None
        last: set[int] = set()
        same, end = 0, time.monotonic() + timeout
        while time.monotonic() < end and same < _SPINNING:
            try:
                await asyncio.wait_for(self._process.wait(), 1.0)
            except asyncio.TimeoutError:
                try:
                    now = {rip for rip in await self.instruction_pointers() if rip < _MAX_MEMORY}
                except GuestError:  # it ended between the two questions
                    continue
                same = same + 1 if now & last and not now - last else 0
                last = now
            else:
                return
        raise StuckError(sorted(last))

    async def instruction_pointers(self) -> list[int]:
        """Return the instruction pointer of each CPU (virtual addresses; purgatory runs identity-mapped)."""
        shown = await self.qmp("human-monitor-command", command_line="info registers -a")
        name = self.kernel.architecture.program_counter
        return [int(found, 16) for found in re.findall(rf"\b{name}=([0-9a-f]+)", shown)]

    async def cpu_count(self) -> int:
        """Return how many CPUs are plugged, as QEMU reports it."""
        return len(await self.qmp("query-cpus-fast"))

    async def flip_bit(self, phys: int) -> None:
        """Flip the lowest bit of the byte at a physical address, through QEMU's gdb stub.

        The guest's kernel protects the crash image from every process in the guest (STRICT_DEVMEM, write-protected
        pages), so a changed byte that the digest must detect is written from outside.

        :raise GuestError: the stub does not do it
        """
        reader, writer = await asyncio.open_unix_connection(str(self.gdb_socket))
        try:
            if await _gdb_ask(reader, writer, "Qqemu.PhyMemMode:1") != "OK":
                raise GuestError("QEMU's gdb stub cannot address physical memory")
            old = int(await _gdb_ask(reader, writer, f"m{phys:x},1"), 16)
            if await _gdb_ask(reader, writer, f"M{phys:x},1:{old ^ 1:02x}") != "OK":
                raise GuestError(f"QEMU's gdb stub could not write at phys {phys:#x}")
            await _gdb_ask(reader, writer, "Qqemu.PhyMemMode:0")
            await _gdb_send(writer, "D")  # detach: the guest, which the connection stopped, goes on
            await reader.readuntil(b"#")
        except (ValueError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            raise GuestError(f"QEMU's gdb stub did not answer as expected ({error})") from None
        finally:
            writer.close()


async def _gdb_send(writer: asyncio.StreamWriter, packet: str) -> None:
    writer.write(b"+$" + packet.encode() + b"#" + b"%02x" % (sum(packet.encode()) & 0xFF))
    await writer.drain()


async def _gdb_ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, packet: str) -> str:
    await _gdb_send(writer, packet)
    await asyncio.wait_for(reader.readuntil(b"$"), 10)
    answer = await asyncio.wait_for(reader.readuntil(b"#"), 10)
    await reader.readexactly(2)
    return answer[:-1].decode()
