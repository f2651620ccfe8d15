"""Memory hot-plug: DIMMs and virtio-mem, in blocks (mm/memory_hotplug.c, drivers/base/memory.c).

The order is the kernel's: memory is in /proc/iomem before its blocks exist; MEM_ONLINE and MEM_OFFLINE are told while
the block is in /proc/iomem; at the removal nothing but a uevent is told.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.machine import MemoryDevice, ModelMachine
from crash_hotplug_lab.model.profile import SYSTEM_RAM

VIRTIO_MEM_RAM = f"{SYSTEM_RAM} (virtio_mem)"
KMEM_RAM = f"{SYSTEM_RAM} (kmem)"


def add_memory(machine: ModelMachine, name: str, memory: Range, resource: str = SYSTEM_RAM) -> Steps[None]:
    """Plug a DIMM (or what the kmem driver adds): all of *memory* becomes System RAM.

    :raise ModelError: not aligned to blocks (EINVAL), or something is there (EEXIST)
    """
    yield from _plug(machine, MemoryDevice(name, memory, RangeList([memory]), resource))


def add_virtio_mem(machine: ModelMachine, name: str, memory: Range, blocks: Iterable[int]) -> Steps[None]:
    """Plug some blocks of a virtio-mem device, which may leave holes between them; errors as :func:`add_memory`.

    :param memory: the device's physical range
    :param blocks: numbers of the blocks within it
    """
    size = machine.profile.block_size
    plugged = RangeList((memory.start + i * size, memory.start + (i + 1) * size) for i in blocks)
    if not RangeList([memory]).covers(plugged):
        raise ModelError(errno.EINVAL, f"{name} has no such blocks")
    yield from _plug(machine, MemoryDevice(name, memory, plugged, VIRTIO_MEM_RAM))


def _plug(machine: ModelMachine, device: MemoryDevice) -> Steps[None]:
    size = machine.profile.block_size
    if any(r.start % size or r.end % size for r in device.plugged) or not device.plugged:
        raise ModelError(errno.EINVAL, f"{device.name} does not consist of whole memory blocks of {size} bytes")
    taken = RangeList(entry.range for entry in machine.profile.firmware).union(
        other.range for other in machine.devices.values()
    )
    if device.name in machine.devices or taken.intersect(RangeList([device.range])):
        raise ModelError(errno.EEXIST, f"there is something else where {device.name} would lie, or of its name")
    machine.memory.plug(device.plugged)
    machine.devices[device.name] = device
    machine.update_mem_section()
    yield Step(f"{device.name}: in /proc/iomem")
    for block in _blocks(machine, device.plugged):
        machine.blocks[block] = False
        machine.send_uevent(Event(EventKind.MEMORY_ADD, memory=block_range(machine, block)))
    yield Step(f"{device.name}: blocks and uevents add")
    if machine.profile.auto_online:
        for block in _blocks(machine, device.plugged):
            yield from online_block(machine, block)


def online_block(machine: ModelMachine, block: int) -> Steps[None]:
    """Put a block online: MEM_ONLINE, then the uevent.

    :raise ModelError: there is no such block (ENODEV), or it is online (EINVAL)
    """
    _check_state(machine, block, False)
    machine.blocks[block] = True
    yield Step(f"memory{block}: online")
    yield from _tell(machine, EventKind.MEMORY_ONLINE, block)


def offline_block(machine: ModelMachine, block: int) -> Steps[None]:
    """Take a block offline: MEM_OFFLINE while it is still in /proc/iomem, then the uevent.

    :raise ModelError: there is no such block (ENODEV), it is offline (EINVAL), or was there at boot (EBUSY)
    """
    _check_state(machine, block, True)
    if machine.profile.boot_ram.intersect(RangeList([block_range(machine, block)])):
        raise ModelError(errno.EBUSY, f"memory{block} holds memory of the kernel's own and cannot go offline")
    machine.blocks[block] = False
    yield Step(f"memory{block}: offline")
    yield from _tell(machine, EventKind.MEMORY_OFFLINE, block)


def remove_memory(machine: ModelMachine, name: str) -> Steps[None]:
    """Unplug a device; blocks that are online go offline first.  No notifier tells of the removal.

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


def _tell(machine: ModelMachine, kind: EventKind, block: int) -> Steps[None]:
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
