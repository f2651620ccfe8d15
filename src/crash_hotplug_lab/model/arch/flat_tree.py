# SPDX-License-Identifier: MIT
"""A flattened device tree with a ``/chosen`` node (Devicetree Specification, chapter 5), as loaders write it and as the
capture kernel reads it.

Reading follows libfdt and drivers/of/fdt.c, not the product: of two properties of one name the first one counts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from crash_hotplug.core.ranges import Range
from crash_hotplug_lab.model.capture_kernel import NoCaptureError
from crash_hotplug_lab.model.memory import PhysicalMemory

MAX_SIZE = 2 << 20
"""``MAX_FDT_SIZE`` of arch/arm64/include/asm/boot.h, in bytes."""
_MAGIC = 0xD00D_FEED
_VERSION, _LAST_COMPATIBLE = 17, 16
_HEADER = struct.Struct(">10I")
"""magic, totalsize, off_dt_struct, off_dt_strings, off_mem_rsvmap, version, last_comp_version, boot_cpuid_phys,
size_dt_strings, size_dt_struct."""
_PAIR = struct.Struct(">QQ")
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9

Property = tuple[str, bytes]
"""Name and value."""


def cells(*values: int) -> bytes:
    """Return numbers of two cells each, as addresses and sizes are written."""
    return b"".join(value.to_bytes(8, "big") for value in values)


def build_tree(chosen: Sequence[Property], reservations: Iterable[Range] = ()) -> bytes:
    """Return a device tree with these properties of ``/chosen``, and addresses and sizes of two cells.

    :param reservations: physical ranges of ``/memreserve/``
    """
    root = [("#size-cells", b"\0\0\0\2"), ("#address-cells", b"\0\0\0\2")]
    names = list(dict.fromkeys(name for name, _value in (*root, *chosen)))
    strings = b"".join(name.encode() + b"\0" for name in names)
    offsets = {name: strings.index(b"\0" + name.encode() + b"\0") + 1 if at else 0 for at, name in enumerate(names)}
    body = struct.pack(">II", _BEGIN_NODE, 0) + _properties(root, offsets)
    body += struct.pack(">I8s", _BEGIN_NODE, b"chosen") + _properties(chosen, offsets)
    body += struct.pack(">III", _END_NODE, _END_NODE, _END)
    reserved = b"".join(_PAIR.pack(r.start, r.size) for r in (*reservations, Range(0, 0)))
    body_at = _HEADER.size + len(reserved)
    strings_at = body_at + len(body)
    total = strings_at + len(strings)
    places = (_MAGIC, total, body_at, strings_at, _HEADER.size)
    header = _HEADER.pack(*places, _VERSION, _LAST_COMPATIBLE, 0, len(strings), len(body))
    return header + reserved + body + strings


def _properties(properties: Iterable[Property], offsets: dict[str, int]) -> bytes:
    return b"".join(
        struct.pack(">III", _PROP, len(value), offsets[name]) + value + bytes(-len(value) % 4)
        for name, value in properties
    )


class FlatTree(NamedTuple):
    """What the capture kernel takes out of its device tree."""

    range: Range
    """The tree's own physical range."""
    chosen: tuple[Property, ...]
    """The properties of ``/chosen``, in the order of the tree."""
    reservations: tuple[Range, ...]
    """Physical ranges of ``/memreserve/``."""

    def value(self, name: str) -> bytes | None:
        """Return the value of the first property of this name; None where there is none (``fdt_getprop()``)."""
        return next((value for found, value in self.chosen if found == name), None)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return the value as numbers of 64 bits, or of 32 bits where it is one cell (``of_read_number()``)."""
        value = self.value(name) or b""
        if len(value) == struct.calcsize(">I"):
            return struct.unpack(">I", value)
        return struct.unpack_from(f">{len(value) // 8}Q", value)


def read_tree(memory: PhysicalMemory, phys: int) -> FlatTree:
    """Read the tree at a physical address, as ``setup_machine_fdt()`` does.

    :raise NoCaptureError: there is none: the capture kernel hangs
    """
    no_tree = NoCaptureError(f"there is no device tree at {phys:#x}: the capture kernel hangs")
    if phys % 8 or not memory.present.contains(phys):
        raise no_tree
    magic, total, at, strings, reserved_at = _HEADER.unpack(memory.read(phys, _HEADER.size))[:5]
    if magic != _MAGIC or total > MAX_SIZE:
        raise no_tree
    blob = memory.read(phys, total)
    chosen: list[Property] = []
    path: list[bytes] = []
    while True:
        (token,) = struct.unpack_from(">I", blob, at)
        at += 4
        if token == _BEGIN_NODE:
            path.append(blob[at : blob.index(b"\0", at)])
            at += len(path[-1]) // 4 * 4 + 4
        elif token == _END_NODE:
            path.pop()
        elif token == _PROP:
            length, name_at = struct.unpack_from(">II", blob, at)
            name = blob[strings + name_at : blob.index(b"\0", strings + name_at)].decode()
            if path == [b"", b"chosen"]:
                chosen.append((name, blob[at + 8 : at + 8 + length]))
            at += 8 + -(-length // 4) * 4
        elif token != _NOP:
            break
    reservations: list[Range] = []
    while (pair := _PAIR.unpack_from(blob, reserved_at)) != (0, 0):
        reservations.append(Range(pair[0], pair[0] + pair[1]))
        reserved_at += _PAIR.size
    return FlatTree(Range(phys, phys + total), tuple(chosen), tuple(reservations))
