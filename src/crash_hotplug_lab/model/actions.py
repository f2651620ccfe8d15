# SPDX-License-Identifier: MIT
"""The actions of a scenario: the steps that each takes on a model machine."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.hotplug import (
    KMEM_RAM,
    add_cpu,
    add_memory,
    add_virtio_mem,
    offline_block,
    offline_cpu,
    online_block,
    online_cpu,
    remove_cpu,
    remove_memory,
    resize_virtio_mem,
)
from crash_hotplug_lab.model.machine import MemoryDevice, ModelMachine
from crash_hotplug_lab.model.user_space import Kexec, LoadCall
from crash_hotplug_lab.scenario.records import BUSY_REGISTERS

PLANTED_WORD = 0x6B64756D_70212121
PLANTED_OFFSET = 0x123000
"""Offset in a DIMM at which ``plant`` writes the word."""
LOADERS = {"c": LoadCall.KEXEC_LOAD, "ch": LoadCall.KEXEC_LOAD, "s": LoadCall.KEXEC_FILE_LOAD}
"""The loaders of the model, by their keys in a scenario."""
_GIB = 1 << 30

Start = Callable[[ModelMachine, Kexec, Mapping[str, Any]], Steps[None]]
"""Returns the steps of an action, by the action's arguments."""


def _add_cpu(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_cpu(machine, arguments["cpu"])
    if arguments.get("online", True):
        yield from online_cpu(machine, arguments["cpu"])


def _place(machine: ModelMachine, arguments: Mapping[str, Any]) -> Range:
    """Return the place of a memory device: at its address, else at the place that QEMU gives a DIMM.

    QEMU's memory devices begin at the first GiB boundary behind the RAM, on x86_64 at 4 GiB or above.  A new device
    takes the first gap that is large enough (memory_device_get_free_addr() in hw/mem/memory-device.c).
    """
    size = arguments["size"]
    if "address" in arguments:
        return Range(arguments["address"], arguments["address"] + size)
    start = max(machine.profile.arch.lowest_dimm, -(-machine.profile.boot_ram[-1].end // _GIB) * _GIB)
    for device in sorted(machine.devices.values(), key=lambda device: device.range.start):
        if device.range.start - start >= size:
            break
        start = max(start, device.range.end)
    return Range(start, start + size)


def _add_dimm(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_memory(machine, arguments["name"], _place(machine, arguments))


def _add_kmem(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_memory(machine, arguments["name"], _place(machine, arguments), KMEM_RAM)


def _add_virtio_mem(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    name = arguments["name"]
    yield from add_virtio_mem(machine, name, _place(machine, arguments), arguments.get("blocks", ()))
    if "requested" in arguments:
        yield from resize_virtio_mem(machine, name, arguments["requested"])


def _device(machine: ModelMachine, name: str) -> MemoryDevice:
    """Return the memory device of this name.

    :raise ModelError: there is no such device (ENODEV)
    """
    if name not in machine.devices:
        raise ModelError(errno.ENODEV, f"there is no memory device {name}")
    return machine.devices[name]


def _block(machine: ModelMachine, arguments: Mapping[str, Any]) -> int:
    """Return the number of a memory block; a scenario counts blocks from the beginning of their DIMM."""
    first = _device(machine, arguments["dimm"]).range.start // machine.profile.block_size
    return int(first + arguments["block"])


def _plant(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    start = _device(machine, arguments["dimm"]).range.start
    machine.memory.write(start + PLANTED_OFFSET, PLANTED_WORD.to_bytes(8, "little"))
    yield Step("word planted in memory")


def _busy(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    if arguments["cpu"] not in machine.online_cpus:
        raise ModelError(errno.ENODEV, f"CPU {arguments['cpu']} does not run")
    cpu = machine.cpus[arguments["cpu"]]
    registers = machine.profile.arch.busy_registers
    known = tuple(zip(registers, BUSY_REGISTERS.values()))
    machine.cpus[cpu.number] = replace(cpu, registers=(*cpu.registers, *known))
    yield Step(f"CPU {cpu.number}: known values in {registers[0]} to {registers[-1]}")


def _under_flock(machine: ModelMachine, steps: Steps[None], careful: bool) -> Steps[None]:
    """Take steps with the lock file held if *careful*, as the distributions' wrappers do."""
    if careful:
        yield from machine.take_lock("flock_taken")
    try:
        yield from steps
    finally:
        if careful:
            machine.flock_taken = False
    yield Step("kexec: done")


def _load(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    if "loader" in arguments:
        kexec = replace(kexec, loader=LOADERS[arguments["loader"]], hotplug=arguments["loader"] == "ch")
    yield from _under_flock(machine, kexec.load(machine), arguments.get("flock", True))


def _unload(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from _under_flock(machine, kexec.unload(machine), arguments.get("flock", True))


STARTS: dict[str, Start] = {
    "add-cpu": _add_cpu,
    "remove-cpu": lambda m, k, a: remove_cpu(m, a["cpu"]),
    "online-cpu": lambda m, k, a: online_cpu(m, a["cpu"]),
    "offline-cpu": lambda m, k, a: offline_cpu(m, a["cpu"]),
    "add-dimm": _add_dimm,
    "add-kmem": _add_kmem,
    "add-virtio-mem": _add_virtio_mem,
    "resize-virtio-mem": lambda m, k, a: resize_virtio_mem(m, a["name"], a["requested"]),
    "remove-dimm": lambda m, k, a: remove_memory(m, a["name"]),
    "online-block": lambda m, k, a: online_block(m, _block(m, a)),
    "offline-block": lambda m, k, a: offline_block(m, _block(m, a)),
    "plant": _plant,
    "busy": _busy,
    "load": _load,
    "unload": _unload,
}
"""The actions that change the model.  The others have no effect there: the policies start the updates."""
