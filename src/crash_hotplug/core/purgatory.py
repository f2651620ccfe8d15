# SPDX-License-Identifier: MIT
"""Purgatory, the small program between a crashed kernel and its capture kernel: its digest and the backup region.

Purgatory computes a SHA-256 over the image's segments before it jumps.  Both loaders write a table of the regions
(``sha256_regions``, 16 times {start, len}), the 32 digest bytes and the backup region into its variables.  The places
of the variables vary with the build.  The functions work on the bytes of purgatory's segment.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType

from crash_hotplug.core.arch.architecture import PAGE, whole_pages
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage, Kimage, Segment
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple

DIGEST_SIZE = 32
_REGION = struct.Struct("<QQ")
TABLE_SIZE = _REGION.size * KEXEC_SEGMENT_MAX
_HASHED_AT_ONCE = 1 << 20
_WORD = 8
_TABLE_IN_NEW = 64
"""Where the digest table starts in a purgatory that :func:`new_purgatory` makes."""
_LARGEST = 1 << 20
"""Bytes; more than any purgatory has, and less than any kernel."""

ReadPhys = Callable[[int, int], bytes]
"""Reads bytes at a physical address: (address, length)."""
_Regions = Iterable[tuple[int, int]]
"""(Physical start, length) of each."""


class DigestTable(NamedTuple):
    """Purgatory's table of regions and the digest over them, proven by computing that digest."""

    at: int
    """Where the table starts in the purgatory segment, in bytes."""
    digest_at: int
    """Where the digest starts in the purgatory segment, in bytes."""
    regions: tuple[tuple[int, int], ...]
    """(physical start, length) of each region; a length of 0 adds nothing."""


def purgatory_phys(kimage: Kimage) -> int:
    """Return the physical address of the segment that holds the entry point."""
    segment = kimage.segment_at(kimage.entry_phys)
    return kimage.entry_phys if segment is None else segment.phys


def read_purgatory(kimage: Kimage, read_phys: ReadPhys) -> bytes:
    """Return the contents of purgatory; errors and nothing as :func:`find_purgatory`."""
    return find_purgatory(kimage, read_phys)[0]


def find_purgatory(kimage: Kimage, read_phys: ReadPhys) -> tuple[bytes, Segment | None]:
    """Return the contents of purgatory's segment, which holds the entry point, and the place of its copy.

    The contents come from the copy (:func:`new_purgatory`) where the segment itself is unmapped; else there is none.

    :return: nothing where no segment holds it, or that segment is a kernel: arm64's kexec_file_load has no purgatory
    :raise CannotTellError: it cannot be read
    """
    segment = kimage.segment_at(kimage.entry_phys)
    if segment is None or segment.memsz > _LARGEST:
        return b"", None
    data = read_phys(segment.phys, segment.memsz)
    if any(data) or segment.phys != kimage.entry_phys:
        return data, None
    copy = segment._replace(phys=segment.range.end)
    return read_phys(copy.phys, copy.memsz), copy


@lru_cache(maxsize=2)
def _table_candidates(purgatory: bytes) -> list[int]:
    """Return where a digest table may begin, in bytes: wherever the first word could be a segment's address.

    An update asks several times for the same bytes.
    """
    words = struct.unpack_from(f"<{len(purgatory) // 8}Q", purgatory)
    last = len(purgatory) - TABLE_SIZE
    return [8 * number for number, word in enumerate(words) if word and not word % PAGE and 8 * number <= last]


def digest_regions(purgatory: bytes, kimage: Kimage, reserved: RangeList) -> tuple[Segment, ...] | None:
    """Return the segments that purgatory's digest table names, without proving it by a digest; None where it has none.

    After an update in place ``struct kimage`` lists only what that update listed; the table still names the whole
    image.  A region whose length is 0, as the elfcorehdr's is after an update, is returned with a memsz of 0.
    """
    must = {s.phys for s in kimage.segments if s.phys != purgatory_phys(kimage)}
    for at in _table_candidates(purgatory):
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


def find_digest_table(purgatory: bytes, kimage: Kimage, read_phys: ReadPhys) -> DigestTable:
    """Find the table in the bytes of the purgatory segment and prove it by computing the digest.

    :raise CannotTellError: *purgatory* has no table with a digest that fits
    """
    return _find_digest_table(purgatory, kimage, lambda regions: (digest_of(regions, read_phys), b""))[0]


def _find_digest_table(
    purgatory: bytes, kimage: Kimage, digests: Callable[[_Regions], tuple[bytes, bytes]]
) -> tuple[DigestTable, bytes]:
    """Return the table, and the second one of the *digests* over its regions; the first one must be purgatory's."""
    sizes = {segment.phys: segment.memsz for segment in kimage.segments}
    for at in _table_candidates(purgatory):
        regions = tuple(_REGION.iter_unpack(purgatory[at : at + TABLE_SIZE]))
        used = [region for region in regions if region != (0, 0)]
        if len(used) < 2 or any(length > sizes.get(start, 0) for start, length in used):
            continue
        digest, second = digests(used)
        digest_at = purgatory.find(digest)
        if digest_at >= 0:
            return DigestTable(at, digest_at, regions), second
    raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind, or damaged")


def parts_of(start: int, length: int, read_phys: ReadPhys) -> Iterator[bytes]:
    """Read a physical range in parts: an initrd may be larger than the memory that a service is allowed."""
    for at in range(0, length, _HASHED_AT_ONCE):
        yield read_phys(start + at, min(_HASHED_AT_ONCE, length - at))


