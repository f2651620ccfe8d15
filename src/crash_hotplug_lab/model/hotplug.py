# SPDX-License-Identifier: MIT
"""Hot-plug of CPUs (kernel/cpu.c, drivers/acpi/acpi_processor.c) and of memory (mm/memory_hotplug.c,
drivers/base/memory.c), in the kernel's order.

A CPU is present before it starts, and still present when it has stopped.  Memory is in /proc/iomem before its blocks
exist.  The notifiers run for MEM_ONLINE and MEM_OFFLINE while the block is in /proc/iomem; only a uevent reports the
removal.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace

from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.machine import CpuState, MemoryDevice, ModelMachine
from crash_hotplug_lab.model.profile import SYSTEM_RAM
from crash_hotplug_lab.scenario.format import MAX_BLOCKS, MAX_PHYSICAL

VIRTIO_MEM_RAM = f"{SYSTEM_RAM} (virtio_mem)"
KMEM_RAM = f"{SYSTEM_RAM} (kmem)"


def add_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Plug in a CPU: it is present afterwards, but not started.

    :raise ModelError: the CPU is not possible (ENODEV), or is present already (EEXIST)
    """
    cpu = _cpu(machine, number)
    if cpu.present:
        raise ModelError(errno.EEXIST, f"CPU {number} is present already")
    machine.cpus[number] = replace(cpu, present=True)
    yield Step(f"CPU {number}: present")
    machine.send_uevent(Event(EventKind.CPU_ADD, number))
    yield Step(f"CPU {number}: uevent add")


def online_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Start a CPU: CPUHP_BP_PREPARE_DYN, then it runs, then CPUHP_AP_ONLINE_DYN.

    :raise ModelError: the CPU is not present (ENODEV), or runs already (EINVAL)
    """
    cpu = _cpu(machine, number)
    if not cpu.present:
        raise ModelError(errno.ENODEV, f"CPU {number} is not plugged in")
    if cpu.online:
        raise ModelError(errno.EINVAL, f"CPU {number} runs already")
    event = Event(EventKind.CPU_ONLINE, number)
    yield from machine.cpuhp_prepare.call(event)
    machine.cpus[number] = replace(cpu, online=True)
    yield Step(f"CPU {number}: online")
    yield from machine.cpuhp_online.call(event)
    machine.send_uevent(event)
    yield Step(f"CPU {number}: uevent online")


def offline_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Stop a CPU, which is still online and present while the callbacks of CPUHP_AP_ONLINE_DYN run.

    :raise ModelError: the CPU does not run (EINVAL), or is the last that runs (EBUSY)
    """
    cpu = _cpu(machine, number)
    if not cpu.online:
        raise ModelError(errno.EINVAL, f"CPU {number} does not run")
    if machine.online_cpus == [number]:
        raise ModelError(errno.EBUSY, f"CPU {number} is the last one that runs")
    event = Event(EventKind.CPU_OFFLINE, number)
    yield from machine.cpuhp_online.call(event)
    machine.cpus[number] = replace(cpu, online=False)
    yield Step(f"CPU {number}: offline")
    yield from machine.cpuhp_prepare.call(event)
    machine.send_uevent(event)
    yield Step(f"CPU {number}: uevent offline")


def remove_cpu(machine: ModelMachine, number: int) -> Steps[None]:
    """Unplug a CPU; a running CPU is stopped first.  Only a uevent reports the removal.

    :raise ModelError: the CPU is not present (ENODEV)
    """
    if not _cpu(machine, number).present:
        raise ModelError(errno.ENODEV, f"CPU {number} is not plugged in")
    if machine.cpus[number].online:
        yield from offline_cpu(machine, number)
    machine.cpus[number] = replace(machine.cpus[number], present=False)
    yield Step(f"CPU {number}: removed")
    machine.send_uevent(Event(EventKind.CPU_REMOVE, number))
    yield Step(f"CPU {number}: uevent remove")


