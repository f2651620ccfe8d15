# SPDX-License-Identifier: MIT
"""The loaded crash image, as ``struct kimage`` and the reserved region describe it.

The functions work on bytes that their caller has read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from crash_hotplug.core.arch.architecture import PAGE, BootDescription
from crash_hotplug.core.elf import ElfFormatError, parse_core_header, program_headers_end
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple

KEXEC_SEGMENT_MAX = 16
_TABLE_BYTES = 32 * KEXEC_SEGMENT_MAX
_LIST_HEADS_BYTES = 3 * 16
_SEGMENT_CMA_BYTES = 8 * KEXEC_SEGMENT_MAX


class KimageLayout(NamedTuple):
    """Offsets, in bytes, of the members of ``struct kimage`` that are read."""

    start: int
    nr_segments: int
    segment: int
    control_page: int

    @property
    def end(self) -> int:
        """Bytes of the structure that are read."""
        return max(self.start, self.nr_segments, self.segment + _TABLE_BYTES, self.control_page) + 8


def _layout(count_word: int, between: int = _LIST_HEADS_BYTES) -> KimageLayout:
    """Return the layout with ``nr_segments`` at a word, and so many bytes between the table and ``control_page``."""
    table = 8 * (count_word + 1)
    return KimageLayout(8 * 3, 8 * count_word, table, table + _TABLE_BYTES + between)


KNOWN_LAYOUTS = (
    _layout(7),  # BTF and memory of 5.10 to 6.12
    # 07d24902977e ("kexec: enable CMA based contiguous allocation", Linux 6.17) added segment_cma[16]
    _layout(7, _SEGMENT_CMA_BYTES + _LIST_HEADS_BYTES),
    _layout(6),
    _layout(8),
    _layout(5),
)
"""Layouts to try where the kernel has no BTF.  The second is that of the BTF of 6.18 and 7.3; the last three were never
seen."""
KIMAGE_BYTES_NEEDED = max(layout.end for layout in KNOWN_LAYOUTS)
"""Bytes of ``struct kimage`` that :func:`parse_kimage` reads where the layout is not known."""


def layout_from_members(members: Mapping[str, int]) -> KimageLayout | None:
    """Return the layout from the members' offsets in bytes (core/btf.py); None where one is missing or unaligned."""
    found = [members.get(name) for name in KimageLayout._fields]
    offsets = [offset for offset in found if offset is not None and offset % 8 == 0 and offset < PAGE]
    return KimageLayout(*offsets) if len(offsets) == len(found) else None


class Segment(NamedTuple):
    """One segment of a loaded image."""

    phys: int
    """Physical address in the reserved region."""
    memsz: int
    """Bytes that it occupies there."""
    bufsz: int
    """Bytes that the loader passed; the rest is zeros."""

    @property
    def range(self) -> Range:
        """The physical range that it occupies."""
        return Range(self.phys, self.phys + self.memsz)


class Kimage(NamedTuple):
    """The loaded crash image, as ``struct kimage`` (include/linux/kexec.h) describes it."""

    entry_phys: int
    """Entry point, in purgatory."""
    segments: tuple[Segment, ...]
    control_page_phys: int | None = None
    """The next free control page: behind those in use."""

    def with_segments(self, *segments: Segment) -> Kimage:
        """Return it with these segments, by address."""
        return self._replace(segments=tuple(sorted(segments, key=lambda s: s.phys)))

    def segment_at(self, phys: int) -> Segment | None:
        """Return the segment that holds the physical address, or None."""
        return next((s for s in self.segments if s.phys <= phys < s.phys + s.memsz), None)


class CrashImage(NamedTuple):
    """The parts of a loaded crash image that a header's verdict needs."""

    elfcorehdr: bytes
    """At least the header; padding and room may follow."""
    elfcorehdr_phys: int | None = None
    boot: BootDescription | None = None
    """What tells the capture kernel its command line, its RAM, and where the header is."""
    kimage: Kimage | None = None
    """Every segment of the image, those that an update in place did not list included."""
    backup_region_phys: int | None = None
    """Physical address to which purgatory copies low memory; None if it copies none or its variables cannot be read."""
    updated_by_kernel: bool = False
    """Whether the kernel itself may update the header (6.6 and newer, where the loader said so)."""
    torn: str | None = None
    """Why an earlier update is known to have left it torn; None where nothing is known."""

    @property
    def cmdline(self) -> str | None:
        """The capture kernel's command line; None where it is not known."""
        return None if self.boot is None else self.boot.cmdline

    @property
    def loader(self) -> Loader | None:
        """The loader, recognised by what it wrote beside the header; None where that is not known."""
        return None if self.boot is None else self.boot.loader

    @property
    def luks_keys(self) -> str | None:
        """Name of what leads the capture kernel to keys of encrypted disks; None where nothing does."""
        return None if self.boot is None else self.boot.luks_keys

    @property
    def capture_ram(self) -> RangeList:
        """Physical ranges that the capture kernel uses as RAM; empty where they are not known."""
        return RangeList() if self.boot is None else self.boot.ram

    @property
    def why_header_not_found(self) -> str | None:
        """Why the capture kernel would not find the whole header; None where it would, or where that is not known."""
        if self.boot is None:
            return None
        return self.boot.why_elfcorehdr_not_found(self.elfcorehdr_phys, header_size(self.elfcorehdr))


