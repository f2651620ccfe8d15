"""What an update in place has to list in its kexec_load, and purgatory's digest without the elfcorehdr.

Pure computation over addresses and bytes; who reads and who calls kexec_load is another matter.  The facts it rests
on are those of ``kimage_alloc_crash_control_pages()`` in kernel/kexec_core.c, and purgatory's
``verify_sha256_digest()``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, PAGE, Kimage, Segment
from crash_hotplug.core.ranges import Range, RangeList

DIGEST_SIZE = 32
_REGION = struct.Struct("<QQ")
_HASHED_AT_ONCE = 1 << 20
TABLE_SIZE = _REGION.size * KEXEC_SEGMENT_MAX

ReadPhys = Callable[[int, int], bytes]
"""Reads bytes at a physical address: (address, length)."""


def lowest_hole(reserved: Range, listed: Iterable[Range], size: int) -> Range | None:
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


class DigestTable(NamedTuple):
    """Purgatory's table of regions and the digest over them, proven to be that."""

    at: int
    """Where the table starts in the purgatory segment, in bytes."""
    digest_at: int
    """Where the digest stands in the purgatory segment, in bytes."""
    regions: tuple[tuple[int, int], ...]
    """(physical start, length) of each region; a length of 0 adds nothing."""


def table_candidates(purgatory: bytes) -> list[int]:
    """Return where a digest table may begin, in bytes: wherever the first word could be a segment's address."""
    words = struct.unpack_from(f"<{len(purgatory) // 8}Q", purgatory)
    last = len(purgatory) - TABLE_SIZE
    return [8 * number for number, word in enumerate(words) if word and not word % PAGE and 8 * number <= last]


def find_digest_table(purgatory: bytes, kimage: Kimage, read_phys: ReadPhys) -> DigestTable:
    """Find the table in the bytes of the purgatory segment and prove the find by computing the digest.

    :raise CannotTellError: nothing in *purgatory* is such a table with a digest that fits
    """
    starts = {segment.phys for segment in kimage.segments}
    for at in table_candidates(purgatory):
        regions = tuple(_REGION.iter_unpack(purgatory[at : at + TABLE_SIZE]))
        used = [region for region in regions if region != (0, 0)]
        if len(used) < 2 or any(length and start not in starts for start, length in used):
            continue
        digest_at = purgatory.find(digest_of(used, read_phys))
        if digest_at >= 0:
            return DigestTable(at, digest_at, regions)
    raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind, or damaged")


def digest_of(regions: Iterable[tuple[int, int]], read_phys: ReadPhys) -> bytes:
    """Compute the SHA-256 that purgatory compares, over (physical start, length) regions in order."""
    # Imported here: it brings libcrypto, 4 MiB that a service which computes no digest need not hold.
    import hashlib  # noqa: PLC0415

    digest = hashlib.sha256()
    for start, length in regions:
        # In parts: an initrd may be larger than the memory that a service is allowed.
        for at in range(0, length, _HASHED_AT_ONCE):
            digest.update(read_phys(start + at, min(_HASHED_AT_ONCE, length - at)))
    return digest.digest()


def without_elfcorehdr(purgatory: bytes, table: DigestTable, elfcorehdr_phys: int, read_phys: ReadPhys) -> bytes | None:
    """Return *purgatory* with the elfcorehdr's length set to 0 and a digest that fits; None where it is left out."""
    if all(start != elfcorehdr_phys or length == 0 for start, length in table.regions):
        return None
    return with_new_digest(purgatory, table, elfcorehdr_phys, read_phys)


def with_new_digest(purgatory: bytes, table: DigestTable, elfcorehdr_phys: int, read_phys: ReadPhys) -> bytes:
    """Return *purgatory* with the digest of what *read_phys* gives, the elfcorehdr left out."""
    regions = [(start, 0 if start == elfcorehdr_phys else length) for start, length in table.regions]
    changed = bytearray(purgatory)
    changed[table.at : table.at + TABLE_SIZE] = b"".join(_REGION.pack(*region) for region in regions)
    changed[table.digest_at : table.digest_at + DIGEST_SIZE] = digest_of(regions, read_phys)
    return bytes(changed)


_CONTROL_PAGES_BESIDES_MAP = 2 + 1 + 1 + 4 + 4 + 16
"""Control code, its alignment to its own size, top-level table, page tables of the trampoline, levels above the
identity map, and sixteen for firmware tables (ACPI, EFI) that are mapped besides RAM."""


def control_pages_bound(ram: RangeList) -> int:
    """Return how many bytes of control pages x86_64 takes for a crash image, at most.

    ``init_pgtable()`` of arch/x86/kernel/machine_kexec_64.c maps all RAM: without 1 GiB pages that is one page per
    started GiB and one per started 512 GiB.
    """
    top = ram[-1].end if ram else 0
    return PAGE * (_CONTROL_PAGES_BESIDES_MAP + -(-top // (1 << 30)) + -(-top // (1 << 39)))
