# SPDX-License-Identifier: MIT
"""What the loaders of every architecture share: the capture kernel's files, the reserved region, the digest's table.

The images of kexec-tools and of the kernel's loader are in arch/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.purgatory import ENTRY_OFFSET, build_purgatory

KERNEL_ALIGNMENT = 2 << 20


@dataclass(frozen=True)
class CaptureKernel:
    """The capture kernel's files: a kernel and an initrd."""

    kernel: bytes
    initrd: bytes
    kernel_memsz: int
    """Bytes that the kernel needs while it starts (``init_size``)."""
    append: str = "console=ttyS0 quiet irqpoll nr_cpus=1 reset_devices"


def small_capture_kernel(pages: int = 4) -> CaptureKernel:
    """Return a kernel and an initrd of a few recognisable pages."""
    kernel = b"".join(b"capture kernel, page %06d\n".ljust(PAGE, b"\x90") % i for i in range(pages))
    initrd = b"".join(b"initrd, page %06d\n".ljust(PAGE, b"\x07") % i for i in range(max(1, pages // 2)))
    return CaptureKernel(kernel, initrd, 2 * len(kernel))


class LoadPlan(NamedTuple):
    """An image as a loader hands it to the kernel."""

    entry_phys: int
    segments: tuple[KexecSegment, ...]
    header: ElfCoreHeader
    argument_phys: int = 0
    """Physical address that the kernel passes to the entry point (``arch.dtb_mem``); a kexec_load makes it 0."""


def parse_hotplug_size(value: str) -> int:
    """Parse the value of kexec-tools' ``--hotplug-size`` (v6), with kexec-tools' own message.

    :raise InputError: the value is not a positive number
    """
    try:
        size = int(value, 0)
    except ValueError:
        size = 0
    if size <= 0:
        raise InputError(f"Bad option value in --hotplug-size={value}")
    return size


class Region:
    """The reserved region while it is being filled."""

    def __init__(self, reserved: Range) -> None:
        """Begin with the whole physical range."""
        self._reserved = reserved
        self._taken: list[Range] = []

    def place_high(self, size: int, alignment: int = PAGE) -> int:
        """Take the highest hole of *size* bytes and return its physical address.

        :raise CannotTellError: there is no such hole
        """
        for hole in reversed(self._holes()):
            start = (hole.end - size) // alignment * alignment
            if start >= hole.start:
                return self.take(start, size)
        raise self._too_small()

    def place_low(self, size: int, alignment: int = PAGE) -> int:
        """Take the lowest hole of *size* bytes; errors as :meth:`place_high`."""
        for hole in self._holes():
            start = -(-hole.start // alignment) * alignment
            if start + size <= hole.end:
                return self.take(start, size)
        raise self._too_small()

    def take(self, start: int, size: int) -> int:
        """Take the given place."""
        self._taken.append(Range(start, start + pages(size)))
        return start

    def _holes(self) -> list[Range]:
        return list(RangeList([self._reserved]).exclude(RangeList(self._taken)))

    def _too_small(self) -> CannotTellError:
        return CannotTellError(f"the reserved region of {self._reserved.size} bytes is too small for the crash image")


def pages(size: int) -> int:
    """Return *size* bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def segment(phys: int, buf: bytes, memsz: int = 0) -> KexecSegment:
    """Return a segment of whole pages."""
    return KexecSegment(buf, phys, pages(max(memsz, len(buf))))


def plan_with_purgatory(
    purgatory_at: int,
    purgatory_pages: int,
    words: Sequence[int],
    hashed: Iterable[KexecSegment],
    elfcorehdr: KexecSegment,
    header: ElfCoreHeader,
) -> LoadPlan:
    """Sort the segments and add purgatory, with its digest over the *hashed* segments.

    :param words: purgatory's other variables
    """
    covered = sorted((segment for segment in hashed if segment.memsz), key=lambda s: s.phys)
    purgatory = build_purgatory(purgatory_pages, words, covered)
    segments = {s.phys: s for s in (*covered, elfcorehdr, segment(purgatory_at, purgatory))}
    return LoadPlan(purgatory_at + ENTRY_OFFSET, tuple(segments[phys] for phys in sorted(segments)), header)
