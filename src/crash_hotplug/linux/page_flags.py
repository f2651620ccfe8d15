# SPDX-License-Identifier: MIT
"""The RAM of virtio-mem that is described and not plugged, from /proc/kpageflags.

The driver adds whole memory blocks to the kernel, and may have plugged only a part of one.  The rest is System RAM in
/proc/iomem and described by every loader.  Its pages are logically offline (``virtio_mem_set_fake_offline()``), which
/proc/kpageflags shows as KPF_OFFLINE (Documentation/admin-guide/mm/pagemap.rst, Linux 5.1 and newer).  A balloon marks
its pages the same way, so only whole pieces of 2 MiB count: virtio-mem plugs nothing smaller.
"""

from __future__ import annotations

import os
import struct

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.sysroot import LARGE, Sysroot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

PATH = "/proc/kpageflags"
SAVED = "/not-plugged.json"
"""The file of a saved tree with the ranges: /proc/kpageflags itself has 8 bytes for each page."""
_OFFLINE = 1 << 23
"""KPF_OFFLINE (include/uapi/linux/kernel-page-flags.h)."""
_FLAGS = 8
"""Bytes for each page."""
_PIECE = 2 << 20
"""Bytes that virtio-mem plugs at least (pageblock_order with pages of 4 KiB)."""


def read_not_plugged(sysroot: Sysroot, virtio_mem: RangeList) -> RangeList | None:
    """Return the physical ranges of *virtio_mem* that are not plugged; None where that cannot be told.

    :param virtio_mem: the ranges that /proc/iomem calls System RAM (virtio_mem)
    :raise InputError: the file of a saved tree is not in the format of a snapshot
    """
    if not virtio_mem:
        return RangeList()
    try:
        if not sysroot.is_live:
            return _read_saved(sysroot)
        file = sysroot.open(PATH)
    except CannotTellError:
        return None
    if file is None:
        return None
    with file:
        try:
            return RangeList(_offline_pieces(file, virtio_mem, os.sysconf("SC_PAGE_SIZE")))
        except (OSError, struct.error):  # a page that left while it was read
            return None


def _offline_pieces(file: BinaryIO, ranges: RangeList, page_size: int) -> Iterator[tuple[int, int]]:
    """Yield each piece whose pages are all logically offline; of the others only the first page is read."""
    pages = _PIECE // page_size
    for start, end in ranges:
        for piece in range(start, end - _PIECE + 1, _PIECE):
            at = piece // page_size * _FLAGS
            if _flags(file, at, 1)[0] & _OFFLINE and all(flags & _OFFLINE for flags in _flags(file, at, pages)):
                yield piece, piece + _PIECE


def _flags(file: BinaryIO, offset: int, pages: int) -> tuple[int, ...]:
    return struct.unpack(f"={pages}Q", os.pread(file.fileno(), pages * _FLAGS, offset))


def _read_saved(sysroot: Sysroot) -> RangeList | None:
    import json  # noqa: PLC0415 only a saved tree needs it

    text = sysroot.read_text(SAVED, LARGE)
    if text is None:
        return None
    try:
        return RangeList((int(start, 16), int(end, 16)) for start, end in json.loads(text)["not_plugged"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{sysroot.locate(SAVED)} is not in the format of a snapshot: {error!r}") from error


def not_plugged_json(ranges: RangeList) -> bytes:
    """Return the JSON for a snapshot."""
    import json  # noqa: PLC0415 only a snapshot needs it

    return json.dumps({"not_plugged": [[hex(start), hex(end)] for start, end in ranges]}, indent=1).encode() + b"\n"
