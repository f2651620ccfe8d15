# SPDX-License-Identifier: MIT
"""The machine that a header has to describe."""

from __future__ import annotations

import re

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple


class NoteRegion(NamedTuple):
    """Where a note is kept in memory until a panic: physical address and size in bytes."""

    phys: int
    size: int


class KernelText(NamedTuple):
    """The running kernel's image, ``_text`` to ``_end``."""

    virt: int
    """Virtual address of ``_text``."""
    phys: int
    """Physical address of ``_text``."""
    size: int
    """Bytes from ``_text`` to ``_end``."""


class Cpu(NamedTuple):
    """One possible CPU."""

    number: int
    present: bool
    online: bool
    crash_notes: NoteRegion | None
    """The memory in which it saves its registers; None where that could not be read (sysfs has present CPUs only)."""


class MemoryBlocks(NamedTuple):
    """Hot-plug memory blocks as /sys/devices/system/memory shows them."""

    size: int
    """Bytes in one block."""
    online: int
    """How many are online."""
    offline: int
    """How many are plugged in and not online; they stay in /proc/iomem."""
    offline_ram: RangeList = RangeList()
    """Physical ranges of those."""


class Machine(NamedTuple):
    """A machine at one moment.  None in a field means that it could not be read."""

    architecture: Architecture
    kernel_release: str | None
    """The release that ``uname -r`` prints."""
    cpus: tuple[Cpu, ...]
    """Every possible CPU, by number."""
    ram: RangeList
    """Physical ranges that /proc/iomem calls System RAM, driver-added kinds included."""
    crashkernel: RangeList
    """Physical ranges of ``Crash kernel`` in /proc/iomem: the image's segments and the control pages lie in them."""
    kernel_text: KernelText | None
    page_offset: int | None
    """Virtual minus physical address of RAM (``page_offset_base``; x86 randomises it)."""
    vmcoreinfo: NoteRegion | None
    memory_blocks: MemoryBlocks | None
    reserves_crashkernel: bool = True
    """Whether the kernel was given ``crashkernel=``."""
    memory_encryption: str | None = None
    """The technology that encrypts its memory (Intel TDX, AMD SME or SEV); None where no encryption is known."""
    acpi_memory_devices: int = 0
    """Memory devices (DIMMs) that ACPI shows as plugged in; a capture kernel finds them as well."""
    capture_ram: RangeList = RangeList()
    """Physical ranges that the capture kernel uses as RAM besides (``crashkernel=SIZE,cma``): no segment lies there."""

    reserves_cma: bool = False
    """Whether the kernel was given ``crashkernel=SIZE,cma`` (Linux 6.17 and newer)."""

    not_plugged: RangeList | None = RangeList()
    """Physical ranges of *ram* that virtio-mem has not plugged; None where that cannot be told."""

    @property
    def present_cpus(self) -> tuple[Cpu, ...]:
        """The CPUs that are plugged in."""
        return tuple(cpu for cpu in self.cpus if cpu.present)

    @property
    def online_cpus(self) -> tuple[Cpu, ...]:
        """The CPUs that run, and save their registers at a panic."""
        return tuple(cpu for cpu in self.cpus if cpu.online)

    @property
    def control_bytes(self) -> int:
        """Bytes of control pages that this kernel takes for a crash image, at most."""
        return self.architecture.control_bytes(self.ram)

    @property
    def unmaps_image(self) -> bool:
        """Whether this kernel takes the listed segments of a loaded image out of its direct map, and /proc/kcore."""
        before, version = self.architecture.unmaps_image_before, kernel_version(self.kernel_release)
        return before is not None and version is not None and version < before

    @property
    def dumpable_ram(self) -> RangeList:
        """RAM without the capture kernel's own: the content of a complete dump, low memory included."""
        return self.ram.exclude(self.not_dumpable)

    @property
    def not_dumpable(self) -> RangeList:
        """The capture kernel's own memory, which a dump leaves out."""
        return self.crashkernel.union(self.capture_ram)

    @property
    def keeps_out_of_low_memory(self) -> bool | None:
        """Whether this kernel leaves the first 1 MiB unused, so that a dump loses little without it.

        Linux does so since 5.5 when ``crashkernel=`` is given (6f599d84231f), and always since 5.13.
        None where the release is not known.  A distribution's backport to an older release is not detected.
        """
        version = kernel_version(self.kernel_release)
        if version is None:
            return None
        return version >= (5, 13) or (version >= (5, 5) and self.reserves_crashkernel)


def kernel_version(release: str | None) -> tuple[int, int] | None:
    """Return (major, minor) of a kernel release such as ``6.1.0-50-cloud-amd64``, or None."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", release or "")
    return (int(found[1]), int(found[2])) if found else None