def parse_kimage(data: bytes, crashkernel: RangeList, layouts: Sequence[KimageLayout] = KNOWN_LAYOUTS) -> Kimage:
    """Read entry point and segments out of the bytes of a ``struct kimage``.

    The layout is not trusted: every segment must lie, page aligned and apart from the others, in the reserved
    region, and the entry point in one of them.  Layouts that differ in the place of ``control_page`` only are told
    apart by its value: an address in the reserved region.

    :param layouts: the kernel's own layout out of its BTF, or those to try
    :raise CannotTellError: nothing in *data* fits
    """
    if len(data) < max(layout.end for layout in layouts):
        raise CannotTellError(f"struct kimage is truncated: {len(data)} bytes")
    found = None
    for layout in layouts:
        entry, count, control_page = (
            int.from_bytes(data[at : at + 8], "little")
            for at in (layout.start, layout.nr_segments, layout.control_page)
        )
        if not 1 <= count <= KEXEC_SEGMENT_MAX:
            continue
        table = struct.iter_unpack("<QQQQ", data[layout.segment : layout.segment + 32 * count])
        segments = tuple(Segment(phys, memsz, bufsz) for _buf, bufsz, phys, memsz in table)
        kimage = Kimage(entry, segments, control_page)
        if _plausible(segments, crashkernel) and kimage.segment_at(entry) is not None:
            if any(reserved.start <= control_page <= reserved.end for reserved in crashkernel):
                return kimage
            found = found or kimage
    if found is not None:
        return found
    raise CannotTellError("the layout of struct kimage on this kernel is not known: no segment table was recognised")


def _plausible(segments: tuple[Segment, ...], crashkernel: RangeList) -> bool:
    for s in segments:
        if s.phys % PAGE or s.memsz % PAGE or not 0 <= s.bufsz <= s.memsz or s.memsz == 0:
            return False
        if s.phys + s.memsz > 1 << 64:
            return False
    taken = RangeList(s.range for s in segments)
    return taken.size == sum(s.memsz for s in segments) and crashkernel.covers(taken)


def elfcorehdr_room(image: CrashImage, crashkernel: RangeList, backup_region_phys: int | None = None) -> int | None:
    """Return how many bytes the loaded elfcorehdr may grow to; None where that cannot be determined.

    An update in place lists the header with a part of its room only, so the segment's memsz is a lower bound.  The
    boot description shows the rest; another segment, the backup region and the end of the reservation bound it.

    :param backup_region_phys: physical address of the backup region, where *image* lacks it
    """
    start = image.elfcorehdr_phys
    if start is None and image.boot is not None:
        start = image.boot.elfcorehdr_phys
    if start is None:
        return None
    segment = image.kimage.segment_at(start) if image.kimage is not None else None
    listed = None if segment is None else segment.range.end - start
    if image.boot is None:
        return listed
    return image.boot.elfcorehdr_room(start, listed, _bounds(start, image, crashkernel, backup_region_phys))


def _bounds(start: int, image: CrashImage, crashkernel: RangeList, backup_region_phys: int | None) -> list[int]:
    """Return the physical addresses at which the reserved range of *start* ends and the parts of the image begin."""
    reservation = next((r for r in crashkernel if r.start <= start < r.end), None)
    if reservation is None:
        return []
    taken = [s.phys for s in image.kimage.segments] if image.kimage is not None else []
    taken += [phys for phys in (backup_region_phys, image.backup_region_phys) if phys is not None]
    return [reservation.end, *taken]


def header_size(elfcorehdr: bytes) -> int:
    """Return the bytes that a header says it has; 0 where it is no header."""
    try:
        return program_headers_end(parse_core_header(elfcorehdr, "the loaded elfcorehdr")[0])
    except ElfFormatError:
        return 0  # the parser of the header reports the error
