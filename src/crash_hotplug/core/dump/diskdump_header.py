# SPDX-License-Identifier: MIT
"""The headers of a dump in makedumpfile's compressed format, versions 1 to 6.

The file has ``struct disk_dump_header`` in its first block, ``struct kdump_sub_header`` with the notes behind it in the
next ones, then two bitmaps, the page descriptors, and the pages (diskdump_mod.h and IMPLEMENTATION of makedumpfile).
"""

from __future__ import annotations

import struct

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.supported import NAMES, architecture_named, is_other_machine
from crash_hotplug.core.dump.page_bitmap import bitmap_size
from crash_hotplug.core.dump.vmcore import NOTES_LIMIT, WHAT, ByteSource
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.records import NamedTuple

SIGNATURE = b"KDUMP   "
HEADER_SIZE = 464
_VERSION = struct.Struct("<i")
_NUMBERS = struct.Struct("<IiiII")
"""status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr"""
_NUMBERS_AT = 424
_UTSNAME_AT = 12
_UTSNAME_FIELD = 65
_RELEASE, _MACHINE = 2, 4
"""Positions in ``struct new_utsname``."""
_SUB_HEADER = struct.Struct("<QiiQQqQqQqQQQQ")
_SUB_HEADER_SIZES = {1: 12, 2: 32, 3: 48, 4: 64, 5: 80, 6: 104}
"""Bytes of the sub-header by version: each version appends fields."""
_PAGE_SIZES = (4096, 16384, 65536)
_BITMAP_LIMIT = 2 << 30
"""A bitmap of more bytes, those of 64 TiB in pages of 4 KiB, is not read."""
INCOMPLETE = 0x8
"""``DUMP_DH_COMPRESSED_INCOMPLETE`` in the status."""
_COMPRESSIONS = {0x1: "zlib", 0x2: "lzo", 0x4: "snappy", 0x20: "zstd"}


class DiskdumpHeader(NamedTuple):
    """Header and sub-header; fields that the version does not have are 0."""

    version: int
    kernel_release: str | None
    architecture: Architecture | None
    """None where utsname does not name one: QEMU does not know the kernel, and makedumpfile 1.6.8 copies the utsname of
    Linux 5.11 and newer from 4 bytes too far."""
    status: int
    block_size: int
    """Bytes in a block, which is a page."""
    sub_header_blocks: int
    bitmap_blocks: int
    """Blocks of both bitmaps together."""
    pages: int
    """Number of page frames, each of which has a bit in both bitmaps (``max_mapnr``)."""
    dump_level: int
    """Which pages were left out (``-d``)."""
    is_split: bool
    split_pages: Range
    """The page frames that this file of a split dump has."""
    vmcoreinfo_place: Range
    """File offsets of the text of vmcoreinfo."""
    notes_place: Range
    """File offsets of the notes."""
    erased_place: Range
    """File offsets of the list of erased data (``--config``)."""

    @property
    def bitmaps_offset(self) -> int:
        """File offset of the first bitmap."""
        return (1 + self.sub_header_blocks) * self.block_size

    @property
    def bitmap_size(self) -> int:
        """Bytes between the beginnings of the bitmaps."""
        return self.bitmap_blocks * self.block_size // 2

    @property
    def descriptors_offset(self) -> int:
        """File offset of the first page descriptor."""
        return self.bitmaps_offset + self.bitmap_blocks * self.block_size

    @property
    def compression(self) -> str | None:
        """How makedumpfile was told to compress pages; None where it was not."""
        return next((name for flag, name in _COMPRESSIONS.items() if self.status & flag), None)


class _MainHeader(NamedTuple):
    """The fields of ``struct disk_dump_header`` that are used."""

    version: int
    kernel_release: str | None
    architecture: Architecture | None
    status: int
    block_size: int
    sub_header_blocks: int
    bitmap_blocks: int
    max_mapnr: int


def _parse_main_header(data: bytes) -> _MainHeader:
    if len(data) < HEADER_SIZE:
        raise InputError(f"{WHAT} is truncated: {len(data)} bytes, the header of a compressed dump has {HEADER_SIZE}")
    (version,) = _VERSION.unpack_from(data, len(SIGNATURE))
    if version not in _SUB_HEADER_SIZES:
        raise InputError(f"{WHAT} is a compressed dump of version {version}; known are 1 to {max(_SUB_HEADER_SIZES)}")
    machine = _utsname(data, _MACHINE) or ""
    if is_other_machine(machine):
        raise InputError(f"{WHAT} is for {machine}; supported are {NAMES}")
    architecture = architecture_named(machine)
    header = _MainHeader(version, _utsname(data, _RELEASE), architecture, *_NUMBERS.unpack_from(data, _NUMBERS_AT))
    if header.block_size not in _PAGE_SIZES:
        sizes = ", ".join(map(str, _PAGE_SIZES))
        raise InputError(f"{WHAT} is malformed: its blocks have {header.block_size} bytes; a page has one of {sizes}")
    if header.sub_header_blocks < 1:
        raise InputError(f"{WHAT} is malformed: its sub-header has {header.sub_header_blocks} blocks")
    return header


