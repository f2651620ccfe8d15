"""/proc/iomem of a model machine: the firmware's map, what the kernel reserved in it, and hot-plugged memory."""

from __future__ import annotations

from typing import NamedTuple

from crash_hotplug.core.ranges import Range
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.profile import SYSTEM_RAM


class _Resource(NamedTuple):
    range: Range
    name: str
    depth: int


def iomem_text(machine: ModelMachine) -> str:
    """Return the file's text; ends are inclusive there."""
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
