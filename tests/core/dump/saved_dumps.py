# SPDX-License-Identifier: MIT
"""Compressed and flattened dumps made in memory, after makedumpfile's IMPLEMENTATION and diskdump_mod.h."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from crash_hotplug.core.elf import NT_PRSTATUS, Note, pack_notes
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.machine import Machine

PageRanges = Sequence[tuple[int, int]]
SUB_HEADER_SIZES = {1: 12, 2: 32, 3: 48, 4: 64, 5: 80, 6: 104}
PAGE_DATA = b"a page, compressed"


@dataclass(frozen=True)
class InMemory:
    """The bytes of a dump."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length] if 0 <= offset < len(self.data) else b""


class Forward(InMemory):
    """The bytes of a dump out of a pipe: behind the first 4 MiB nothing can be read again."""

    position = 0

    def read_at(self, offset: int, length: int) -> bytes:
        if self.position > offset >= 4 << 20:
            raise CannotTellError("it cannot be read again")
        object.__setattr__(self, "position", max(self.position, offset + length))
        return super().read_at(offset, length)


def info_of(crashed: Machine) -> bytes:
    """Return the text of vmcoreinfo of an x86_64 machine."""
    text = crashed.kernel_text
    assert text is not None
    phys_base = text.phys - (text.virt - 0xFFFF_FFFF_8000_0000)
    return f"OSRELEASE=6.1.0-test\nCRASHTIME=1795368112\nNUMBER(phys_base)={phys_base}\n".encode()


def registers(cpus: int) -> list[Note]:
    return [Note(b"CORE", NT_PRSTATUS, bytes([number]) * 336) for number in range(cpus)]


