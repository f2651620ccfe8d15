# SPDX-License-Identifier: MIT
"""ELF64 headers and notes as records, for the elfcorehdr, vmcores and /proc/kcore.

Layouts are those of ``include/uapi/linux/elf.h``; only little-endian ELF64 is known here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.supported import NAMES, architecture_of, machine_name
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.records import NamedTuple

ELF_HEADER_SIZE = 64
PROGRAM_HEADER_SIZE = 56
PT_LOAD = 1
PT_NOTE = 4
PF_RWX = 7
ET_CORE = 4
PN_XNUM = 0xFFFF
"""``e_phnum`` with this value means that the count is elsewhere, so an elfcorehdr has fewer entries than this."""
DUMP_INCOMPLETE = 1
"""``DUMP_ELF_INCOMPLETE`` of makedumpfile, in ``e_flags``: the dump ends early, because the disk was full."""
NT_PRSTATUS = 1

_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_NOTE_HEADER = struct.Struct("<III")
_IDENT = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)
_UNSET_PHYSICAL = (1 << 64) - 1


class ElfFormatError(InputError):
    """Bytes are not the ELF file that they should be; the message is a sentence for people."""


class ElfHeader(NamedTuple):
    """The ELF64 file header, field by field."""

    e_ident: bytes
    e_type: int
    e_machine: int
    e_version: int
    e_entry: int
    e_phoff: int
    e_shoff: int
    e_flags: int
    e_ehsize: int
    e_phentsize: int
    e_phnum: int
    e_shentsize: int
    e_shnum: int
    e_shstrndx: int

    def to_bytes(self) -> bytes:
        """Return the 64 bytes of this header."""
        return _ELF_HEADER.pack(*self)


class ProgramHeader(NamedTuple):
    """One ELF64 program header: where p_filesz bytes at p_offset of the file belong in memory."""

    p_type: int
    p_flags: int
    p_offset: int
    """File offset; in an elfcorehdr the physical address from which the capture kernel reads."""
    p_vaddr: int
    """Virtual address in the crashed kernel."""
    p_paddr: int
    """Physical address in the crashed kernel."""
    p_filesz: int
    p_memsz: int
    p_align: int

    @property
    def has_physical_address(self) -> bool:
        """Whether p_paddr is a physical address: /proc/kcore writes all ones where a range has none."""
        return self.p_paddr != _UNSET_PHYSICAL


class Note(NamedTuple):
    """One ELF note."""

    name: bytes
    """Owner without the final zero, such as ``CORE`` or ``VMCOREINFO``."""
    type: int
    descriptor: bytes

    @property
    def has_registers(self) -> bool:
        """Whether a CPU saved its registers in it."""
        return self.type == NT_PRSTATUS and self.name == b"CORE"


def core_header(machine_number: int, program_headers: int) -> ElfHeader:
    """Return the header of an ELF64 core file with that many program headers, as the kernel fills it in."""
    return ElfHeader(
        _IDENT, ET_CORE, machine_number, 1, 0, ELF_HEADER_SIZE, 0, 0, ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE,
        program_headers, 0, 0, 0,
    )  # fmt: skip


def check_ident(data: bytes, what: str) -> None:
    """Check that *data* starts as a little-endian ELF64 file.

    :param what: how the message names the bytes, such as "this elfcorehdr"
    :raise ElfFormatError: it does not
    """
    if len(data) < ELF_HEADER_SIZE:
        raise ElfFormatError(f"{what} is truncated: {len(data)} bytes, an ELF64 header alone has {ELF_HEADER_SIZE}")
    if data[:4] != b"\x7fELF":
        raise ElfFormatError(f"{what} is not an ELF file: it starts with {bytes(data[:4]).hex(' ')}")
    if data[4] != 2:
        raise ElfFormatError(f"{what} is a 32-bit ELF file (EI_CLASS {data[4]}); only 64-bit ones are supported")
    if data[5] != 1:
        raise ElfFormatError(f"{what} is big-endian (EI_DATA {data[5]}); only little-endian ones are supported")
    if data[6] != 1:
        raise ElfFormatError(f"{what} has the unknown ELF version {data[6]}")


def parse_core_header(data: bytes, what: str) -> tuple[ElfHeader, Architecture]:
    """Parse and check the ELF64 header at the start of *data*.

    The checks are those of the capture kernel (``parse_crash_elf64_headers()`` in fs/proc/vmcore.c) and those
    without which the program headers cannot be found.

    :return: the header, and the architecture it names
    :raise ElfFormatError: it is no core file header, or of an architecture that is not supported
    """
    check_ident(data, what)
    header = ElfHeader(*_ELF_HEADER.unpack_from(data))
    if header.e_type != ET_CORE:
        raise ElfFormatError(f"{what} is not a core file: its e_type is {header.e_type}, a core file's is {ET_CORE}")
    architecture = architecture_of(header.e_machine)
    if architecture is None:
        raise ElfFormatError(f"{what} is for {machine_name(header.e_machine)}; supported are {NAMES}")
    if header.e_version != 1:
        raise ElfFormatError(f"{what} has e_version {header.e_version}, not 1")
    if header.e_phoff != ELF_HEADER_SIZE or header.e_ehsize != ELF_HEADER_SIZE:
        raise ElfFormatError(
            f"{what} has its program headers at {header.e_phoff:#x} behind a header of {header.e_ehsize} bytes; "
            f"the kernel looks for them at {ELF_HEADER_SIZE:#x} behind one of {ELF_HEADER_SIZE}"
        )
    if header.e_phentsize != PROGRAM_HEADER_SIZE:
        raise ElfFormatError(
            f"{what} has program headers of {header.e_phentsize} bytes; ELF64 has {PROGRAM_HEADER_SIZE}"
        )
    if header.e_phnum == PN_XNUM:
        raise ElfFormatError(f"{what} uses extended numbering (e_phnum is PN_XNUM), which the kernel never writes")
    if header.e_phnum == 0:
        raise ElfFormatError(f"{what} has no program headers")
    return header, architecture


def program_headers_end(header: ElfHeader) -> int:
    """Return the file offset behind the last program header."""
    return header.e_phoff + header.e_phnum * PROGRAM_HEADER_SIZE


def parse_program_headers(data: bytes, header: ElfHeader, what: str) -> list[ProgramHeader]:
    """Parse the program headers that *header* announces.

    :raise ElfFormatError: *data* ends before the last of them
    """
    end = program_headers_end(header)
    if len(data) < end:
        raise ElfFormatError(
            f"{what} is truncated: {header.e_phnum} program headers end at byte {end}, it has {len(data)}"
        )
    return [ProgramHeader(*fields) for fields in _PROGRAM_HEADER.iter_unpack(data[header.e_phoff : end])]


def pack_program_headers(program_headers: Sequence[ProgramHeader]) -> bytes:
    """Return the bytes of the program headers, in order.

    :raise ElfFormatError: a field does not fit into its bits
    """
    try:
        # One call for all of them: a header of 9,000 entries is built in a few milliseconds.
        return struct.pack("<" + "IIQQQQQQ" * len(program_headers), *chain.from_iterable(program_headers))
    except struct.error as error:
        raise ElfFormatError(f"a program header has a field out of range: {error}") from error


def parse_notes(data: bytes) -> Iterator[Note]:
    """Yield the notes in the contents of one PT_NOTE, up to the first empty or broken one.

    Name and descriptor are padded to 4 bytes each.  The kernel ends a list with a note of zeros, and a CPU that saved
    nothing leaves just zeros.
    """
    at = 0
    while at + _NOTE_HEADER.size <= len(data):
        name_size, descriptor_size, note_type = _NOTE_HEADER.unpack_from(data, at)
        if name_size == 0:
            return
        descriptor_at = at + _NOTE_HEADER.size + ((name_size + 3) & ~3)
        end = descriptor_at + descriptor_size
        if end > len(data):
            return
        name_at = at + _NOTE_HEADER.size
        yield Note(data[name_at : name_at + name_size].rstrip(b"\0"), note_type, data[descriptor_at:end])
        at = (end + 3) & ~3


def pack_notes(notes: Iterable[Note]) -> bytes:
    """Return the bytes of *notes*, each name ended by a zero, name and descriptor padded to 4 bytes."""
    packed = bytearray()
    for note in notes:
        name = note.name + b"\0"
        packed += _NOTE_HEADER.pack(len(name), len(note.descriptor), note.type)
        packed += name + bytes(-len(name) % 4) + note.descriptor + bytes(-len(note.descriptor) % 4)
    return bytes(packed)
