# SPDX-License-Identifier: MIT
"""Purgatory, the code that runs between the crashed kernel and the capture kernel, as data.

The model runs none of its code, it has the data and the effects: the check of the digest over the image's segments
before the jump, and the words that tell the rest to each architecture.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX
from crash_hotplug.core.purgatory import DIGEST_SIZE, TABLE_SIZE, digest_of
from crash_hotplug.core.ranges import RangeList
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.memory import PhysicalMemory

ENTRY_OFFSET = 0x730
"""Offset of the entry point in the segment."""
_CODE = hashlib.sha512(b"purgatory").digest() * 0x30
_DIGEST_AT = 0x1000
_TABLE_AT = _DIGEST_AT + DIGEST_SIZE
_WORDS_AT = _TABLE_AT + TABLE_SIZE
_WORDS = struct.Struct("<QQQQ")


class DigestError(CrashHotplugError):
    """Purgatory's digest does not fit the image: the capture kernel is not started."""


class Purgatory(NamedTuple):
    """The data of purgatory."""

    digest: bytes
    regions: tuple[tuple[int, int], ...]
    """(physical start, length) of each region that the digest covers."""
    words: tuple[int, ...]
    """The other variables: what they are depends on the architecture."""


def build_purgatory(pages: int, words: Sequence[int], hashed: Sequence[KexecSegment]) -> bytes:
    """Return the contents of the purgatory segment.

    :param pages: number of pages of the segment
    :param words: up to four other variables
    :param hashed: the segments that the digest covers, over their memsz
    """
    data = bytearray(pages * PAGE)
    data[: len(_CODE)] = _CODE
    data[_DIGEST_AT:_TABLE_AT] = _digest_of_segments(tuple((segment.buf, segment.memsz) for segment in hashed))
    for i, segment in enumerate(hashed):
        struct.pack_into("<QQ", data, _TABLE_AT + 16 * i, segment.phys, segment.memsz)
    _WORDS.pack_into(data, _WORDS_AT, *words, *(0,) * (4 - len(words)))
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
    data = memory.read(start, _WORDS_AT + _WORDS.size)
    regions = tuple(struct.iter_unpack("<QQ", data[_TABLE_AT : _TABLE_AT + 16 * KEXEC_SEGMENT_MAX]))
    return Purgatory(data[_DIGEST_AT:_TABLE_AT], regions, _WORDS.unpack_from(data, _WORDS_AT))


def is_purgatory(memory: PhysicalMemory, entry_phys: int) -> bool:
    """Whether a physical address is the entry point of a purgatory that :func:`build_purgatory` made."""
    start = entry_phys - ENTRY_OFFSET
    return memory.present.contains(start) and memory.read(start, len(_CODE)) == _CODE


def check_digest(memory: PhysicalMemory, purgatory: Purgatory) -> None:
    """Compute the digest and compare it, as ``verify_sha256_digest()`` does before the jump.

    :raise DigestError: they differ
    """
    contents = tuple((start, length, memory.region(start, length)) for start, length in purgatory.regions if length)
    if _digest_of_contents(contents) != purgatory.digest:
        raise DigestError("purgatory's digest did not match: the capture kernel was not started")


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
