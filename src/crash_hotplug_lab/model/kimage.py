# SPDX-License-Identifier: MIT
"""``struct kimage``: a loaded crash image, the kernel's checks of its segments, and its control pages.

Checks and error numbers are those of ``sanity_check_segment_list()`` and ``kimage_alloc_crash_control_pages()`` in
kernel/kexec_core.c; the order is the kernel's, because the first check that fails decides the number.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crash_hotplug.core.arch.architecture import PAGE, Architecture
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage, Kimage, Segment
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.reserved_region import lowest_hole
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.memory import PhysicalMemory

_KIMAGE_VIRT = 0xFFFF_8880_0300_0000


class KexecSegment(NamedTuple):
    """One segment that a loader passes to the kernel (``struct kexec_segment``)."""

    buf: bytes
    phys: int
    """Physical address of its destination."""
    memsz: int
    """Bytes at the destination; zeros follow *buf*."""

    @property
    def segment(self) -> Segment:
        """The segment without its contents, as the kernel keeps it after the load."""
        return Segment(self.phys, self.memsz, len(self.buf))


@dataclass(frozen=True)
class ModelKimage:
    """A crash image that the kernel holds."""

    number: int
    """Number of the image, unique on this machine."""
    kimage: Kimage
    file_mode: bool
    """Whether kexec_file_load loaded it."""
    hotplug_support: bool
    """Whether the kernel may update its header (6.6 and newer)."""
    argument_phys: int = 0
    """Physical address that the kernel passes to the entry point (``arch.dtb_mem``); 0 with kexec_load."""

    @property
    def virt(self) -> int:
        """Virtual address of the struct."""
        return _KIMAGE_VIRT + self.number * 0x400

    def find_elfcorehdr(self, memory: PhysicalMemory) -> Segment | None:
        """Return the segment that starts with the ELF magic, as the kernel's handler finds it; or None."""
        return next((s for s in self.kimage.segments if memory.read(s.phys, 4) == b"\x7fELF"), None)

    def read(self, architecture: Architecture, memory: PhysicalMemory, reserved: RangeList) -> CrashImage:
        """Read the image out of the reserved region; the result has no header if none is found.

        :param reserved: the reserved physical ranges: they hold the segments that an update in place did not list too
        """
        segment = self.find_elfcorehdr(memory)
        if segment is None:
            return CrashImage(b"", kimage=self.kimage)
        return read_loaded_image(architecture, self.kimage, reserved, None, memory.read)


def check_segments(entry_phys: int, segments: Sequence[Segment], reserved: Range, ram: RangeList) -> None:
    """Check a crash image's segments as the kernel does.

    :param ram: physical RAM; an image may take at most half of it
    :raise ModelError: EADDRNOTAVAIL, EINVAL
    """
    if not reserved.start <= entry_phys < reserved.end:
        raise ModelError(errno.EADDRNOTAVAIL, f"the entry point {entry_phys:#x} is outside the reserved region")
    for segment in segments:
        if segment.phys % PAGE or segment.memsz % PAGE:
            raise ModelError(errno.EADDRNOTAVAIL, f"the segment at {segment.phys:#x} is not page aligned")
    for i, segment in enumerate(segments):
        if any(segment.range.overlaps(other.range) for other in segments[:i]):
            raise ModelError(errno.EINVAL, f"the segment at {segment.phys:#x} overlaps another")
    for segment in segments:
        if segment.bufsz > segment.memsz:
            raise ModelError(errno.EINVAL, f"the segment at {segment.phys:#x} has more contents than memory")
    if any(segment.memsz > ram.size // 2 for segment in segments) or sum(s.memsz for s in segments) > ram.size // 2:
        raise ModelError(errno.EINVAL, "the segments take more than half of the machine's memory")
    for segment in segments:
        if segment.phys < reserved.start or segment.range.end > reserved.end:
            raise ModelError(errno.EADDRNOTAVAIL, f"the segment at {segment.phys:#x} is outside the reserved region")


def check_segment_count(number: int) -> None:
    """Check the number of segments.

    :raise ModelError: EINVAL, there are more than KEXEC_SEGMENT_MAX
    """
    if number > KEXEC_SEGMENT_MAX:
        raise ModelError(errno.EINVAL, f"{number} segments are too many: the kernel takes {KEXEC_SEGMENT_MAX}")


def alloc_control_pages(segments: Sequence[Segment], reserved: Range, size: int) -> Range:
    """Allocate control pages in the lowest hole between the listed segments.

    :param reserved: the physical range from which they are taken
    :param size: bytes
    :raise ModelError: ENOMEM, no hole is large enough
    """
    hole = lowest_hole(reserved, (segment.range for segment in segments), size)
    if hole is None:
        raise ModelError(errno.ENOMEM, "there is no hole for control pages in the reserved region")
    return hole