def _cpu(machine: ModelMachine, number: int) -> CpuState:
    try:
        return machine.cpus[number]
    except KeyError:
        last = len(machine.cpus) - 1
        raise ModelError(errno.ENODEV, f"CPU {number} is not possible: this machine has 0 to {last}") from None


def add_memory(machine: ModelMachine, name: str, memory: Range, resource: str = SYSTEM_RAM) -> Steps[None]:
    """Plug in a DIMM, or add memory as the kmem driver does: all of *memory* becomes System RAM.

    :raise ModelError: *memory* is not aligned to blocks (EINVAL), its place or name is taken (EEXIST), there is no
        such physical address (E2BIG, as mhp_range_allowed() has it), or there would be too many blocks (ENOMEM)
    """
    yield from _plug(machine, MemoryDevice(name, memory, RangeList([memory]), resource))


def add_virtio_mem(machine: ModelMachine, name: str, memory: Range, blocks: Iterable[int]) -> Steps[None]:
    """Plug some blocks of a virtio-mem device, with or without holes between them; errors as :func:`add_memory`.

    :param memory: the device's physical range
    :param blocks: numbers of the blocks within it
    """
    size = machine.profile.block_size
    plugged = RangeList((memory.start + i * size, memory.start + (i + 1) * size) for i in blocks)
    if not RangeList([memory]).covers(plugged):
        raise ModelError(errno.EINVAL, f"{name} has no such blocks")
    device = MemoryDevice(name, memory, plugged, VIRTIO_MEM_RAM)
    if plugged:
        yield from _plug(machine, device)
    else:
        machine.devices[name] = device
        yield Step(f"{name}: nothing is plugged")


