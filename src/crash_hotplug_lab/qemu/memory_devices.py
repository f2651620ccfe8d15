# SPDX-License-Identifier: MIT
"""Memory devices that are in a guest from its boot on, and give it memory later: virtio-mem, NVDIMMs and CXL memory.

A virtio-mem device has a region of physical addresses, and plugs blocks of its own size (2 MiB by default) in it when
QEMU requests another size.  The guest's driver adds whole memory blocks (128 MiB), so the last may be plugged in part.
The kmem driver gives the guest an NVDIMM or a CXL device as RAM (in_guest/kmem.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from crash_hotplug_lab.qemu.errors import GuestError
from crash_hotplug_lab.qemu.guest import Guest
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.scenario.format import KMEM_DEVICES
from crash_hotplug_lab.scenario.records import Action, Scenario

_KMEM = "/lab/kmem.py"
_CXL_BUS = 16
"""Number of the PCI bus of the CXL host bridge, behind those of QEMU's other devices."""
_RESIZE_LIMIT = 300.0
"""Seconds that a guest may take to plug or unplug memory."""
_DRIVERS = {
    "virtio-mem": ("virtio_mem",),
    "nvdimm": ("nfit", "nd_pmem", "dax_pmem", "device_dax", "kmem"),
    "cxl": ("cxl_acpi", "cxl_pci", "cxl_port", "cxl_mem", "dax_cxl", "kmem"),
}
"""Modules by the kind of a device."""


def modules_of(scenario: Scenario) -> tuple[str, ...]:
    """Return the modules that a guest needs for the memory devices of a scenario."""
    kinds = dict.fromkeys(map(_kind, scenario.actions))
    return tuple(module for kind in kinds for module in _DRIVERS.get(kind, ()))


def _kind(action: Action) -> str:
    """Return the kind of the memory device that a step adds to the machine at its boot; empty without one."""
    if action.do == "add-kmem":
        return str(action.arguments.get("device", KMEM_DEVICES[0]))
    return "virtio-mem" if action.do == "add-virtio-mem" else ""


def boot_options(scenario: Scenario) -> list[str]:
    """Return QEMU's options for the memory devices of a scenario."""
    options: list[str] = []
    for action in scenario.actions:
        if _kind(action):
            options += _device(action)
    if any(_kind(action) == "nvdimm" for action in scenario.actions):
        options += ["-machine", "nvdimm=on"]
    return options


def _device(action: Action) -> Iterator[str]:
    given = action.arguments
    name, memory = given["name"], f"mem-{given['name']}"
    # reserve=off: memory that the guest never touches costs the host nothing
    backend = f"memory-backend-ram,id={memory},size={given['size']},reserve=off"
    if _kind(action) == "cxl":
        yield from ("-object", backend, *_cxl_device(name, memory, given["size"]))
        return
    words = {"id": name, "memdev": memory}
    if action.do == "add-virtio-mem":
        driver, address = "virtio-mem-pci", "memaddr"
        words["requested-size"] = "0"
    else:
        driver, address = "nvdimm", "addr"
    if "address" in given:
        words[address] = str(given["address"])
    if "node" in given:
        words["node"] = str(given["node"])
    device = ",".join([driver, *(f"{key}={value}" for key, value in words.items())])
    yield from ("-object", backend, "-device", ",".join(filter(None, [device, given.get("options", "")])))


def _cxl_device(name: str, memory: str, size: int) -> Iterator[str]:
    """Yield the options of a CXL device of volatile memory, with a host bridge, a root port and a window of its own.

    The window is the range of physical addresses for regions of the device.  QEMU places it behind the memory that the
    machine can have (``maxmem``).
    """
    bridge, port = f"{name}-bridge", f"{name}-port"
    yield from ("-machine", "cxl=on")
    yield from ("-device", f"pxb-cxl,id={bridge},bus_nr={_CXL_BUS}")
    yield from ("-device", f"cxl-rp,id={port},bus={bridge},port=0,chassis=0,slot=1")
    yield from ("-device", f"cxl-type3,id={name},bus={port},volatile-memdev={memory}")
    yield from ("-machine", f"cxl-fmw.0.targets.0={bridge},cxl-fmw.0.size={size}")


async def request(machine: QemuMachine, name: str, size: int) -> None:
    """Request another size of a virtio-mem device; the guest plugs or unplugs later."""
    await machine.qmp("qom-set", path=f"/machine/peripheral/{name}", property="requested-size", value=size)


async def resize(guest: Guest, name: str, size: int) -> tuple[int, int]:
    """Request another size of a virtio-mem device, and wait until the guest has plugged or unplugged that much.

    :return: the physical range that the guest has of it: the driver plugs the lowest blocks first and unplugs the
        highest first; the last memory block may be plugged in part; empty at size 0
    :raise GuestError: the guest does not reach the size
    """
    await request(guest.machine, name, size)
    path = f"/machine/peripheral/{name}"

    async def reached() -> None:
        plugged = await guest.machine.qmp("qom-get", path=path, property="size")
        if plugged != size:
            raise GuestError(f"{plugged} of {size} bytes are plugged")

    await guest.until(reached, f"{name} to have {size} bytes", _RESIZE_LIMIT)
    start = int(await guest.machine.qmp("qom-get", path=path, property="memaddr"))
    block = await guest.block_size()
    return start, -(-(start + size) // block) * block


async def give_to_kmem(guest: Guest, action: Action) -> tuple[int, int]:
    """Let the kmem driver of the guest add its NVDIMM or CXL device as RAM; return the physical range of the RAM.

    The range of an NVDIMM lacks the first memory block, which has the device's labels.

    :raise GuestError: the guest's kernel refuses
    """
    start, end = (await guest.run("python3", _KMEM, "add", _kind(action))).split()
    return int(start), int(end)


async def take_from_kmem(guest: Guest, name: str) -> None:
    """Take a device away from the kmem driver, which removes its RAM.

    :raise GuestError: the guest's kernel refuses
    """
    await guest.until(partial(guest.run, "python3", _KMEM, "remove"), f"kmem to release {name}")
