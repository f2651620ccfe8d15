# SPDX-License-Identifier: MIT
"""Build and parse elfcorehdrs; readelf and pyelftools read the built ones."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.elf import (
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    ElfFormatError,
    ElfHeader,
    ProgramHeader,
    core_header,
    pack_program_headers,
)
from crash_hotplug.core.elfcorehdr import (
    ElfCoreHeader,
    build_elfcorehdr,
    entries_that_fit,
    kernel_text_header,
    note_header,
    parse_elfcorehdr,
    ram_header,
)
from crash_hotplug.core.errors import NoRoomError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import KernelText, Machine, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from tests.machines import DIRECT_MAP, MIB, machine, machines
from tests.trees import NAMES, loaded_header

U32, U64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
PROGRAM_HEADERS = st.builds(ProgramHeader, st.sampled_from([PT_LOAD, PT_NOTE]) | U32, U32, U64, U64, U64, U64, U64, U64)


def header_bytes(**changed: int) -> bytes:
    """Return a well-formed header with some fields of the ELF header changed."""
    entries = [ram_header(Range(MIB, 2 * MIB), DIRECT_MAP)]
    return ElfHeader(**{**core_header(62, 1)._asdict(), **changed}).to_bytes() + pack_program_headers(entries)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", range(4))
def test_captured_header_is_written_again_byte_for_byte(name: str, state: int) -> None:
    data = loaded_header(name, state)
    header = parse_elfcorehdr(data)
    assert header.to_bytes(4096) == data


@given(st.lists(PROGRAM_HEADERS, min_size=1, max_size=20), st.binary(max_size=40))
def test_parsed_header_is_written_again_byte_for_byte(entries: list[ProgramHeader], behind: bytes) -> None:
    data = core_header(62, len(entries)).to_bytes() + pack_program_headers(entries)
    header = parse_elfcorehdr(data + behind)
    assert header.program_headers == tuple(entries)
    assert header.to_bytes() == data


@given(machines())
def test_built_header_is_read_alike_by_pyelftools(described: Machine) -> None:
    header = expected_elfcorehdr(described, Loader.KERNEL)
    elf = ELFFile(io.BytesIO(header.to_bytes(4096)))
    assert (elf["e_type"], elf["e_machine"], elf["e_phnum"]) == ("ET_CORE", "EM_X86_64", len(header.program_headers))
    for ours, theirs in zip(header.program_headers, elf.iter_segments()):
        assert theirs["p_type"] == {PT_LOAD: "PT_LOAD", PT_NOTE: "PT_NOTE"}[ours.p_type]
        assert (theirs["p_offset"], theirs["p_vaddr"], theirs["p_paddr"]) == ours[2:5]
        assert (theirs["p_filesz"], theirs["p_memsz"], theirs["p_align"]) == ours[5:]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_built_header_passes_readelf(tmp_path: Path) -> None:
    path = tmp_path / "elfcorehdr"
    path.write_bytes(expected_elfcorehdr(machine(), Loader.KERNEL).to_bytes(4096))
    shown = subprocess.run(["readelf", "-hlW", str(path)], capture_output=True, text=True, check=True)
    assert shown.stderr == ""
    assert "CORE (Core file)" in shown.stdout
    loads = [line.split() for line in shown.stdout.splitlines() if line.split()[:1] == ["LOAD"]]
    assert [int(load[3], 16) for load in loads] == [16 * MIB, MIB, 768 * MIB]


@pytest.mark.parametrize("name", NAMES)
def test_captured_header_has_the_expected_parts(name: str) -> None:
    header = parse_elfcorehdr(loaded_header(name, 0))
    assert len(header.cpu_notes) == (8 if name == "6.12-s" else 2)
    assert header.vmcoreinfo is not None
    assert header.vmcoreinfo.size == 0x1024
    assert header.kernel_text is not None
    assert (header.backup_region is not None) == (name in ("6.1-c", "6.12-ch"))


def test_entries_are_ordered_cpus_vmcoreinfo_text_ram() -> None:
    described = machine()
    assert described.vmcoreinfo is not None
    assert described.kernel_text is not None
    header = expected_elfcorehdr(described, Loader.KERNEL)
    kinds = [p.p_type for p in header.program_headers]
    assert kinds == [PT_NOTE] * 3 + [PT_LOAD] * 3
    assert header.program_headers[2].p_paddr == described.vmcoreinfo.phys
    assert header.program_headers[3].p_vaddr == described.kernel_text.virt


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is truncated: 0 bytes"),
        (b"\x7fELF", "is truncated: 4 bytes"),
        (bytes(64), "is not an ELF file"),
        (b"\x7fELF\x01\x01\x01" + bytes(60), "is a 32-bit ELF file"),
        (b"\x7fELF\x02\x02\x01" + bytes(60), "is big-endian"),
        (b"\x7fELF\x02\x01\x09" + bytes(60), "unknown ELF version 9"),
        (header_bytes(e_type=2), "is not a core file: its e_type is 2"),
        (header_bytes(e_machine=21), "is for ppc64 .e_machine 21."),
        (header_bytes(e_machine=999), "is for unknown .e_machine 999."),
        (header_bytes(e_version=7), "has e_version 7"),
        (header_bytes(e_phoff=1 << 63), "has its program headers at 0x8000000000000000"),
        (header_bytes(e_ehsize=52), "behind a header of 52 bytes"),
        (header_bytes(e_phentsize=32), "program headers of 32 bytes"),
        (header_bytes(e_phnum=0), "has no program headers"),
        (header_bytes(e_phnum=PN_XNUM), "extended numbering"),
        (header_bytes(e_phnum=PN_XNUM - 1), "is truncated: 65534 program headers end at byte 3669968, it has 120"),
        (header_bytes()[:-1], "is truncated: 1 program headers end at byte 120, it has 119"),
    ],
)
def test_bad_input_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(ElfFormatError, match=sentence):
        parse_elfcorehdr(data)


@given(st.binary(max_size=200))
def test_parser_accepts_or_refuses_any_bytes(data: bytes) -> None:
    try:
        assert isinstance(parse_elfcorehdr(data), ElfCoreHeader)
    except ElfFormatError as error:
        assert str(error).startswith("this elfcorehdr ")


def test_entries_beyond_e_phnum_are_refused() -> None:
    many = [ram_header(Range(n << 21, (n << 21) + 4096), DIRECT_MAP) for n in range(PN_XNUM)]
    with pytest.raises(NoRoomError, match="65535 entries do not fit into an elfcorehdr"):
        build_elfcorehdr(X86_64, [], None, None, many)
    assert len(build_elfcorehdr(X86_64, [], None, None, many[:-1]).program_headers) == PN_XNUM - 1


def test_program_header_field_out_of_range_is_refused() -> None:
    with pytest.raises(ElfFormatError, match="out of range"):
        pack_program_headers([ram_header(Range(0, 1 << 65), 0)])


@pytest.mark.parametrize(("room", "entries"), [(0, 0), (63, 0), (64, 0), (120, 1), (4096, 72), (1 << 30, 65534)])
def test_entries_that_fit_counts_program_headers(room: int, entries: int) -> None:
    assert entries_that_fit(room) == entries


def test_program_headers_are_little_endian_elf64() -> None:
    p = ProgramHeader(PT_LOAD, 7, 1, 2, 3, 4, 5, 6)
    assert pack_program_headers([p]) == struct.pack("<IIQQQQQQ", *p)


@pytest.mark.parametrize(("gap", "whole"), [(0, True), (4096, False)])
def test_kernel_text_in_pieces_as_makedumpfile_leaves_it_is_one_again(gap: int, whole: bool) -> None:
    described = machine()
    text = described.kernel_text
    assert text is not None
    cut = 8 * MIB
    first = kernel_text_header(text._replace(size=cut))
    rest = kernel_text_header(KernelText(text.virt + cut + gap, text.phys + cut + gap, text.size - cut - gap))
    entries = (first, rest)
    header = ElfCoreHeader(core_header(X86_64.machine_number, len(entries)), entries, X86_64)
    assert (header.kernel_text == text) is whole


def test_core_header_is_the_one_that_the_kernel_writes() -> None:
    """``crash_prepare_elf64_headers()``, field by field."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    fields = (4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    assert core_header(62, 3).to_bytes() == ident + struct.pack("<HHIQQQIHHHHHH", *fields)


