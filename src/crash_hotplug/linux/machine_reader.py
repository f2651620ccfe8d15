# SPDX-License-Identifier: MIT
"""Put a :class:`~crash_hotplug.core.machine.Machine` together from the files of a machine."""

from __future__ import annotations

import re

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.supported import architecture_named
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.machine import KernelText, Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux import kallsyms, memory_hotplug
from crash_hotplug.linux.cpus import read_cpus, with_possible_notes
from crash_hotplug.linux.crash_image import saved_image_architecture
from crash_hotplug.linux.iomem import Iomem, read_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import read_cma_ranges, read_vmcoreinfo_place
from crash_hotplug.linux.memory_hotplug import read_memory_blocks
from crash_hotplug.linux.page_flags import read_not_plugged
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import Sysroot

CMDLINE = "/proc/cmdline"
RELEASE = "/proc/sys/kernel/osrelease"
ARCHITECTURE = "/proc/sys/kernel/arch"
"""The name that ``uname -m`` prints (Linux 6.1 and newer); a snapshot has the file of any kernel."""


def read_machine(sysroot: Sysroot) -> Machine:
    """Read the facts that a header describes, and the other facts on which a verdict depends.

    :raise CannotTellError: CPUs or memory are masked or missing; other unreadable facts are None in the result
    :raise InputError: a file is not in the kernel's format, or the architecture is not supported
    """
    kcore = _open_kcore(sysroot)
    try:
        iomem = read_iomem(sysroot)
        return read_described_machine(sysroot, kcore, iomem)._replace(
            memory_blocks=read_memory_blocks(sysroot),
            not_plugged=read_not_plugged(sysroot, iomem.virtio_mem),
            acpi_memory_devices=memory_hotplug.count_present_acpi_devices(sysroot),
        )
    finally:
        if kcore is not None:
            kcore.close()


def read_described_machine(sysroot: Sysroot, kcore: Kcore | None, iomem: Iomem) -> Machine:
    """Read the facts that a header describes; memory blocks, ACPI devices and page flags, many files, are left out.

    :param kcore: the open /proc/kcore; None where it cannot be read
    :param iomem: the contents of /proc/iomem; errors as :func:`read_machine`
    """
    return Machine(
        architecture=kcore.architecture if kcore is not None else _architecture_without_kcore(sysroot),
        kernel_release=_read_release(sysroot),
        cpus=with_possible_notes(sysroot, kcore, read_cpus(sysroot)),
        ram=iomem.ram,
        crashkernel=iomem.crashkernel,
        kernel_text=_read_kernel_text(sysroot, kcore, iomem),
        page_offset=kcore.page_offset() if kcore is not None else None,
        vmcoreinfo=read_vmcoreinfo_place(sysroot),
        memory_blocks=None,
        reserves_crashkernel=_has_argument(sysroot, rb"crashkernel="),
        capture_ram=read_cma_ranges(sysroot) or RangeList(),
        reserves_cma=_has_argument(sysroot, rb"crashkernel=\S*,cma(?:\s|$)"),
    )


def _open_kcore(sysroot: Sysroot) -> Kcore | None:
    try:
        return Kcore(sysroot)
    except CannotTellError:
        return None  # the comparison lists the checks that need kcore


def _architecture_without_kcore(sysroot: Sysroot) -> Architecture:
    """Return the architecture; for a saved tree that does not have it, x86_64, as trees of version 0.1.0 did not."""
    if sysroot.is_live:
        return running_architecture()
    return architecture_named(sysroot.read_text(ARCHITECTURE) or "") or saved_image_architecture(sysroot) or X86_64


def _read_release(sysroot: Sysroot) -> str | None:
    release = sysroot.read_text(RELEASE)
    return release if release and release.isprintable() else None


def _has_argument(sysroot: Sysroot, pattern: bytes) -> bool:
    data = sysroot.read(CMDLINE) or b""
    return re.search(rb"(?:^|\s)" + pattern, data) is not None


def _read_kernel_text(sysroot: Sysroot, kcore: Kcore | None, iomem: Iomem) -> KernelText | None:
    try:
        symbols = kallsyms.read_symbols(sysroot, ("_text", "_stext", "_end"))
    except CannotTellError:
        return None
    text, end = symbols.get("_text"), symbols.get("_end")
    if text is None and "_stext" in symbols and kcore is not None:  # a kernel without CONFIG_KALLSYMS_ALL
        return kcore.kernel_text_at(symbols["_stext"])
    if text is None or end is None or end <= text:
        return None
    phys = kcore.phys_of_kernel_virt(text) if kcore is not None else None
    if phys is None:
        phys = iomem.kernel_code_phys
    return None if phys is None else KernelText(text, phys, end - text)
