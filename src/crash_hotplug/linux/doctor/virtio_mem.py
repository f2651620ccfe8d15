# SPDX-License-Identifier: MIT
"""virtio-mem devices, and whether the capture kernel has their driver.

A memory block that virtio-mem plugged in part is described as a whole.  In the capture kernel the driver tells
/proc/vmcore which pages are plugged (``virtio_mem_vmcore_pfn_is_ram()``, Linux 5.16 and newer), and the others read as
zeros.  Without it the capture kernel reads them from the hypervisor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.doctor.config_files import KernelConfig
from crash_hotplug.linux.doctor.initramfs import has_module
from crash_hotplug.linux.doctor.kdump_family import KdumpSettings
from crash_hotplug.linux.doctor.rooted_files import exists, resolve
from crash_hotplug.linux.sysroot import Sysroot

DRIVER = "virtio_mem"
DEVICES = f"/sys/bus/virtio/drivers/{DRIVER}"
OPTION = "CONFIG_VIRTIO_MEM"


class VirtioMem(NamedTuple):
    """The virtio-mem devices of a machine, and the driver in the capture kernel's initramfs."""

    devices: Sequence[str]
    """Names of the devices: ``virtio1``."""
    initramfs: str | None
    """The capture kernel's initramfs; None where it is not found."""
    has_driver: bool | None
    """Whether the capture kernel has the driver; None where that is not known."""
    reason: str
    """Why it is not known, or that the kernel has it built in."""


def read_virtio_mem(
    sysroot: Sysroot, config: KernelConfig | None, settings: KdumpSettings | None, release: str | None
) -> VirtioMem | None:
    """Read the devices, and look for the driver in the initramfs; None on a machine without such a device."""
    devices = sorted(name for name in sysroot.names(DEVICES) if re.fullmatch(r"virtio\d{1,6}", name))
    if not devices:
        return None
    if config is not None and config.has(OPTION):
        return VirtioMem(devices, None, True, f"built into the kernel ({config.path})")
    if settings is None:
        return VirtioMem(devices, None, None, "no kdump tools are installed whose initramfs could be read")
    places = [place.format(release=release or "") for place in settings.family.initramfs]
    path = next((place for place in places if exists(sysroot, place)), None)
    if path is None:
        return VirtioMem(devices, None, None, f"there is no {places[0]}")
    try:
        return VirtioMem(devices, path, has_module(sysroot, resolve(sysroot, path), DRIVER), "")
    except CrashHotplugError as error:
        return VirtioMem(devices, path, None, str(error))
