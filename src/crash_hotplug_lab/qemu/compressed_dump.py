# SPDX-License-Identifier: MIT
"""Reader of dumps in makedumpfile's compressed format, independent of the one that ``audit`` has.

The layout is that of makedumpfile's ``diskdump_mod.h``: a header, a sub-header, two bitmaps of page frames (described,
saved), a descriptor for each saved page, the pages.  Pages compressed by zlib are read, and those that are stored.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from crash_hotplug_lab.qemu.errors import LabError

SIGNATURE = b"KDUMP   "
_HEADER = struct.Struct("<8s420xiiI")  # signature, block_size, sub_hdr_size, bitmap_blocks
_DESCRIPTOR = struct.Struct("<QIIQ")  # offset, size, flags, page_flags
_STORED, _ZLIB = 0, 1
_ONES = bytes(bin(value).count("1") for value in range(256))


class CompressedDump:
    """The bitmaps of a dump, and its pages."""

    def __init__(self, vmcore: Path) -> None:
        """Read the bitmaps.

        :raise LabError: the file has another format
        """
        self._vmcore = vmcore
        with vmcore.open("rb") as file:
            signature, self._page, sub_header, bitmap_blocks = _HEADER.unpack(file.read(_HEADER.size))
            if signature != SIGNATURE:
                raise LabError(f"{vmcore.name} is no dump in makedumpfile's compressed format")
            file.seek((1 + sub_header) * self._page)
            half = bitmap_blocks * self._page // 2
            self._described, self._saved = file.read(half), file.read(half)
            self._descriptors = (1 + sub_header + bitmap_blocks) * self._page

    def ranges(self) -> list[tuple[int, int]]:
        """Return the physical ranges that the dump describes, in whole pages."""
        found: list[tuple[int, int]] = []
        for byte, bits in enumerate(self._described):
            for bit in range(8) if bits else ():
                start = (byte * 8 + bit) * self._page
                if bits >> bit & 1:
                    begin = found.pop()[0] if found and found[-1][1] == start else start
                    found.append((begin, start + self._page))
        return found

    def word_at(self, phys: int) -> int | None:
        """Return the 64-bit word at a physical address; None where the dump does not hold its page.

        :raise LabError: the page is compressed by another method than zlib
        """
        byte, bit = divmod(phys // self._page, 8)
        if byte >= len(self._saved) or not self._saved[byte] >> bit & 1:
            return None
        before = sum(self._saved[:byte].translate(_ONES)) + _ONES[self._saved[byte] & ((1 << bit) - 1)]
        with self._vmcore.open("rb") as file:
            file.seek(self._descriptors + before * _DESCRIPTOR.size)
            offset, size, flags, _ = _DESCRIPTOR.unpack(file.read(_DESCRIPTOR.size))
            file.seek(offset)
            data = file.read(size)
        if flags not in (_STORED, _ZLIB):
            raise LabError(f"a page of {self._vmcore.name} is compressed by a method that the lab does not read")
        page = zlib.decompress(data) if flags == _ZLIB else data
        return int.from_bytes(page[phys % self._page : phys % self._page + 8], "little")


def is_compressed(vmcore: Path) -> bool:
    """Whether a dump has this format."""
    with vmcore.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE
