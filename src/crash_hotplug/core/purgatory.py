"""What the bytes of purgatory's segment tell without a digest: which regions it checks, and the backup region.

Purgatory is the small program between a crashed kernel and its capture kernel.  kexec-tools and the kernel's loader
write their findings into its variables (``sha256_regions``, ``backup_start``), whose places vary with the build.
"""

from __future__ import annotations

import struct

from crash_hotplug.core.image import PAGE, Kimage, Segment
from crash_hotplug.core.in_place import TABLE_SIZE, table_candidates
from crash_hotplug.core.ranges import Range, RangeList

_REGION = struct.Struct("<QQ")
_WORD = 8


def purgatory_phys(kimage: Kimage) -> int:
    """Return the physical address of the segment that holds the entry point."""
    segment = kimage.segment_at(kimage.entry_phys)
    return kimage.entry_phys if segment is None else segment.phys


def digest_regions(purgatory: bytes, kimage: Kimage, reserved: RangeList) -> tuple[Segment, ...] | None:
    """Return the segments that purgatory's digest table names, without proving it by a digest; None where it has none.

    After an update in place ``struct kimage`` lists only what that update listed; the table still names the whole
    image.  A length of 0, with which an update takes the elfcorehdr out of the digest, is given as such.
    """
    must = {s.phys for s in kimage.segments if s.phys != purgatory_phys(kimage)}
    for at in table_candidates(purgatory):
        entries = list(_REGION.iter_unpack(purgatory[at : at + TABLE_SIZE]))
        while entries and entries[-1] == (0, 0):
            entries.pop()
        starts = {start for start, _length in entries}
        # The elfcorehdr alone may be missing: loaders leave it out where the kernel may update it.
        if len(entries) < 2 or len(must - starts) > 1 or len(starts) != len(entries):
            continue
        if any(start % PAGE or length % PAGE or not reserved.contains(start) for start, length in entries):
            continue
        ranges = [Range(start, start + length) for start, length in entries]
        if reserved.covers(RangeList(ranges)) and RangeList(ranges).size == sum(r.size for r in ranges):
            return tuple(Segment(start, length, length) for start, length in entries)
    return None


def digest_covers(regions: tuple[Segment, ...], phys: int) -> bool:
    """Whether a segment at this physical address is part of the digest."""
    return any(region.phys == phys and region.memsz for region in regions)


def find_backup_region(purgatory: bytes, regions: tuple[Segment, ...], source: Range) -> int | None:
    """Return the physical address to which purgatory copies low memory; None where it copies none.

    kexec-tools gives the backup region a segment of the size of *source*, and tells purgatory three words: where it
    is, where the source starts, and its size (``backup_start``, ``backup_src_start``, ``backup_src_size``).

    :param regions: segments of the image, out of :func:`digest_regions`
    :param source: the physical range that is backed up: the first RAM below 640 KiB
    """
    memsz = -(-source.size // PAGE) * PAGE
    whole = len(purgatory) // _WORD * _WORD
    words = struct.unpack(f"<{whole // _WORD}Q", purgatory[:whole])
    for segment in regions:
        if segment.memsz != memsz or source.size not in words:
            continue
        # A table entry is followed by its length; the variable is not.
        if any(word == segment.phys and words[at + 1 : at + 2] != (memsz,) for at, word in enumerate(words)):
            return segment.phys
    return None
