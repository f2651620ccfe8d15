# SPDX-License-Identifier: MIT
"""The boot description of arm64: a flattened device tree, whose ``/chosen`` node has what the capture kernel needs.

The format is that of the Devicetree Specification, chapter 5; the properties are those of
Documentation/devicetree/bindings/chosen and of ``early_init_dt_scan_chosen()`` in drivers/of/fdt.c.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from crash_hotplug.core.arch.architecture import RamTold
from crash_hotplug.core.arch.cmdline import arguments
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from crash_hotplug.core.image import Kimage

MAGIC = b"\xd0\x0d\xfe\xed"
_HEADER = struct.Struct(">10I")
"""magic, totalsize, the offsets of structure block, strings and memory reservations, and five more."""
_RESERVATION = struct.Struct(">QQ")
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_LONGEST_NAME = 256
"""Bytes; a property's name has 31 at most."""
_CHOSEN = 2
"""Depth of the node /chosen; that of the root is 1."""
_ELFCOREHDR = "linux,elfcorehdr"
_USABLE = "linux,usable-memory-range"
_INITRD = ("linux,initrd-start", "linux,initrd-end")
_LUKS_KEYS = "linux,dmcryptkeys"
_FROM_KERNEL = "linux,booted-from-kexec"
"""A property that the kernel's loader writes (``of_kexec_alloc_and_setup_fdt()`` in drivers/of/kexec.c)."""


class Chosen(NamedTuple):
    """The properties of ``/chosen``: where their values are in the tree's bytes."""

    values: dict[str, Range]
    """Byte range of each value, by the property's name."""
    address_cells: int
    """32-bit words of a physical address (``#address-cells`` of the root)."""
    size_cells: int
    """32-bit words of a size."""


@lru_cache(maxsize=4)
def parse_chosen(blob: bytes) -> Chosen | None:
    """Read ``/chosen``; None where *blob* is no device tree, is truncated, or has no such node."""
    try:
        return _parse_chosen(blob)
    except (struct.error, IndexError):
        return None


def _parse_chosen(blob: bytes) -> Chosen | None:
    magic, total, at, strings = blob[:4], *_HEADER.unpack_from(blob)[1:4]
    if magic != MAGIC or total > len(blob):
        return None
    blob = blob[:total]
    depth, is_chosen, has_chosen = 0, False, False
    values: dict[str, Range] = {}
    cells = {"#address-cells": 2, "#size-cells": 1}
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == _BEGIN_NODE:
            node = _name_at(blob, at)
            depth += 1
            is_chosen = depth == _CHOSEN and node.split(b"@")[0] == b"chosen" and not has_chosen
            has_chosen |= is_chosen
            at = (at + len(node) + 4) & ~3
        elif token == _END_NODE:
            depth -= 1
            is_chosen = False
        elif token == _PROP:
            length, name_at = struct.unpack_from(">II", blob, at)
            name = _name_at(blob, strings + name_at).decode("ascii", "replace")
            value = Range(at + 8, at + 8 + length)
            if value.end > len(blob):
                return None
            if is_chosen and depth == _CHOSEN:
                values.setdefault(name, value)  # fdt_getprop() of libfdt returns the first one
            elif depth == 1 and name in cells and length == 4:
                cells[name] = int.from_bytes(blob[value.start : value.end], "big")
            at = (value.end + 3) & ~3
        elif token != _NOP:
            is_whole = token == _END and depth == 0 and has_chosen
            if not is_whole or not all(1 <= number <= 2 for number in cells.values()):
                return None
            return Chosen(values, cells["#address-cells"], cells["#size-cells"])


def _name_at(blob: bytes, at: int) -> bytes:
    """Return the name that a zero ends; a copy of what follows it for each name would make the reading quadratic.

    :raise IndexError: it is longer than any name
    """
    end = blob.find(b"\0", at, at + _LONGEST_NAME)
    if end < 0:
        raise IndexError
    return blob[at:end]


