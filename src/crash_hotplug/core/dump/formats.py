# SPDX-License-Identifier: MIT
"""The formats of dumps, recognised by their first bytes."""

from __future__ import annotations

from collections.abc import Iterable

from crash_hotplug.core.dump import diskdump_header, flattened
from crash_hotplug.core.dump.diskdump import DiskdumpVmcore, is_same_dump, join_parts, parse_diskdump
from crash_hotplug.core.dump.elf_vmcore import ElfVmcore, parse_elf_vmcore
from crash_hotplug.core.dump.flattened import HEAD_SIZE, FlattenedDump
from crash_hotplug.core.dump.vmcore import WHAT, ByteSource, Flattening, Vmcore
from crash_hotplug.core.errors import InputError

_OTHER_FORMATS = {
    b"DISKDUMP": ("in the format of diskdump, which came before kdump", "crash reads it"),
    b"\x1f\x8b": ("compressed by gzip", "decompress it first"),
    b"\xfd7zXZ\0": ("compressed by xz", "decompress it first"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "decompress it first"),
}
"""The name of a format that is not read, and what to do, by the first bytes."""
_SIGNATURE_SIZE = 16


def parse_vmcore(source: ByteSource) -> Vmcore:
    """Read the headers of a dump in any of the formats; no page of it is read.

    :raise InputError: it has another format, is malformed, or is truncated inside its headers
    :raise CannotTellError: it needs more than can be read
    """
    start = source.read_at(0, _SIGNATURE_SIZE)
    if start.startswith(flattened.SIGNATURE):
        dump = FlattenedDump(source, _kept_size)
        return _parse(dump, dump.flattening)
    return _parse(source, None)


def _parse(source: ByteSource, flattening: Flattening | None) -> DiskdumpVmcore | ElfVmcore:
    start = source.read_at(0, _SIGNATURE_SIZE)
    if start.startswith(diskdump_header.SIGNATURE):
        return parse_diskdump(source, flattening)
    for magic, (format_name, hint) in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise InputError(f"{WHAT} is {format_name}; {hint}")
    if len(start) == _SIGNATURE_SIZE and start[:4] != b"\x7fELF":
        raise InputError(
            f"{WHAT} is not an ELF file, and not in makedumpfile's format: it starts with {start[:4].hex(' ')}"
        )
    return parse_elf_vmcore(source, flattening)


def _kept_size(dump: FlattenedDump) -> int:
    """Return how many bytes of a flattened dump have to be kept, as far as its header tells."""
    start = dump.first_bytes(diskdump_header.HEADER_SIZE)
    if len(start) < diskdump_header.HEADER_SIZE or not start.startswith(diskdump_header.SIGNATURE):
        return HEAD_SIZE
    return diskdump_header.headers_and_bitmaps_size(start)


def join_split_dumps(vmcores: Iterable[Vmcore]) -> list[tuple[Vmcore, list[int]]]:
    """Return the dumps with the positions of their files: the parts of a split dump are one dump."""
    found: list[tuple[list[Vmcore], list[int]]] = []
    for position, vmcore in enumerate(vmcores):
        for same, positions in found:
            first = same[0]
            if isinstance(vmcore, DiskdumpVmcore) and isinstance(first, DiskdumpVmcore) and is_same_dump(first, vmcore):
                same.append(vmcore)
                positions.append(position)
                break
        else:
            found.append(([vmcore], [position]))
    return [(_joined(same), positions) for same, positions in found]


def _joined(parts: list[Vmcore]) -> Vmcore:
    compressed = [part for part in parts if isinstance(part, DiskdumpVmcore)]
    return join_parts(compressed) if compressed else parts[0]