def digest_of(regions: _Regions, read_phys: ReadPhys) -> bytes:
    """Compute the SHA-256 that purgatory compares, over (physical start, length) regions in order."""
    # Imported here: it brings libcrypto, 4 MiB that a service which computes no digest need not hold.
    import hashlib  # noqa: PLC0415

    digest = hashlib.sha256()
    for start, length in regions:
        for part in parts_of(start, length, read_phys):
            digest.update(part)
    return digest.digest()


def without_elfcorehdr(
    purgatory: bytes,
    kimage: Kimage,
    elfcorehdr_phys: int,
    read_phys: ReadPhys,
    changed: Mapping[int, bytes] = MappingProxyType({}),
    moved: Mapping[int, int] = MappingProxyType({}),
) -> bytes:
    """Return *purgatory* with the elfcorehdr's length set to 0 and the digest of the rest of the image.

    Both digests are computed over one reading, so that the new one is of the bytes that the old one proves: another
    reading of /proc/kcore may give zeros.

    :param changed: new contents of other segments, by physical address
    :param moved: new physical addresses of segments, by their present ones
    :raise CannotTellError: *purgatory* has no table with a digest that fits
    """
    import hashlib  # noqa: PLC0415

    def digests(regions: _Regions) -> tuple[bytes, bytes]:
        old, new = hashlib.sha256(), hashlib.sha256()
        for start, length in regions:
            at = 0
            for part in parts_of(start, length, read_phys):
                old.update(part)
                if start != elfcorehdr_phys:
                    new.update(changed[start][at : at + len(part)] if start in changed else part)
                at += len(part)
        return old.digest(), new.digest()

    table, digest = _find_digest_table(purgatory, kimage, digests)
    regions = [(moved.get(start, start), 0 if start == elfcorehdr_phys else length) for start, length in table.regions]
    patched = bytearray(purgatory)
    patched[table.at : table.at + TABLE_SIZE] = b"".join(_REGION.pack(*region) for region in regions)
    patched[table.digest_at : table.digest_at + DIGEST_SIZE] = digest
    return bytes(patched)


def with_kernel_at(purgatory: bytes, old_entry_phys: int, new_entry_phys: int) -> bytes:
    """Return *purgatory* with another place of the kernel's first instruction (``arm64_kernel_entry`` of kexec-tools).

    :param purgatory: its digest table has the new place already
    :raise CannotTellError: the present address is not there exactly once
    """
    old = old_entry_phys.to_bytes(_WORD, "little")
    places = [at for at in range(0, len(purgatory) - _WORD + 1, _WORD) if purgatory[at : at + _WORD] == old]
    if len(places) != 1:
        raise CannotTellError(f"purgatory has the kernel's address {len(places)} times, not once: it cannot be moved")
    at = places[0]
    return purgatory[:at] + new_entry_phys.to_bytes(_WORD, "little") + purgatory[at + _WORD :]


def new_purgatory(code: bytes, regions: Iterable[tuple[int, int]], size: int, read_phys: ReadPhys) -> bytes:
    """Return *size* bytes of a purgatory that starts a kernel and checks nothing, where the loader made none.

    It has a digest table all the same, so that the parts of the image, and changes of them, are known later.  Where the
    kernel unmaps what is listed a copy of it stands behind it, which is not listed in the end and stays readable.

    :param code: what starts the kernel
    :param regions: (physical start, length) of each other segment
    """
    regions = list(regions)
    table = b"".join(_REGION.pack(*region) for region in regions).ljust(TABLE_SIZE, b"\0")
    return (code.ljust(_TABLE_IN_NEW, b"\0") + table + digest_of(regions, read_phys)).ljust(size, b"\0")


def verify_digest(image: CrashImage, crashkernel: RangeList, read_phys: ReadPhys) -> None:
    """Compute purgatory's digest over the whole image, as purgatory will after a panic.

    :raise CrashHotplugError: the digest differs from purgatory's: a panic now would leave no dump
    :raise CannotTellError: the image could not be read completely
    """
    if image.kimage is None:
        raise CannotTellError("struct kimage of the loaded image could not be read")
    purgatory = read_purgatory(image.kimage, read_phys)
    if not purgatory:
        raise CannotTellError("the image has no purgatory (arm64's kexec_file_load makes none), so no digest proves it")
    if digest_regions(purgatory, image.kimage, crashkernel) is None:
        raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind")
    try:
        find_digest_table(purgatory, image.kimage, read_phys)
    except CannotTellError:
        raise CrashHotplugError(
            "purgatory's digest does not fit the loaded image: a panic now would leave no dump; reload the crash image"
        ) from None


def find_backup_region(purgatory: bytes, regions: tuple[Segment, ...], source: Range) -> int | None:
    """Return the physical address to which purgatory copies low memory; None where it copies none.

    kexec-tools gives the backup region a segment of the size of *source*, and writes three words into purgatory: the
    address of the region, the start of the source, and the size of the source (``backup_start``, ``backup_src_start``,
    ``backup_src_size``).

    :param regions: segments of the image, out of :func:`digest_regions`
    :param source: the physical range that is backed up: the first RAM below 640 KiB
    """
    memsz = whole_pages(source.size)
    whole = len(purgatory) // _WORD * _WORD
    words = struct.unpack(f"<{whole // _WORD}Q", purgatory[:whole])
    for segment in regions:
        if segment.memsz != memsz or source.size not in words:
            continue
        # A table entry is followed by its length; the variable is not.
        if any(word == segment.phys and words[at + 1 : at + 2] != (memsz,) for at, word in enumerate(words)):
            return segment.phys
    return None
