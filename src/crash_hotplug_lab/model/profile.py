# SPDX-License-Identifier: MIT
"""The profile of a model machine: addresses and sizes that are fixed at boot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.machine import KernelText, Machine, NoteRegion, kernel_version
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.arch.architecture import KernelTables, ModelArchitecture

NR_CPUS_DEFAULT = 8192
"""CONFIG_NR_CPUS_DEFAULT of Debian's x86_64 kernels."""
CRASH_MAX_MEMORY_RANGES = 8192
"""The limit of Linux (kernel/crash_core.c), and the default of ``max_memory_ranges`` here."""
SYSTEM_RAM = "System RAM"


class CrashHotplug(Enum):
    """The hot-plug handler of a kernel."""

    NONE = "none"
    V6 = "v6"
    MERGED = "merged"


CRASH_HOTPLUG_ELFCOREHDR_SZ = 131072
"""Bytes for the elfcorehdr under the v6 patches, and the value they suggest for ``--hotplug-size``."""


class FirmwareRange(NamedTuple):
    """One entry of the firmware's memory map."""

    range: Range
    """Physical range."""
    name: str
    """Its name in /proc/iomem."""


@dataclass(frozen=True)
class MachineProfile:
    """A machine as it boots.  Addresses are physical unless stated otherwise."""

    arch: ModelArchitecture
    kernel_release: str
    """The release that ``uname -r`` prints; its version decides the features of the kernel."""
    firmware: tuple[FirmwareRange, ...]
    """The firmware's memory map, in order."""
    crashkernel: tuple[Range, ...]
    """The reservation for the capture kernel, then the low one if the first lies above 4 GiB."""
    kernel_text: KernelText
    page_offset: int
    """Virtual minus physical address of RAM."""
    vmcoreinfo: NoteRegion
    crash_notes: tuple[int, ...]
    """Address at which each possible CPU saves its registers; percpu memory exists for every possible CPU from boot."""
    boot_cpus: int
    """Number of CPUs that are online at boot, counted from CPU 0."""
    block_size: int
    """Bytes in a memory block."""
    auto_online: bool = True
    """Whether the kernel takes added memory online by itself (``memhp_default_state``)."""
    max_memory_ranges: int = CRASH_MAX_MEMORY_RANGES
    """``CRASH_MAX_MEMORY_RANGES`` of a kernel with hot-plug support."""
    purgatory_pages: int = 5
    """Pages of the kernel's own purgatory (kexec_file_load)."""
    has_v6_patches: bool = False
    """Whether the kernel (older than 6.6) was built with the patches of April 2022."""
    acpi_rsdp: int | None = None
    """Address of the firmware's ACPI RSDP, which kexec-tools passes on."""

    @property
    def kernel_memory(self) -> KernelTables:
        """The tables of this kernel that dump tools read."""
        return self.arch.kernel_tables(self)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor of the kernel's release."""
        return kernel_version(self.kernel_release) or (0, 0)

    @property
    def crash_hotplug(self) -> CrashHotplug:
        """The hot-plug handler of this kernel; Linux merged one in 6.6, for some architectures."""
        if self.arch.record.updated_by_kernel_since is None:
            return CrashHotplug.NONE
        if self.version >= (6, 6):
            return CrashHotplug.MERGED
        return CrashHotplug.V6 if self.has_v6_patches else CrashHotplug.NONE

    @property
    def boot_ram(self) -> RangeList:
        """RAM of the firmware's map."""
        return RangeList(entry.range for entry in self.firmware if entry.name == SYSTEM_RAM)

    @property
    def reserved(self) -> Range:
        """The reservation into which crash images are loaded (``crashk_res``)."""
        return self.crashkernel[0]

    @property
    def elfcorehdr_size(self) -> int:
        """Value of /sys/kernel/crash_elfcorehdr_size: bytes for CPUs and memory ranges, without the ELF header."""
        return 56 * (2 + NR_CPUS_DEFAULT + self.max_memory_ranges)

    @property
    def cmdline(self) -> str:
        """The running kernel's command line."""
        main, *low = self.crashkernel
        sizes = [f"crashkernel={main.size >> 20}M" + (",high" if low else "")]
        sizes += [f"crashkernel={r.size >> 20}M,low" for r in low]
        return " ".join([f"console={self.arch.console} quiet", *sizes, "panic=1"])


def profile_of(
    arch: ModelArchitecture, machine: Machine, crash_notes: tuple[int, ...], firmware: tuple[FirmwareRange, ...]
) -> MachineProfile:
    """Return the profile of a real machine as a saved tree shows it.

    :param machine: the machine at boot, with all addresses known
    :param crash_notes: physical addresses of every possible CPU's notes
    :param firmware: its memory map
    :raise ValueError: an address is not known
    """
    if machine.kernel_text is None or machine.page_offset is None or machine.vmcoreinfo is None:
        raise ValueError("a profile needs the kernel text, the direct map and vmcoreinfo")
    return MachineProfile(
        arch=arch,
        kernel_release=machine.kernel_release or "",
        firmware=firmware,
        crashkernel=tuple(machine.crashkernel),
        kernel_text=machine.kernel_text,
        page_offset=machine.page_offset,
        vmcoreinfo=machine.vmcoreinfo,
        crash_notes=crash_notes,
        boot_cpus=len(machine.present_cpus),
        block_size=machine.memory_blocks.size if machine.memory_blocks else 128 << 20,
    )