@dataclass(frozen=True)
class SavedDump:
    """A compressed dump; page ranges are half-open."""

    described: PageRanges
    saved: PageRanges = ()
    notes: Sequence[Note] = ()
    version: int = 6
    utsname_machine: bytes = b"x86_64"
    release: bytes = b"6.1.0-test"
    status: int = 2
    page_size: int = 4096
    level: int = 31
    pages: int | None = None
    part: tuple[int, int] | None = None
    zero_pages: Iterable[int] = ()
    """Numbers of saved pages that have only zeros."""
    lost: int = 0
    """Pages at the end that were not written."""
    erased: bytes = b""
    own_info: bytes = b""
    """vmcoreinfo outside of the notes, as version 3 has it."""
    changes: dict[int, bytes] = field(default_factory=dict)
    """Bytes to replace, by file offset."""

    @property
    def max_mapnr(self) -> int:
        return max((end for _start, end in self.described), default=0) if self.pages is None else self.pages

    @property
    def bitmap_blocks(self) -> int:
        """Blocks of both bitmaps: each is rounded up to a block of its own, as ``prepare_bitmap_buffer()`` does."""
        return 2 * -(-self.max_mapnr // (8 * self.page_size))

    @property
    def notes_offset(self) -> int:
        return self.page_size + SUB_HEADER_SIZES[self.version]

    @property
    def bitmaps_offset(self) -> int:
        packed = len(pack_notes(self.notes)) + len(self.own_info)
        return self.page_size * (1 + -(-(SUB_HEADER_SIZES[self.version] + packed) // self.page_size))

    @property
    def descriptors_offset(self) -> int:
        return self.bitmaps_offset + self.bitmap_blocks * self.page_size

    @property
    def own_pages(self) -> list[int]:
        start, end = self.part or (0, self.max_mapnr)
        return [page for page in self._all_saved if start <= page < end]

    @property
    def _all_saved(self) -> list[int]:
        return [page for start, end in self.saved for page in range(start, end)]

    @property
    def data_offset(self) -> int:
        return self.descriptors_offset + 24 * len(self._all_saved)

    def main_header(self) -> bytes:
        utsname = [b"Linux", b"host", self.release, b"#1 SMP", self.utsname_machine, b"(none)"]
        head = b"KDUMP   " + struct.pack("<i", self.version) + b"".join(part.ljust(65, b"\0") for part in utsname)
        blocks = self.bitmaps_offset // self.page_size - 1
        numbers = (self.status, self.page_size, blocks, self.bitmap_blocks, min(self.max_mapnr, 0xFFFF_FFFF))
        return head.ljust(408, b"\0") + struct.pack("<qqIiiII4Ii", 0, 0, *numbers, 0, 0, 0, 0, 1)

    def sub_header(self, erased_at: int = 0) -> bytes:
        start, end = self.part or (0, 0)
        packed = len(pack_notes(self.notes))
        values = struct.pack(
            "<QiiQQqQqQqQQQQ", 0x1000000, self.level, self.part is not None, start, end,
            self.notes_offset + packed if self.own_info else 0, len(self.own_info),
            self.notes_offset if self.notes else 0, packed, erased_at, len(self.erased), start, end, self.max_mapnr,
        )  # fmt: skip
        return values[: SUB_HEADER_SIZES[self.version]]

    def bitmap(self, ranges: PageRanges) -> bytes:
        bits = sum((1 << end) - (1 << start) for start, end in ranges)
        return bits.to_bytes(self.bitmap_blocks * self.page_size // 2, "little")

    def page_data(self) -> tuple[bytes, bytes]:
        """Return the descriptors, and the data of the pages."""
        has_zeros = self.level & 1
        data = bytes(self.page_size) if has_zeros else b""
        at, written, own = self.data_offset, 0, self.own_pages
        descriptors = bytearray()
        zeros = set(self.zero_pages)
        for page in own[: len(own) - self.lost]:
            if has_zeros and page in zeros:
                descriptors += struct.pack("<QIIQ", at, self.page_size, 0, 0)
            else:
                place = at + len(data) + written * len(PAGE_DATA)
                descriptors += struct.pack("<QIIQ", place, len(PAGE_DATA), 2, 0)
                written += 1
        return bytes(descriptors).ljust(at - self.descriptors_offset, b"\0"), data + PAGE_DATA * written

    def pieces(self) -> list[tuple[int, bytes]]:
        """Return the parts of the file with their offsets, in the order in which makedumpfile writes them."""
        descriptors, data = self.page_data()
        second = self.bitmaps_offset + self.bitmap_blocks * self.page_size // 2
        made = [(0, self.main_header()), (self.notes_offset, pack_notes(self.notes) + self.own_info)]
        made += [(self.page_size, self.sub_header()), (self.bitmaps_offset, self.bitmap(self.described))]
        made += [(second, self.bitmap(self.saved)), (self.data_offset, data), (self.descriptors_offset, descriptors)]
        if self.erased:
            at = self.data_offset + len(data)
            made += [(at, self.erased), (self.page_size, self.sub_header(at))]
        return [*((offset, piece) for offset, piece in made if piece), *self.changes.items()]

    def to_bytes(self) -> bytes:
        pieces = self.pieces()
        made = bytearray(max(offset + len(piece) for offset, piece in pieces))
        for offset, piece in pieces:
            made[offset : offset + len(piece)] = piece
        return bytes(made)


def saved_dump(crashed: Machine, cpus: int, **options: object) -> SavedDump:
    """Return the dump of a machine in which so many CPUs saved registers; of each range the first pages are saved."""
    described = [(start // 4096, -(-end // 4096)) for start, end in crashed.dumpable_ram if start >= 1 << 20]
    saved = [(start, min(end, start + 5)) for start, end in described]
    notes = [*registers(cpus), Note(b"VMCOREINFO", 0, info_of(crashed))]
    return SavedDump(**{"described": described, "saved": saved, "notes": notes, **options})  # type: ignore[arg-type]


FLAT_HEADER = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
FLAT_END = struct.pack(">qq", -1, -1)


def record(offset: int, data: bytes) -> bytes:
    return struct.pack(">qq", offset, len(data)) + data


def flattened(pieces: Iterable[tuple[int, bytes]]) -> bytes:
    """Return the stream of a dump."""
    return FLAT_HEADER + b"".join(record(offset, piece) for offset, piece in pieces) + FLAT_END
