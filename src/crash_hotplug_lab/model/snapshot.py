# SPDX-License-Identifier: MIT
"""Saves a model machine as the tree that ``--sysroot`` reads, with the files of a live machine."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from crash_hotplug.core.elfcorehdr import build_elfcorehdr, ram_header
from crash_hotplug.core.ranges import Range
from crash_hotplug.linux import cpus, iomem, kallsyms, kcore, kexec_state, machine_reader, memory_hotplug
from crash_hotplug.linux.crash_image import SAVED, places_of
from crash_hotplug.linux.snapshot import Snapshot
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.profile import SYSTEM_RAM, CrashHotplug
from crash_hotplug_lab.model.udev import crash_hotplug_attribute


def take_snapshot(machine: ModelMachine) -> Snapshot:
    """Return the files, by absolute path on the machine."""
    profile = machine.profile
    texts = {
        iomem.PATH: iomem_text(machine),
        machine_reader.CMDLINE: profile.cmdline + "\n",
        machine_reader.RELEASE: profile.kernel_release + "\n",
        kexec_state.VMCOREINFO: f"0x{profile.vmcoreinfo.phys:016x} {profile.vmcoreinfo.size:x}\n",
        kexec_state.LOADED[1]: f"{int(machine.crash_image is not None)}\n",
        kexec_state.RESERVED_SIZE[1]: f"{profile.reserved.size}\n",
        kallsyms.PATH: _kallsyms(machine),
    }
    if profile.crash_hotplug is CrashHotplug.MERGED:
        texts[kexec_state.ELFCOREHDR_SIZE[1]] = f"{profile.elfcorehdr_size}\n"
        texts[kexec_state.CPU_HOTPLUG] = texts[kexec_state.MEMORY_HOTPLUG] = f"{crash_hotplug_attribute(machine)}\n"
    texts.update(_cpu_files(machine))
    texts[f"{memory_hotplug.BLOCKS}/block_size_bytes"] = f"{profile.block_size:x}\n"
    for block, online in machine.blocks.items():
        texts[f"{memory_hotplug.BLOCKS}/memory{block}/state"] = "online\n" if online else "offline\n"
    files = {path: text.encode() for path, text in texts.items()}
    files[kcore.PATH] = _kcore_headers(machine)
    files.update(_crash_image_files(machine))
    return Snapshot(files)


class _Resource(NamedTuple):
    range: Range
    name: str
    depth: int


def iomem_text(machine: ModelMachine) -> str:
    """Return /proc/iomem: the firmware's map, reservations and hot-plugged memory; ends of ranges are inclusive."""
    profile = machine.profile
    resources = [_Resource(entry.range, entry.name, 0) for entry in profile.firmware]
    resources += [_Resource(reserved, "Crash kernel", 1) for reserved in profile.crashkernel]
    text = profile.kernel_text
    code_end = text.phys + text.size // 2
    resources.append(_Resource(Range(text.phys, code_end), "Kernel code", 1))
    resources.append(_Resource(Range(code_end, text.phys + text.size), "Kernel data", 1))
    for device in machine.devices.values():
        is_driver_added = device.resource != SYSTEM_RAM
        if is_driver_added:
            resources.append(_Resource(device.range, device.name, 0))
        resources += [_Resource(ram, device.resource, int(is_driver_added)) for ram in device.plugged]
    resources.sort(key=lambda r: (r.range.start, r.depth))
    return "".join(f"{'  ' * r.depth}{r.range.start:08x}-{r.range.end - 1:08x} : {r.name}\n" for r in resources)


def _kallsyms(machine: ModelMachine) -> str:
    virt = machine.profile.kernel_text.virt
    symbols = {"_stext": virt, "_text": virt, "_end": virt + machine.profile.kernel_text.size}
    return "".join(f"{address:016x} T {name}\n" for name, address in symbols.items())


def cpu_list(numbers: Iterable[int]) -> str:
    """Return CPU numbers as sysfs lists them, such as ``0-3,8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _cpu_files(machine: ModelMachine) -> dict[str, str]:
    states = machine.cpus.values()
    files = {
        "possible": cpu_list(machine.cpus),
        "present": cpu_list(cpu.number for cpu in states if cpu.present),
        "online": cpu_list(cpu.number for cpu in states if cpu.online),
        "offline": cpu_list(cpu.number for cpu in states if not cpu.online),
        "kernel_max": "8191",
    }
    for cpu in states:
        if cpu.present:
            files[f"cpu{cpu.number}/crash_notes"] = f"{machine.profile.crash_notes[cpu.number]:x}"
            files[f"cpu{cpu.number}/crash_notes_size"] = str(machine.profile.arch.crash_notes_size)
            files[f"cpu{cpu.number}/online"] = str(int(cpu.online))
    return {f"{cpus.DIRECTORY}/{name}": text + "\n" for name, text in files.items()}


def _kcore_headers(machine: ModelMachine) -> bytes:
    profile = machine.profile
    loads = [ram_header(ram, profile.page_offset) for ram in machine.ram]
    view = machine.kernel_view()
    return build_elfcorehdr(view.architecture, (), None, profile.kernel_text, loads).to_bytes()


def _crash_image_files(machine: ModelMachine) -> dict[str, bytes]:
    image = machine.loaded_crash_image()
    if image is None:
        return {}
    files = {f"{SAVED}/elfcorehdr": image.elfcorehdr}
    if image.boot is not None:
        files.update((f"{SAVED}/{name}", data) for name, data in image.boot.saved()[0].items())
    files[f"{SAVED}/image.json"] = json.dumps(places_of(image), indent=1).encode() + b"\n"
    return files