def find_device_tree(kimage: Kimage, read_phys: Callable[[int, int], bytes]) -> DeviceTree | None:
    """Find the device tree in a loaded image; None where it has none.

    :param read_phys: reads by (physical address, length)
    :raise CannotTellError: it cannot be read, or there are several
    """
    found = []
    for segment in kimage.segments:
        head = read_phys(segment.phys, min(_HEADER.size, segment.memsz))
        if head[:4] == MAGIC and len(head) == _HEADER.size:
            found.append(DeviceTree(read_phys(segment.phys, min(_HEADER.unpack(head)[1], segment.memsz)), segment.phys))
    if len(found) > 1:
        raise CannotTellError("the loaded image has more than one device tree")
    return found[0] if found else None


class DeviceTree(NamedTuple):
    """A device tree, a :class:`~crash_hotplug.core.arch.architecture.BootDescription`."""

    blob: bytes | None = None
    phys: int | None = None
    """Physical address of *blob*."""

    @property
    def _chosen(self) -> Chosen | None:
        return None if self.blob is None else parse_chosen(self.blob)

    def _value(self, name: str) -> bytes | None:
        chosen = self._chosen
        place = chosen.values.get(name) if chosen is not None else None
        return None if place is None or self.blob is None else self.blob[place.start : place.end]

    def _ranges(self, name: str) -> list[Range]:
        """Return the physical ranges of a property that has addresses and sizes; nothing where it has other bytes."""
        chosen, value = self._chosen, self._value(name)
        if chosen is None or value is None:
            return []
        address, size = 4 * chosen.address_cells, 4 * chosen.size_cells
        if len(value) % (address + size):
            return []
        starts = range(0, len(value), address + size)
        pairs = [(value[at : at + address], value[at + address : at + address + size]) for at in starts]
        whole = [(int.from_bytes(start, "big"), int.from_bytes(length, "big")) for start, length in pairs]
        return [Range(start, min(start + length, 1 << 64)) for start, length in whole]

    def _elfcorehdr(self) -> Range | None:
        ranges = self._ranges(_ELFCOREHDR)
        return ranges[0] if len(ranges) == 1 else None

    @property
    def cmdline(self) -> str | None:
        """``bootargs``."""
        if self._chosen is None:
            return None
        return (self._value("bootargs") or b"").split(b"\0")[0].decode("ascii", "replace")

    @property
    def loader(self) -> Loader | None:
        """The kernel's loader says that it wrote the tree."""
        chosen = self._chosen
        if chosen is None:
            return None
        return Loader.KERNEL if _FROM_KERNEL in chosen.values else Loader.KEXEC_TOOLS

    @property
    def elfcorehdr_phys(self) -> int | None:
        """The physical address in ``linux,elfcorehdr``."""
        place = self._elfcorehdr()
        return None if place is None else place.start

    @property
    def ram_told(self) -> RamTold:
        """Without ``linux,usable-memory-range`` the capture kernel would use all memory."""
        if self.blob is None:
            return RamTold.NOT_GIVEN
        return RamTold.TOLD if self._ranges(_USABLE) else RamTold.UNREADABLE

    @property
    def ram(self) -> RangeList:
        """``linux,usable-memory-range`` without the header's place, which the capture kernel reserves."""
        header = self._elfcorehdr()
        return RangeList(self._ranges(_USABLE)).exclude(RangeList([] if header is None else [header]))

    @property
    def ram_is_whole(self) -> bool:
        """There is one property."""
        return True

    @property
    def luks_keys(self) -> str | None:
        """``linux,dmcryptkeys`` (drivers/of/kexec.c)."""
        return None if self._value(_LUKS_KEYS) is None else _LUKS_KEYS

    @property
    def needed_ram(self) -> tuple[Range, ...]:
        """The tree, and the initrd."""
        own = () if self.phys is None or self.blob is None else (Range(self.phys, self.phys + len(self.blob)),)
        start, end = (int.from_bytes(self._value(name) or b"", "big") for name in _INITRD)
        return (*own, Range(start, end)) if 0 < start < end else own

    def why_elfcorehdr_not_found(self, elfcorehdr_phys: int | None, size: int) -> str | None:
        """Compare ``linux,elfcorehdr`` with the header's address and size."""
        if self._chosen is None:
            return None
        place = self._elfcorehdr()
        if place is None:
            return "the capture kernel's device tree has no linux,elfcorehdr: it would not find the header"
        if arguments(self.cmdline or "", "elfcorehdr"):  # setup_elfcorehdr() in kernel/crash_dump.c overrides the tree
            return "the capture kernel's command line has elfcorehdr=, beside the place in its device tree"
        if elfcorehdr_phys is not None and place.start != elfcorehdr_phys:
            return (
                f"the capture kernel would look for its elfcorehdr at {place.start:#x}, but the image has it at "
                f"{elfcorehdr_phys:#x}"
            )
        return self._why_not_whole(place, size)

    def _why_not_whole(self, place: Range, size: int) -> str | None:
        """Return why the capture kernel cannot read a header of *size* bytes at *place*; None where it can."""
        if place.size < size:
            return (
                f"the capture kernel's device tree gives its elfcorehdr {place.size} bytes, but the header has {size}: "
                "the capture kernel would overwrite the rest"
            )
        usable = RangeList(self._ranges(_USABLE))
        # elfcorehdr_read() reads it through the direct map, which has the capture kernel's RAM only.
        if usable and not usable.covers(RangeList([Range(place.start, place.start + size)])):
            return f"the capture kernel's RAM does not have its elfcorehdr at {place.start:#x}: it could not read it"
        return None

    def elfcorehdr_room(self, start: int, listed: int | None, bounds: Iterable[int]) -> int | None:
        """Return the size in ``linux,elfcorehdr``: what lies behind it is RAM of the capture kernel."""
        place = self._elfcorehdr()
        return place.size if place is not None and place.start == start else None

    @property
    def moved(self) -> str:
        """What it is when the header moves, for people."""
        return "the device tree, with the new place"

    def why_cannot_move(self) -> str | None:
        """Return why, where the tree or the header's place in it is not known."""
        if self._elfcorehdr() is None or self.phys is None:
            return "the capture kernel's device tree, or the elfcorehdr's place in it, was not found"
        return None

    def with_elfcorehdr_at(self, segment: bytes, segment_phys: int, place: Range) -> bytes:
        """Change ``linux,elfcorehdr``, and the reservation (``/memreserve/``) that the kernel's loader makes for it.

        :raise CannotTellError: the tree has no such place, or is not what was read before
        """
        chosen, old = self._chosen, self._elfcorehdr()
        if chosen is None or old is None or self.phys is None or self.blob is None:
            raise CannotTellError(str(self.why_cannot_move()))
        changed = bytearray(segment)
        start = self.phys - segment_phys
        if changed[start : start + len(self.blob)] != self.blob:
            raise CannotTellError("the capture kernel's device tree does not read the same twice")
        at = start + chosen.values[_ELFCOREHDR].start
        value = place.start.to_bytes(4 * chosen.address_cells, "big") + place.size.to_bytes(
            4 * chosen.size_cells, "big"
        )
        changed[at : at + len(value)] = value
        at = start + _HEADER.unpack_from(self.blob)[4]
        while at + _RESERVATION.size <= start + len(self.blob):
            reserved, size = _RESERVATION.unpack_from(changed, at)
            if (reserved, size) == (0, 0):
                break
            if reserved == old.start:
                _RESERVATION.pack_into(changed, at, place.start, place.size)
            at += _RESERVATION.size
        return bytes(changed)

    def saved(self) -> tuple[Mapping[str, bytes], Mapping[str, int]]:
        """Return the tree, and its command line for people."""
        if self.blob is None:
            return {}, {}
        files = {"dtb": self.blob, "cmdline": (self.cmdline or "").encode("ascii", "replace")}
        return files, {} if self.phys is None else {"dtb": self.phys}