def test_all_ones_is_no_physical_address() -> None:
    assert not LOW._replace(p_paddr=(1 << 64) - 1).has_physical_address
    assert LOW._replace(p_paddr=(1 << 64) - 2).has_physical_address


def header_of(*entries: ProgramHeader, architecture: Architecture = X86_64) -> ElfCoreHeader:
    """Return a header with these entries."""
    return ElfCoreHeader(core_header(architecture.machine_number, len(entries)), entries, architecture)


def notes_of(*sizes: int) -> ElfCoreHeader:
    return header_of(*(note_header(NoteRegion(0x1000 * (at + 1), size)) for at, size in enumerate(sizes)))


@pytest.mark.parametrize(
    ("sizes", "has_vmcoreinfo"),
    [((), False), ((0x170,), True), ((0x170, 0x170), False), ((0x170, 0x1024), True), ((0x170, 0x170, 0x1024), True),
     ((0x170, 0x180, 0x170), False)],
)  # fmt: skip
def test_last_note_is_vmcoreinfos_unless_it_looks_like_a_cpus(sizes: tuple[int, ...], has_vmcoreinfo: bool) -> None:
    header = notes_of(*sizes)
    assert (header.vmcoreinfo == (header.notes[-1] if has_vmcoreinfo else None)) is True
    assert header.cpu_notes == (header.notes[:-1] if has_vmcoreinfo else header.notes)
    assert [note.size for note in header.notes] == list(sizes)


