# SPDX-License-Identifier: MIT
"""The model machine: the state of a running kernel on which a crash dump depends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Cpu, Machine, MemoryBlocks, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.events import Event, Handled
from crash_hotplug_lab.model.kimage import ModelKimage
from crash_hotplug_lab.model.memory import PhysicalMemory
from crash_hotplug_lab.model.notifier import NotifierChain
from crash_hotplug_lab.model.profile import SYSTEM_RAM, MachineProfile


@dataclass(frozen=True)
class CpuState:
    """One possible CPU."""

    number: int
    present: bool = False
    online: bool = False
    registers: tuple[tuple[str, int], ...] = ()
    """Registers that a scenario set; the others hold recognisable values."""


@dataclass(frozen=True)
class MemoryDevice:
    """Hot-plugged memory: a DIMM, or the plugged blocks of a virtio-mem device."""

    name: str
    range: Range
    """Physical range of the device."""
    plugged: RangeList
    """Physical ranges in it that are RAM: the whole DIMM, or some blocks of virtio-mem."""
    resource: str = SYSTEM_RAM
    """Name of the RAM in /proc/iomem; driver-added RAM has the driver's name behind it."""


@dataclass
class ModelMachine:
    """A running machine.  Its fields can change; the profile is fixed at boot."""

    profile: MachineProfile
    memory: PhysicalMemory
    cpus: dict[int, CpuState]
    devices: dict[str, MemoryDevice] = field(default_factory=dict)
    blocks: dict[int, bool] = field(default_factory=dict)
    """Memory blocks by number (physical address / block size): whether each is online."""
    crash_image: ModelKimage | None = None
    """``kexec_crash_image``."""
    kexec_locked: bool = False
    """``kexec_lock`` (``kexec_mutex`` before 6.1), which a panic takes, too."""
    crash_hotplug_locked: bool = False
    """``__crash_hotplug_lock``, for which the merged handler waits before it tries the kexec lock."""
    flock_taken: bool = False
    """``/run/lock/kdump``, which the distributions' wrappers and this project's service hold."""
    uevents: tuple[Event, ...] = ()
    """Events that udev or the service has not taken yet."""
    images_loaded: int = 0
    """Number of images loaded so far; it gives each ``struct kimage`` an address of its own."""
    memory_chain: NotifierChain[Event] = field(default_factory=NotifierChain)
    """``memory_chain`` of drivers/base/memory.c."""
    cpuhp_prepare: NotifierChain[Event] = field(default_factory=NotifierChain)
    """Callbacks of CPUHP_BP_PREPARE_DYN, called before a CPU starts and after it has stopped."""
    cpuhp_online: NotifierChain[Event] = field(default_factory=NotifierChain)
    """Callbacks of CPUHP_AP_ONLINE_DYN, called after a CPU has started and before it stops."""
    reports: list[Handled] = field(default_factory=list)
    """Reports of the handlers; not part of the state."""
    whole_headers: set[bytes] = field(default_factory=set)
    """Every elfcorehdr that was built so far: any other header in a dump is torn.  Not part of the state."""

    def copy(self) -> ModelMachine:
        """Return an independent copy without subscribers; both share the pages of memory."""
        return replace(
            self,
            memory=self.memory.copy(),
            cpus=dict(self.cpus),
            devices=dict(self.devices),
            blocks=dict(self.blocks),
            reports=list(self.reports),
            memory_chain=NotifierChain(),
            cpuhp_prepare=NotifierChain(),
            cpuhp_online=NotifierChain(),
        )

    def key(self) -> int:
        """Return a number that is equal for two machines in the same state, apart from their uevents."""
        return hash(
            (
                self.memory.key,
                tuple(self.cpus.values()),
                tuple(self.devices.values()),
                tuple(sorted(self.blocks.items())),
                self.crash_image,
                (self.kexec_locked, self.crash_hotplug_locked, self.flock_taken),
            )
        )

    @property
    def ram(self) -> RangeList:
        """Physical ranges of System RAM of any kind in /proc/iomem."""
        return self.profile.boot_ram.union(r for device in self.devices.values() for r in device.plugged)

    @property
    def online_cpus(self) -> list[int]:
        """Numbers of the running CPUs."""
        return [cpu.number for cpu in self.cpus.values() if cpu.online]

    def kernel_view(self) -> Machine:
        """Return the machine as the kernel and readers of /proc/kcore see it: with the notes of every possible CPU."""
        return self._view(lambda cpu: True)

    def sysfs_view(self) -> Machine:
        """Return the machine as /proc and /sys show it: with the notes of present CPUs only."""
        return self._view(lambda cpu: cpu.present)

    def _view(self, knows_notes: Callable[[CpuState], bool]) -> Machine:
        profile = self.profile
        cpus = tuple(
            Cpu(
                cpu.number,
                cpu.present,
                cpu.online,
                NoteRegion(profile.crash_notes[cpu.number], profile.arch.crash_notes_size)
                if knows_notes(cpu)
                else None,
            )
            for cpu in self.cpus.values()
        )
        online = sum(self.blocks.values())
        return Machine(
            architecture=profile.arch.record,
            kernel_release=profile.kernel_release,
            cpus=cpus,
            ram=self.ram,
            crashkernel=RangeList(profile.crashkernel),
            kernel_text=profile.kernel_text,
            page_offset=profile.page_offset,
            vmcoreinfo=profile.vmcoreinfo,
            memory_blocks=MemoryBlocks(profile.block_size, online, len(self.blocks) - online),
        )

    def loaded_crash_image(self) -> CrashImage | None:
        """Read the loaded image out of the reserved region; None if there is none."""
        if self.crash_image is None:
            return None
        crashkernel = RangeList(self.profile.crashkernel)
        return self.crash_image.read(self.profile.arch.record, self.memory, crashkernel)

    def take_lock(self, name: str) -> Steps[None]:
        """Wait for a lock and take it.

        :param name: the machine's field of the lock
        """
        while getattr(self, name):
            yield Step(f"waits for {name}", waits=True)
        setattr(self, name, True)
        yield Step(f"{name} taken")

    def update_mem_section(self) -> None:
        """Write the kernel's table of memory sections, which tools use to find the pages of a dump."""
        for phys, data in self.profile.kernel_memory.section_table(self.ram):
            self.memory.write(phys, data)

    def send_uevent(self, event: Event) -> None:
        """Queue an event for user space."""
        self.uevents += (event,)


def boot(profile: MachineProfile) -> ModelMachine:
    """Boot a machine; no crash image is loaded."""
    machine = ModelMachine(
        profile,
        PhysicalMemory(profile.boot_ram),
        {
            number: CpuState(number, number < profile.boot_cpus, number < profile.boot_cpus)
            for number in range(len(profile.crash_notes))
        },
    )
    for ram in profile.boot_ram:
        for block in range(ram.start // profile.block_size, -(-ram.end // profile.block_size)):
            machine.blocks[block] = True
    for phys, data in profile.kernel_memory.contents():
        machine.memory.write(phys, data)
    machine.update_mem_section()
    return machine
