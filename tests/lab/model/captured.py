# SPDX-License-Identifier: MIT
"""Model machines with the addresses of the captured ones, brought through the same four states."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import run
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug_lab.model.arch.x86_64 import X86_64
from crash_hotplug_lab.model.hotplug import add_cpu, add_memory, offline_block, online_block, online_cpu, remove_memory
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.loader import CaptureKernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.policies import Merged
from crash_hotplug_lab.model.profile import CrashHotplug, FirmwareRange, MachineProfile, profile_of
from crash_hotplug_lab.model.user_space import Kexec, LoadCall
from tests.trees import tree

CAPTURES = ("6.1-c", "6.1-s", "6.12-s", "6.12-ch")
DIMM = Range(0x1_0000_0000, 0x1_1000_0000)
_KERNEL_MEMSZ = {"6.1": 0x337_8000, "6.12": 0x37D_D000}
_INITRD_SIZE = {"6.1": 0x12_0DC9, "6.12": 0x11_2B8D}


def captured_profile(name: str) -> MachineProfile:
    """Return the profile of the machine in a capture's state 0."""
    sysroot = Sysroot(str(tree(name, 0)))
    text = sysroot.read_text("/proc/iomem") or ""
    firmware = []
    for line in text.splitlines():
        found = re.fullmatch(r" *([0-9a-f]+)-([0-9a-f]+) : (Reserved|System RAM)", line)
        if found:
            firmware.append(FirmwareRange(Range(int(found[1], 16), int(found[2], 16) + 1), found[3]))
    assert read_iomem(sysroot).ram.size == sum(f.range.size for f in firmware if f.name == "System RAM")
    machine = read_machine(sysroot)
    profile = profile_of(X86_64, machine, _crash_notes(name), tuple(firmware))
    return replace(
        profile,
        auto_online=True,
        purgatory_pages=6 if name == "6.1-s" else 5,
        acpi_rsdp=0xF5340 if "c" in name else None,
    )


def _crash_notes(name: str) -> tuple[int, ...]:
    """Return where every possible CPU saves its registers: a later header or sysfs tells it, else spaced alike."""
    late = Sysroot(str(tree(name, 1)))
    machine = read_machine(late)
    header = parse_elfcorehdr(read_crash_image(late, machine.crashkernel).elfcorehdr)
    if len(header.cpu_notes) == len(machine.cpus):
        return tuple(note.phys for note in header.cpu_notes)
    known = [cpu.crash_notes.phys for cpu in machine.present_cpus if cpu.crash_notes is not None]
    return tuple(known[0] + number * (known[1] - known[0]) for number in range(len(machine.cpus)))


def captured_kexec(name: str) -> Kexec:
    """Return how the capture's image was loaded, with files of the same sizes."""
    version, loader = name.split("-")
    files = CaptureKernel(
        b"kernel",
        b"initrd".ljust(_INITRD_SIZE[version], b"."),
        _KERNEL_MEMSZ[version],
    )
    if loader == "s":
        return Kexec(files, LoadCall.KEXEC_FILE_LOAD)
    return Kexec(files, LoadCall.KEXEC_LOAD, hotplug=loader == "ch")


def captured_states(name: str) -> Iterator[ModelMachine]:
    """Yield the machine in each of the capture's four states: loaded, CPU and DIMM added, block offlined, removed."""
    machine = boot(captured_profile(name))
    if machine.profile.crash_hotplug is CrashHotplug.MERGED:
        install_in_kernel_handler(machine, Merged())
    run(captured_kexec(name).load(machine))
    yield machine
    run(add_cpu(machine, 2))
    run(online_cpu(machine, 2))
    run(add_memory(machine, "dimm0", DIMM))
    for block, online in list(machine.blocks.items()):
        if not online:
            run(online_block(machine, block))
    yield machine
    run(offline_block(machine, 33))
    yield machine
    run(remove_memory(machine, "dimm0"))
    yield machine
