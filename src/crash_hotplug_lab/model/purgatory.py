# SPDX-License-Identifier: MIT
"""Purgatory, the code that runs between the crashed kernel and the capture kernel, as data.

The model has no machine code, only the data of purgatory and its effects: the check of the digest over the image's
segments before the jump, and the copy of low memory to the backup region (kexec-tools only).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX
from crash_hotplug.core.purgatory import DIGEST_SIZE, TABLE_SIZE, digest_of
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.memory import PhysicalMemory

ENTRY_OFFSET = 0x730
"""Offset of the entry point in the segment."""
_CODE = hashlib.sha512(b"purgatory").digest() * 0x30
_DIGEST_AT = 0x1000
_TABLE_AT = _DIGEST_AT + DIGEST_SIZE
_POINTERS_AT = _TABLE_AT + TABLE_SIZE
_POINTERS = struct.Struct("<QQQQ")


class Purgatory(NamedTuple):
    """The data of purgatory."""

    digest: bytes
    regions: tuple[tuple[int, int], ...]
    """(physical start, length) of each region that the digest covers."""
    boot_params_phys: int
    backup: tuple[Range, int] | None
    """Physical range of low memory, and the physical address of its copy; None with the kernel's loader."""


def build_purgatory(
    pages: int, boot_params_phys: int, backup: tuple[Range, int] | None, hashed: Sequence[KexecSegment]
) -> bytes:
    """Return the contents of the purgatory segment.

    :param pages: number of pages of the segment
    :param hashed: the segments that the digest covers, over their memsz
    """
    data = bytearray(pages * PAGE)
    data[: len(_CODE)] = _CODE
    data[_DIGEST_AT:_TABLE_AT] = _digest_of_segments(tuple((segment.buf, segment.memsz) for segment in hashed))
    for i, segment in enumerate(hashed):
        struct.pack_into("<QQ", data, _TABLE_AT + 16 * i, segment.phys, segment.memsz)
    source, destination = backup or (Range(0, 0), 0)
    _POINTERS.pack_into(data, _POINTERS_AT, boot_params_phys, source.start, source.size, destination)
    return bytes(data)


@lru_cache(maxsize=256)
def _digest_of_segments(contents: tuple[tuple[bytes, int], ...]) -> bytes:
    """Return the digest over the contents of each segment and the zeros after them, up to its memsz."""
    digest = hashlib.sha256()
    for buf, memsz in contents:
        digest.update(buf)
        digest.update(bytes(memsz - len(buf)))
    return digest.digest()


def read_purgatory(memory: PhysicalMemory, entry_phys: int) -> Purgatory:
    """Read the data of the purgatory that has this entry point."""
    start = entry_phys - ENTRY_OFFSET
    data = memory.read(start, _POINTERS_AT + _POINTERS.size)
    regions = tuple(struct.iter_unpack("<QQ", data[_TABLE_AT : _TABLE_AT + 16 * KEXEC_SEGMENT_MAX]))
    boot_params, source, size, destination = _POINTERS.unpack_from(data, _POINTERS_AT)
    backup = (Range(source, source + size), destination) if size else None
    return Purgatory(data[_DIGEST_AT:_TABLE_AT], regions, boot_params, backup)


def digest_fits(memory: PhysicalMemory, purgatory: Purgatory) -> bool:
    """Compute the digest and compare it, as ``verify_sha256_digest()`` does before the jump."""
    contents = tuple((start, length, memory.region(start, length)) for start, length in purgatory.regions if length)
    return _digest_of_contents(contents) == purgatory.digest


Contents = tuple[tuple[int, int, tuple[tuple[int, bytes], ...]], ...]
"""Contents of memory regions: physical start, length, and the pages that are not all zeros."""


def _memory_of(contents: Contents) -> PhysicalMemory:
    memory = PhysicalMemory(RangeList((start, start + length) for start, length, _pages in contents))
    for _start, _length, pages in contents:
        for phys, page in pages:
            memory.write(phys, page)
    return memory


# The search of all interleavings computes the digest of the same contents thousands of times.


@lru_cache(maxsize=4096)
def _digest_of_contents(contents: Contents) -> bytes:
    return digest_of(((start, length) for start, length, _pages in contents), _memory_of(contents).read)


def copy_backup_region(memory: PhysicalMemory, purgatory: Purgatory) -> None:
    """Copy low memory, which the capture kernel overwrites, to the backup region; only with kexec-tools."""
    if purgatory.backup is not None:
        source, destination = purgatory.backup
        memory.write(destination, memory.read(source.start, source.size))