def resize_virtio_mem(machine: ModelMachine, name: str, requested: int) -> Steps[None]:
    """Plug or unplug memory of a virtio-mem device, as its driver does (drivers/virtio/virtio_mem.c).

    It plugs the lowest blocks first.  It unplugs the highest first, and takes each offline and away before the next.  A
    memory block that is plugged in part is RAM as a whole.

    :param requested: bytes that shall be plugged, from the beginning of the device
    :raise ModelError: there is no such device (ENODEV); otherwise as :func:`add_memory` and :func:`offline_block`
    """
    device = machine.devices.get(name)
    if device is None:
        raise ModelError(errno.ENODEV, f"there is no memory device {name}")
    size, start = machine.profile.block_size, device.range.start
    end = start + -(-requested // size) * size
    wanted = RangeList([Range(start, end)] if requested else [])
    if not RangeList([device.range]).covers(wanted):
        raise ModelError(errno.EINVAL, f"{name} has less than {requested} bytes")
    more = wanted.exclude(device.plugged)
    if more:
        yield from _plug(machine, replace(device, plugged=device.plugged.union(more)), more)
    for block in reversed(_blocks(machine, device.plugged.exclude(wanted))):
        if machine.blocks[block]:
            yield from offline_block(machine, block)
        _take_block(machine, name, block)
        yield Step(f"{name}: memory{block} gone from /proc/iomem")


def _take_block(machine: ModelMachine, name: str, block: int) -> None:
    """Remove one offline block of a device, with its uevent."""
    device, gone = machine.devices[name], RangeList([block_range(machine, block)])
    del machine.blocks[block]
    machine.send_uevent(Event(EventKind.MEMORY_REMOVE, memory=gone[0]))
    machine.devices[name] = replace(device, plugged=device.plugged.exclude(gone))
    machine.memory.unplug(gone)
    machine.update_mem_section()


def _plug(machine: ModelMachine, device: MemoryDevice, added: RangeList | None = None) -> Steps[None]:
    """Plug a device, or only the part *added* of one that is there."""
    others = [other for other in machine.devices.values() if added is None or other.name != device.name]
    added = device.plugged if added is None else added
    size = machine.profile.block_size
    if any(r.start % size or r.end % size for r in added) or not added:
        raise ModelError(errno.EINVAL, f"{device.name} does not consist of whole memory blocks of {size} bytes")
    if device.range.end > MAX_PHYSICAL:
        raise ModelError(errno.E2BIG, f"{device.name} ends behind the last physical address, {MAX_PHYSICAL - 1:#x}")
    if len(machine.blocks) + added.size // size > MAX_BLOCKS:
        raise ModelError(errno.ENOMEM, f"with {device.name} the machine would have over {MAX_BLOCKS} memory blocks")
    taken = RangeList(entry.range for entry in machine.profile.firmware).union(other.range for other in others)
    if device.name in [other.name for other in others] or taken.intersect(RangeList([device.range])):
        raise ModelError(errno.EEXIST, f"the place or the name of {device.name} is taken")
    machine.memory.plug(added)
    machine.devices[device.name] = device
    machine.update_mem_section()
    yield Step(f"{device.name}: in /proc/iomem")
    for block in _blocks(machine, added):
        machine.blocks[block] = False
        machine.send_uevent(Event(EventKind.MEMORY_ADD, memory=block_range(machine, block)))
    yield Step(f"{device.name}: blocks and uevents add")
    if machine.profile.auto_online:
        for block in _blocks(machine, added):
            yield from online_block(machine, block)


def online_block(machine: ModelMachine, block: int) -> Steps[None]:
    """Take a block online: MEM_ONLINE, then the uevent.

    :raise ModelError: there is no such block (ENODEV), or it is online already (EINVAL)
    """
    _check_state(machine, block, False)
    machine.blocks[block] = True
    yield Step(f"memory{block}: online")
    yield from _notify(machine, EventKind.MEMORY_ONLINE, block)


def offline_block(machine: ModelMachine, block: int) -> Steps[None]:
    """Take a block offline: MEM_OFFLINE while it is still in /proc/iomem, then the uevent.

    :raise ModelError: there is no such block (ENODEV), it is offline already (EINVAL), or holds boot memory (EBUSY)
    """
    _check_state(machine, block, True)
    if machine.profile.boot_ram.intersect(RangeList([block_range(machine, block)])):
        raise ModelError(errno.EBUSY, f"memory{block} holds memory of the kernel and cannot go offline")
    machine.blocks[block] = False
    yield Step(f"memory{block}: offline")
    yield from _notify(machine, EventKind.MEMORY_OFFLINE, block)


def remove_memory(machine: ModelMachine, name: str) -> Steps[None]:
    """Unplug a device; its online blocks go offline first.  No notifier is called for the removal.

    :raise ModelError: there is no such device (ENODEV)
    """
    device = machine.devices.get(name)
    if device is None:
        raise ModelError(errno.ENODEV, f"there is no memory device {name}")
    for block in _blocks(machine, device.plugged):
        if machine.blocks[block]:
            yield from offline_block(machine, block)
    for block in _blocks(machine, device.plugged):
        del machine.blocks[block]
        machine.send_uevent(Event(EventKind.MEMORY_REMOVE, memory=block_range(machine, block)))
    yield Step(f"{name}: blocks gone, uevents remove")
    del machine.devices[name]
    machine.memory.unplug(device.plugged)
    machine.update_mem_section()
    yield Step(f"{name}: gone from /proc/iomem")


def block_range(machine: ModelMachine, block: int) -> Range:
    """Return the physical range of a memory block."""
    size = machine.profile.block_size
    return Range(block * size, (block + 1) * size)


def _notify(machine: ModelMachine, kind: EventKind, block: int) -> Steps[None]:
    event = Event(kind, memory=block_range(machine, block))
    yield from machine.memory_chain.call(event)
    machine.send_uevent(event)
    yield Step(f"memory{block}: uevent {kind.value}")


def _blocks(machine: ModelMachine, ranges: RangeList) -> list[int]:
    size = machine.profile.block_size
    return [block for r in ranges for block in range(r.start // size, r.end // size)]


def _check_state(machine: ModelMachine, block: int, online: bool) -> None:
    state = machine.blocks.get(block)
    if state is None:
        raise ModelError(errno.ENODEV, f"there is no memory block {block}")
    if state is not online:
        raise ModelError(errno.EINVAL, f"memory{block} is {'online' if state else 'offline'} already")