def test_entries_have_the_values_that_the_kernel_writes() -> None:
    assert note_header(NoteRegion(0x1000, 0x170)) == ProgramHeader(4, 0, 0x1000, 0, 0x1000, 0x170, 0x170, 0)
    text = KernelText(0xFFFF_FFFF_8100_0000, 0x100_0000, 0x200)
    assert kernel_text_header(text) == ProgramHeader(1, 7, 0x100_0000, text.virt, 0x100_0000, 0x200, 0x200, 0)
    ram = Range(0x1000, 0x3000)
    assert ram_header(ram, 0x5000) == ProgramHeader(1, 7, 0x1000, 0x6000, 0x1000, 0x2000, 0x2000, 0)
    assert ram_header(ram, 0x5000, 0x9000) == ProgramHeader(1, 7, 0x9000, 0x6000, 0x1000, 0x2000, 0x2000, 0)


def test_padding_is_that_of_the_loader() -> None:
    assert (X86_64.padding(Loader.KERNEL), X86_64.padding(Loader.KEXEC_TOOLS)) == (4096, 1024)
    assert len(notes_of(1).to_bytes()) == 120
    assert len(notes_of(1).to_bytes(1024)) == 1024


LOW = ProgramHeader(PT_LOAD, 7, 0x3000_0000, DIRECT_MAP, 0, 0x1000, 0x1000, 0)


@pytest.mark.parametrize(
    ("entry", "is_backup"),
    [
        (LOW, True),
        (LOW._replace(p_paddr=0x9FFFF), True),
        (LOW._replace(p_paddr=0xA0000), False),
        (LOW._replace(p_type=PT_NOTE), False),
        (LOW._replace(p_offset=0), False),
        (LOW._replace(p_paddr=MIB), False),
    ],
)
def test_backup_region_is_low_memory_that_is_read_from_elsewhere(entry: ProgramHeader, is_backup: bool) -> None:
    """The backed up memory ends at 640 KiB."""
    assert (header_of(entry).backup_region is entry) is is_backup
    assert header_of(note_header(NoteRegion(1, 1)), LOW._replace(p_offset=0), LOW).backup_region == LOW


TEXT_VIRT = Range(0xFFFF_FFFF_8000_0000, 1 << 64)
TEXT = kernel_text_header(KernelText(0xFFFF_FFFF_8100_0000, MIB, MIB))


@pytest.mark.parametrize(
    ("entry", "is_text"),
    [
        (TEXT, True),
        (TEXT._replace(p_vaddr=TEXT_VIRT.start), True),
        (TEXT._replace(p_vaddr=TEXT_VIRT.start - 1), False),
        (TEXT._replace(p_vaddr=TEXT_VIRT.end), False),
        (TEXT._replace(p_type=PT_NOTE), False),
        (TEXT._replace(p_vaddr=DIRECT_MAP + MIB), False),
    ],
)
def test_kernel_text_is_the_load_at_its_link_address(entry: ProgramHeader, is_text: bool) -> None:
    header = header_of(entry)
    assert (header.kernel_text is not None) is is_text
    assert header.ram_headers == ((entry,) if not is_text and entry.p_type == PT_LOAD else ())
    elsewhere = X86_64._replace(maps_kernel_text=False)
    assert header_of(entry, architecture=elsewhere).kernel_text is None


def test_architecture_without_a_text_mapping_gets_no_entry_for_it() -> None:
    text = KernelText(TEXT.p_vaddr, TEXT.p_paddr, TEXT.p_memsz)
    elsewhere = X86_64._replace(maps_kernel_text=False)
    assert build_elfcorehdr(X86_64, [], None, text, []).program_headers == (TEXT,)
    assert build_elfcorehdr(elsewhere, [], None, text, []).program_headers == ()


def test_described_ram_ends_at_the_end_of_the_address_space() -> None:
    top = (1 << 64) - 0x1000
    far = ProgramHeader(PT_LOAD, 7, 0, 0, top, 0x2000, 0x2000, 0)
    header = header_of(far, LOW, TEXT, note_header(NoteRegion(0x5000, 0x170)))
    assert header.ram == RangeList([(0, 0x1000), (top, 1 << 64)])
    assert header_of(far._replace(p_memsz=0x1000)).ram == header_of(far).ram
