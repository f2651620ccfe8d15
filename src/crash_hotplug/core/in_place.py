"""What an update in place has to list in its kexec_load, and purgatory's digest without the elfcorehdr.

Pure computation over addresses and bytes; who reads and who calls kexec_load is another matter.  The facts it rests on
are those of ``kimage_alloc_crash_control_pages()`` in kernel/kexec_core.c and of purgatory's ``verify_sha256_digest()``.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple, Optional

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, Kimage, Segment
from crash_hotplug.core.ranges import Range, RangeList

PAGE = 4096
DIGEST_SIZE = 32
_REGION = struct.Struct("<QQ")
TABLE_SIZE = _REGION.size * KEXEC_SEGMENT_MAX

ReadPhys = Callable[[int, int], bytes]
"""Reads bytes at a physical address: (address, length)."""


def lowest_hole(reserved: Range, listed: Iterable[Range], size: int) -> Optional[Range]:
    """Return the lowest page-aligned hole of *size* bytes in the reserved range that no listed segment covers.

    That is where the kernel takes control pages from.
    """
    at = reserved.start
    for taken in sorted(listed):
        if taken.start - at >= size:
            break
        at = max(at, taken.end)
    return Range(at, at + size) if at + size <= reserved.end else None


def segments_to_list(kimage: Kimage, changed: Iterable[int], reserved: Range, control_size: int) -> tuple[Segment, ...]:
    """Return which segments a kexec_load must list so that its control pages overwrite none that it does not list.

    :param changed: physical addresses of segments with new contents
    :param control_size: bytes of control pages this machine needs, at most
    :raise CannotTellError: no hole is large enough even with every segment listed
    """
    listed = {segment for segment in kimage.segments if segment.phys in set(changed)}
    while True:
        hole = lowest_hole(reserved, (s.range for s in listed), control_size)
        if hole is None:
            raise CannotTellError(f"the reserved region has no hole of {control_size} bytes for control pages")
        # Not only what overlaps this hole: single control pages go into smaller holes below it.
        hit = [s for s in kimage.segments if s not in listed and s.phys < hole.end]
        if not hit:
            return tuple(sorted(listed, key=lambda s: s.phys))
        listed.update(hit)


def digest_regions(purgatory: bytes, kimage: Kimage, reserved: RangeList) -> Optional[tuple[Segment, ...]]:
    """Return the segments that purgatory's digest table names, without proving it by a digest; None where it has none.

    After an update in place ``struct kimage`` lists only what that update listed; the table still names the whole
    image.  A length of 0, with which an update takes the elfcorehdr out of the digest, is given as such.
    """
    must = {s.phys for s in kimage.segments if s.phys != purgatory_phys(kimage)}
    for at in range(0, len(purgatory) - TABLE_SIZE + 1, 8):
        entries = list(_REGION.iter_unpack(purgatory[at : at + TABLE_SIZE]))
        while entries and entries[-1] == (0, 0):
            entries.pop()
        starts = {start for start, _length in entries}
        if len(entries) < 2 or len(must - starts) > 1 or len(starts) != len(entries):
            continue
        if any(start % PAGE or length % PAGE or not reserved.contains(start) for start, length in entries):
            continue
        ranges = [Range(start, start + length) for start, length in entries]
        if reserved.covers(RangeList(ranges)) and RangeList(ranges).size == sum(r.size for r in ranges):
            return tuple(Segment(start, length, length) for start, length in entries)
    return None


def purgatory_phys(kimage: Kimage) -> int:
    """Return the physical address of the segment that holds the entry point."""
    segment = kimage.segment_at(kimage.entry_phys)
    return kimage.entry_phys if segment is None else segment.phys


class DigestTable(NamedTuple):
    """Purgatory's table of regions and the digest over them, proven to be that."""

    at: int
    """Where the table starts in the purgatory segment, in bytes."""
    digest_at: int
    """Where the digest stands in the purgatory segment, in bytes."""
    regions: tuple[tuple[int, int], ...]
    """(physical start, length) of each region; a length of 0 adds nothing."""


def find_digest_table(purgatory: bytes, kimage: Kimage, read_phys: ReadPhys) -> DigestTable:
    """Find the table in the bytes of the purgatory segment and prove the find by computing the digest.

    :raise CannotTellError: nothing in *purgatory* is such a table with a digest that fits
    """
    starts = {segment.phys for segment in kimage.segments}
    for at in range(0, len(purgatory) - TABLE_SIZE + 1, 8):
        regions = tuple(_REGION.iter_unpack(purgatory[at : at + TABLE_SIZE]))
        used = [region for region in regions if region != (0, 0)]
        if len(used) < 2 or any(start not in starts for start, _length in used):
            continue
        digest_at = purgatory.find(digest_of(used, read_phys))
        if digest_at >= 0:
            return DigestTable(at, digest_at, regions)
    raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind, or damaged")


def digest_of(regions: Iterable[tuple[int, int]], read_phys: ReadPhys) -> bytes:
    """Compute the SHA-256 that purgatory compares, over (physical start, length) regions in order."""
    digest = hashlib.sha256()
    for start, length in regions:
        if length:
            digest.update(read_phys(start, length))
    return digest.digest()


def without_elfcorehdr(
    purgatory: bytes, table: DigestTable, elfcorehdr_phys: int, read_phys: ReadPhys
) -> Optional[bytes]:
    """Return *purgatory* with the elfcorehdr's length set to 0 and a digest that fits; None where it is left out."""
    if all(start != elfcorehdr_phys or length == 0 for start, length in table.regions):
        return None
    regions = [(start, 0 if start == elfcorehdr_phys else length) for start, length in table.regions]
    changed = bytearray(purgatory)
    changed[table.at : table.at + TABLE_SIZE] = b"".join(_REGION.pack(*region) for region in regions)
    changed[table.digest_at : table.digest_at + DIGEST_SIZE] = digest_of(regions, read_phys)
    return bytes(changed)


def control_pages_bound(ram: RangeList) -> int:
    """Return how many bytes of control pages x86_64 takes for a crash image, at most.

    Two pages of control code, one page each of the page-table levels for code and trampoline (seven), and the identity
    map of all RAM without 1 GiB pages: one page per started GiB, one per started 512 GiB.
    """
    top = ram[-1].end if ram else 0
    return PAGE * (2 + 7 + -(-top // (1 << 30)) + -(-top // (1 << 39)))