def headers_and_bitmaps_size(data: bytes) -> int:
    """Return how many bytes come before the page descriptors.

    :param data: the first :data:`HEADER_SIZE` bytes
    :raise InputError: it is truncated or malformed
    :raise CannotTellError: they are more than can be read
    """
    header = _parse_main_header(data)
    size = (1 + header.sub_header_blocks + header.bitmap_blocks) * header.block_size
    if size > 2 * _BITMAP_LIMIT + NOTES_LIMIT:
        raise CannotTellError(f"{WHAT} has headers and bitmaps of {size:,} bytes: more than are read from a stream")
    return size


def parse_diskdump_header(source: ByteSource) -> DiskdumpHeader:
    """Read the headers of a compressed dump.

    :raise InputError: they are truncated, contradict each other, or are of an unknown version or architecture
    :raise CannotTellError: the bitmaps are larger than what can be read
    """
    main = _parse_main_header(source.read_at(0, HEADER_SIZE))
    size = _SUB_HEADER_SIZES[main.version]
    sub = source.read_at(main.block_size, size)
    if len(sub) < size:
        end = f"its sub-header ends at byte {main.block_size + size}"
        raise InputError(f"{WHAT} is truncated: {end}, the file has {main.block_size + len(sub)}")
    (
        _phys_base, dump_level, split, start, split_end, vmcoreinfo_at, vmcoreinfo_size, notes_at, notes_size,
        erased_at, erased_size, start_64, end_64, max_mapnr_64,
    ) = _SUB_HEADER.unpack(sub.ljust(_SUB_HEADER.size, b"\0"))  # fmt: skip
    pages = main.max_mapnr
    if main.version >= 6:  # the fields of 32 bits are obsolete
        pages, start, split_end = max_mapnr_64, start_64, end_64
    header = DiskdumpHeader(
        *main[:-1],
        pages,
        dump_level,
        split != 0,
        Range(start, split_end) if split else Range(0, pages),
        Range(vmcoreinfo_at, vmcoreinfo_at + vmcoreinfo_size),
        Range(notes_at, notes_at + notes_size),
        Range(erased_at, erased_at + erased_size),
    )
    _check_places(header)
    return header


def _check_places(header: DiskdumpHeader) -> None:
    """Check that the parts of the file are where and as large as they can be.

    :raise InputError: they are not
    :raise CannotTellError: the bitmaps are larger than what can be read
    """
    needed = bitmap_size(header.pages)
    if header.bitmap_size < needed:
        bits = f"its bitmaps have {8 * header.bitmap_size:,} bits each, for {header.pages:,} pages"
        raise InputError(f"{WHAT} is malformed: {bits}")
    if needed > _BITMAP_LIMIT:
        raise CannotTellError(f"{WHAT} has bitmaps of {needed:,} bytes; only {_BITMAP_LIMIT:,} bytes are read")
    if not 0 <= header.split_pages.start <= header.split_pages.end <= header.pages:
        pages = f"{header.split_pages.start:#x} to {header.split_pages.end:#x}"
        raise InputError(f"{WHAT} is malformed: it has the pages {pages} of {header.pages:#x}")
    first = header.block_size + _SUB_HEADER_SIZES[header.version]
    for name, place in (("vmcoreinfo", header.vmcoreinfo_place), ("notes", header.notes_place)):
        if place.size and not first <= place.start <= place.end <= header.bitmaps_offset:
            where = f"at {place.start:#x} to {place.end:#x}, the sub-header ends at {header.bitmaps_offset:#x}"
            raise InputError(f"{WHAT} is malformed: it has its {name} {where}")
    if header.erased_place.size and not header.descriptors_offset <= header.erased_place.start < 1 << 63:
        where = f"at {header.erased_place.start:#x}, before the pages"
        raise InputError(f"{WHAT} is malformed: it has its list of erased data {where}")


def _utsname(data: bytes, position: int) -> str | None:
    """Return a field of ``struct new_utsname``; None where it is empty, or no text."""
    at = _UTSNAME_AT + position * _UTSNAME_FIELD
    text = data[at : at + _UTSNAME_FIELD].partition(b"\0")[0].decode("ascii", "replace")
    is_text = text.isascii() and text.isprintable()
    return text if text and is_text else None
