# SPDX-License-Identifier: MIT
"""The record of a model machine's architecture, beside the product's own record of it.

No other module of the model depends on the architecture in any other way than through this record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range, RangeList

if TYPE_CHECKING:
    from crash_hotplug_lab.model.capture_kernel import OldMemory
    from crash_hotplug_lab.model.kimage import ModelKimage
    from crash_hotplug_lab.model.loader import CaptureKernel, LoadPlan
    from crash_hotplug_lab.model.memory import PhysicalMemory
    from crash_hotplug_lab.model.profile import MachineProfile


class KernelTables(Protocol):
    """The tables in the kernel's memory that dump tools read, and its vmcoreinfo."""

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Yield (physical address, bytes) of the tables that never change after boot."""

    def section_table(self, ram: RangeList) -> Iterator[tuple[int, bytes]]:
        """Yield (physical address, bytes) of the table of memory sections for the current physical RAM."""

    def vmcoreinfo(self, panic_time: int) -> bytes:
        """Return the text of the VMCOREINFO note.

        :param panic_time: in seconds since 1970
        """


class ControlPages(NamedTuple):
    """Control pages that the kernel takes for a crash image with one call, in one hole."""

    size: int
    """Bytes."""
    is_written: bool
    """Whether the load writes them."""


class CaptureStart(NamedTuple):
    """A capture kernel that has started."""

    old: OldMemory
    """The crashed kernel's memory as it sees it."""
    elfcorehdr_phys: int
    """Physical address at which it looks for its elfcorehdr."""
    loader: Loader
    """The loader of its image."""
    backup: tuple[Range, int] | None = None
    """Physical range that purgatory copied, and the physical address of the copy."""


class ModelArchitecture(NamedTuple):
    """The parts of a model machine that depend on its architecture."""

    name: str
    """The word after ``--arch``."""
    record: Architecture
    """The product's record."""
    default_kernel: str
    """Release of the kernel of a scenario that names none."""
    console: str
    """Name of the console's device."""
    plugs_cpus: bool
    """Whether CPUs can be added and removed; else they go offline and online."""
    lowest_dimm: int
    """Physical address below which QEMU places no DIMM."""
    default_profile: Callable[..., MachineProfile]
    """Returns an ordinary machine; its parameters are those of the default_profile of x86_64.py."""
    kernel_tables: Callable[[MachineProfile], KernelTables]
    registers: tuple[str, ...]
    """``pr_reg`` of struct elf_prstatus, in order."""
    prstatus_size: int
    """Bytes in struct elf_prstatus."""
    crash_notes_size: int
    """``crash_notes_size``: one NT_PRSTATUS note, and the empty note that ends the list."""
    kernel_registers: Callable[[int, int, int], dict[str, int]]
    """Returns registers in the kernel, by number of the CPU and virtual addresses of ``_text`` and its stack."""
    busy_registers: tuple[str, ...]
    """The registers that the action ``busy`` fills."""
    small_capture_kernel: Callable[[int], CaptureKernel]
    """Returns a kernel of some pages, and an initrd."""
    plan_of_kexec_tools: Callable[[MachineProfile, Machine, CaptureKernel, int | None], LoadPlan]
    """Returns the image of ``kexec -p -c``; the number is the room for the elfcorehdr with ``--hotplug``, in bytes."""
    plan_of_kernel: Callable[[MachineProfile, Machine, CaptureKernel], LoadPlan]
    """Returns the image that kexec_file_load builds."""
    control_pages: Callable[[RangeList], tuple[ControlPages, ...]]
    """Returns the control pages for a crash image, in the order of their allocation; given is the physical RAM."""
    start_capture_kernel: Callable[[PhysicalMemory, ModelKimage], CaptureStart]
    """Starts the loaded image, from its entry point to the look for the elfcorehdr.

    It raises DigestError where purgatory rejects the image, and NoCaptureError where the capture kernel does not start.
    """
    reads_gone_memory: bool
    """Whether a read of memory that is gone returns anything; else it aborts the capture kernel's copy."""
