# SPDX-License-Identifier: MIT
"""Physical memory with contents: sparse, by page, cheap to copy."""

from __future__ import annotations

from collections.abc import Iterator

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.ranges import RangeList

_ZEROS = bytes(PAGE)


class AbsentMemoryError(CrashHotplugError):
    """There is no memory at a physical address: on a real machine the access fails, hangs or reads all ones."""


class PhysicalMemory:
    """Contents of physical memory.  Copies share the immutable pages; pages of zeros are not stored."""

    def __init__(self, present: RangeList) -> None:
        """Take the physical ranges that have memory, filled with zeros."""
        self.present = present
        self._pages: dict[int, bytes] = {}
        self._key = 0

    def copy(self) -> PhysicalMemory:
        """Return a copy that shares the pages."""
        made = PhysicalMemory(self.present)
        made._pages = self._pages.copy()
        made._key = self._key
        return made

    @property
    def key(self) -> int:
        """A number that is equal for equal contents; each write updates it."""
        return hash((self._key, self.present))

    def plug(self, ranges: RangeList) -> None:
        """Add memory that holds zeros."""
        self.present = self.present.union(ranges)

    def unplug(self, ranges: RangeList) -> None:
        """Remove memory and its contents."""
        self.present = self.present.exclude(ranges)
        for frame in [frame for frame in self._pages if ranges.contains(frame * PAGE)]:
            self._store(frame, _ZEROS)

    def read(self, phys: int, length: int) -> bytes:
        """Return *length* bytes at a physical address.

        :raise AbsentMemoryError: there is no memory at one of them
        """
        self._check(phys, length)
        frame, offset = divmod(phys, PAGE)
        if offset + length <= PAGE:
            return self._pages.get(frame, _ZEROS)[offset : offset + length]
        pages = -(-(offset + length) // PAGE)
        data = b"".join(self._pages.get(frame + i, _ZEROS) for i in range(pages))
        return data[offset : offset + length]

    def write(self, phys: int, data: bytes) -> None:
        """Write bytes at a physical address.

        :raise AbsentMemoryError: there is no memory at one of them; nothing was written
        """
        self._check(phys, len(data))
        at = 0
        while at < len(data):
            frame, offset = divmod(phys + at, PAGE)
            part = data[at : at + PAGE - offset]
            if len(part) < PAGE:
                page = self._pages.get(frame, _ZEROS)
                self._store(frame, page[:offset] + part + page[offset + len(part) :])
            else:
                self._store(frame, bytes(part))
            at += len(part)

    def zero(self, phys: int, length: int) -> None:
        """Write zeros; the cost depends on the stored pages, not on the length.

        :raise AbsentMemoryError: there is no memory at one of the addresses; nothing was written
        """
        self._check(phys, length)
        for at, page in list(self.pages(phys, phys + length)):
            start, end = max(phys - at, 0), min(phys + length - at, PAGE)
            self._store(at // PAGE, page[:start] + bytes(end - start) + page[end:])

    def pages(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Yield (physical address, contents) of the pages in [start, end) that do not hold zeros, in order."""
        first, last = start // PAGE, -(-end // PAGE)
        if last - first > len(self._pages):
            frames = sorted(frame for frame in self._pages if first <= frame < last)
        else:
            frames = [frame for frame in range(first, last) if frame in self._pages]
        for frame in frames:
            yield frame * PAGE, self._pages[frame]

    def region(self, phys: int, length: int) -> tuple[tuple[int, bytes], ...]:
        """Return the pages of a page-aligned region, as :meth:`pages` yields them.

        :raise AbsentMemoryError: there is no memory at one of its addresses
        """
        self._check(phys, length)
        return tuple(self.pages(phys, phys + length))

    def _check(self, phys: int, length: int) -> None:
        if not any(start <= phys and phys + length <= end for start, end in self.present):
            raise AbsentMemoryError(f"there is no memory at physical {phys:#x} ({length} bytes)")

    def _store(self, frame: int, page: bytes) -> None:
        old = self._pages.pop(frame, None)
        if old is not None:
            self._key ^= hash((frame, old))
        if page != _ZEROS:
            self._pages[frame] = page
            self._key ^= hash((frame, page))
