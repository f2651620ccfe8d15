# SPDX-License-Identifier: MIT
"""Crash images of model machines as a faulty loader would make them: header, command line, memory map, backup region.

Each image has the digest of its contents, so that purgatory starts the capture kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import (
    E820_COUNT,
    E820_ENTRY,
    E820_MAX,
    E820_RAM,
    E820_RESERVED,
    E820_TABLE,
    MAGIC,
    ZeroPage,
    e820_table,
)
from crash_hotplug.core.elf import PT_LOAD, PT_NOTE, ElfHeader, ProgramHeader, pack_program_headers
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.purgatory import digest_of
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.arch.architecture import ModelArchitecture
from crash_hotplug_lab.model.arch.x86_64 import X86_64
from crash_hotplug_lab.model.hotplug import add_memory
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.purgatory import ENTRY_OFFSET, read_purgatory
from crash_hotplug_lab.model.user_space import Kexec, LoadCall, ModelObservation

MIB = 1 << 20
DIMM = Range(4 << 30, (4 << 30) + 128 * MIB)
NO_MEMORY = 8 << 30
"""A physical address without memory."""
LOADED = (
    ("5.10.0-model", LoadCall.KEXEC_LOAD),
    ("5.10.0-model", LoadCall.KEXEC_FILE_LOAD),
    ("6.12.0-model", LoadCall.KEXEC_LOAD),
    ("6.12.0-model", LoadCall.KEXEC_FILE_LOAD),
)
_DIGEST_OFFSET = 0x1000
"""Offset of the digest in the model's purgatory."""
Draw = st.DrawFn
Mutation = Callable[[Draw, Any], None]


@functools.cache
def booted(release: str, loader: LoadCall, has_dimm: bool, arch: ModelArchitecture = X86_64) -> ModelMachine:
    """Return a machine with a loaded image, of which only copies may be changed."""
    machine = boot(arch.default_profile(release))
    if has_dimm:
        run(add_memory(machine, "dimm", DIMM))
    run(Kexec(arch.small_capture_kernel(4), loader).load(machine))
    return machine


def read_image(machine: ModelMachine) -> CrashImage:
    """Read the loaded image as ``status`` does on a live machine."""
    assert machine.crash_image is not None
    view = machine.kernel_view()
    low = view.ram.intersect(RangeList([view.architecture.backup_region_source]))
    kimage, source = machine.crash_image.kimage, next(iter(low), None)
    return read_loaded_image(view.architecture, kimage, view.crashkernel, source, ModelObservation(machine).read_phys)


@dataclass
class MutatedHeader:
    """The elfcorehdr of a loaded image, which a mutation changes.

    A place is never described a few bytes too small: its notes may fit all the same, and only the panic shows it.
    Purgatory's own variables stay as they are: ``status`` does not check the code of the image.
    """

    machine: ModelMachine
    place: int
    """Physical address of the elfcorehdr."""
    elf_header: ElfHeader
    entries: list[ProgramHeader]

    def write_header(self) -> None:
        """Write the header back into the image."""
        self.entries = [ProgramHeader(*(field % (1 << 64) for field in entry)) for entry in self.entries]
        entries = pack_program_headers(self.entries)
        self.machine.memory.write(self.place, self.elf_header.to_bytes() + entries + bytes(4 * 56))
        size = min(64 + 56 * self.elf_header.e_phnum, 1 << 20)
        self.machine.whole_headers.add(self.machine.memory.read(self.place, size))

    def write_digest(self) -> None:
        """Write the digest of the whole image into its purgatory."""
        memory = self.machine.memory
        assert self.machine.crash_image is not None
        entry = self.machine.crash_image.kimage.entry_phys
        regions = read_purgatory(memory, entry).regions
        memory.write(entry - ENTRY_OFFSET + _DIGEST_OFFSET, digest_of(regions, memory.read))

    @property
    def is_no_core_header(self) -> bool:
        """Whether the header cannot be found in the image."""
        return not self.elf_header.e_ident.startswith(b"\x7fELF") or self.elf_header.e_type != 4

    @property
    def backup(self) -> int | None:
        """The number of the entry that points to the backup region."""
        return next((n for n, p in enumerate(self.entries) if p.p_type == PT_LOAD and p.p_offset != p.p_paddr), None)

    def count_entries(self) -> None:
        """Let the ELF header announce the entries that there are."""
        self.elf_header = self.elf_header._replace(e_phnum=len(self.entries))


@dataclass
class MutatedImage(MutatedHeader):
    """The parts of an x86_64 image that a mutation changes."""

    boot_params_phys: int
    cmdline_phys: int
    cmdline: str
    e820: list[tuple[Range, int]]
    has_boot_params: bool = True

    @classmethod
    def loaded(cls, release: str, loader: LoadCall, has_dimm: bool = False) -> MutatedImage:
        """Return an image before its mutation.

        :param has_dimm: whether :data:`DIMM` is plugged in when it is loaded
        """
        machine = booted(release, loader, has_dimm).copy()
        machine.whole_headers = set()
        image = read_image(machine)
        header = parse_elfcorehdr(image.elfcorehdr)
        assert image.elfcorehdr_phys is not None
        boot = image.boot
        assert isinstance(boot, ZeroPage)
        assert boot.phys is not None
        assert boot.cmdline_phys is not None
        assert boot.page is not None
        assert boot.cmdline is not None
        return cls(
            machine,
            image.elfcorehdr_phys,
            header.elf_header,
            list(header.program_headers),
            boot.phys,
            boot.cmdline_phys,
            boot.cmdline.strip(),
            e820_table(boot.page),
        )

    def write(self) -> None:
        """Write the parts back into the image, and the digest of the whole."""
        memory = self.machine.memory
        self.write_header()
        memory.write(self.cmdline_phys, self.cmdline.encode()[: PAGE - 1].ljust(PAGE, b"\0"))
        page = bytearray(memory.read(self.boot_params_phys, PAGE))
        table = self.e820[:E820_MAX]
        page[E820_COUNT] = len(table)
        for number, (where, kind) in enumerate(table):
            E820_ENTRY.pack_into(page, E820_TABLE + E820_ENTRY.size * number, where.start, where.size, kind)
        if not self.has_boot_params:
            page[MAGIC] ^= 1
        memory.write(self.boot_params_phys, bytes(page))
        self.write_digest()

    @property
    def boot_story(self) -> str:
        """Command line and memory map, for people."""
        return f"{self.cmdline!r}\n{self.e820}"

    @property
    def elfcorehdr_arguments(self) -> int:
        """How many words ``elfcorehdr=`` the command line has."""
        words = self.cmdline[:2047].replace('"', "").split()
        before = words[: words.index("--")] if "--" in words else words
        return sum(word.startswith("elfcorehdr=") for word in before)

    @property
    def is_unreadable(self) -> bool:
        """Whether the places of the header or of the command line cannot be found in the image."""
        return not self.has_boot_params or self.is_no_core_header


def _number(draw: Draw, image: MutatedHeader) -> int:
    return draw(st.integers(0, len(image.entries) - 1))


def entry_missing(draw: Draw, image: MutatedHeader) -> None:
    """A PT_LOAD or PT_NOTE is missing."""
    if len(image.entries) > 1:
        del image.entries[_number(draw, image)]
        image.count_entries()


def entry_twice(draw: Draw, image: MutatedHeader) -> None:
    """A PT_LOAD or PT_NOTE is there twice, next to itself or at the end."""
    number = _number(draw, image)
    image.entries.insert(draw(st.sampled_from((number, len(image.entries)))), image.entries[number])
    image.count_entries()


def entry_moved(draw: Draw, image: MutatedHeader) -> None:
    """An entry stands elsewhere in the table."""
    entry = image.entries.pop(_number(draw, image))
    image.entries.insert(draw(st.integers(0, len(image.entries))), entry)


def entry_changed(draw: Draw, image: MutatedHeader) -> None:
    """A place, a size or an address of an entry is another one."""
    number = _number(draw, image)
    entry = image.entries[number]
    field = draw(st.sampled_from(("p_offset", "p_paddr", "place", "p_filesz", "p_memsz", "size", "p_vaddr", "rest")))
    if field == "place":
        image.entries[number] = _placed(draw, image, entry)
    elif field in ("p_offset", "p_paddr"):
        value = draw(st.sampled_from(_places(image, entry, getattr(entry, field))))
        image.entries[number] = entry._replace(**{field: value})
    elif field == "rest":
        name = draw(st.sampled_from(("p_type", "p_flags", "p_align")))
        image.entries[number] = entry._replace(**{name: draw(st.sampled_from((0, 1, 4, 6, 7, 8, PAGE)))})
    elif field == "p_vaddr":
        image.entries[number] = entry._replace(p_vaddr=entry.p_vaddr ^ draw(st.sampled_from((PAGE, 1 << 40))))
    else:
        image.entries[number] = _sized(draw, entry, ("p_filesz", "p_memsz") if field == "size" else (field,))


def note_changed(draw: Draw, image: MutatedHeader) -> None:
    """A PT_NOTE has another place or another size."""
    numbers = [number for number, p in enumerate(image.entries) if p.p_type == PT_NOTE]
    if numbers:
        number = draw(st.sampled_from(numbers))
        entry = image.entries[number]
        is_moved = draw(st.booleans())
        both = ("p_filesz", "p_memsz")
        image.entries[number] = _placed(draw, image, entry) if is_moved else _sized(draw, entry, both)


def _places(image: MutatedHeader, entry: ProgramHeader, now: int) -> list[int]:
    near = [max(0, now + by) for by in (PAGE, -PAGE, MIB)]
    there = [image.place, image.place - 16 * PAGE, DIMM.start, NO_MEMORY, entry.p_paddr, 64 * MIB]
    return [0, PAGE, 0x5000, *there, *near]


def _placed(draw: Draw, image: MutatedHeader, entry: ProgramHeader) -> ProgramHeader:
    place = draw(st.sampled_from(_places(image, entry, entry.p_paddr)))
    return entry._replace(p_offset=place, p_paddr=place)


def _sized(draw: Draw, entry: ProgramHeader, fields: tuple[str, ...]) -> ProgramHeader:
    size = draw(st.sampled_from((0, 16, entry.p_memsz // PAGE // 2 * PAGE, 8 * MIB, 1 << 62)))
    return entry._replace(**{field: size for field in fields})  # noqa: C420 mypy takes fromkeys' values for None


def elf_header_changed(draw: Draw, image: MutatedHeader) -> None:
    """A field of the ELF header is another one, the number of entries among them."""
    header, entries = image.elf_header, len(image.entries)
    idents = [b"\x7fELF" + rest for rest in (b"\2\1\1\3", b"\1\1\1\0", b"\2\1\2\0", b"\2\2\1\0")]
    changed = [header._replace(e_phnum=n) for n in (0, 1, max(0, entries - 1), entries + 1, entries + 3, 40_000)]
    changed += [header._replace(e_ident=ident + bytes(8)) for ident in (*idents, b"\x7fELG\2\1\1\0")]
    changed += [header._replace(e_ehsize=0), header._replace(e_phentsize=32), header._replace(e_phoff=120)]
    changed += [header._replace(e_flags=1), header._replace(e_entry=1), header._replace(e_shnum=1)]
    changed += [header._replace(e_machine=3), header._replace(e_type=2), header._replace(e_version=2)]
    image.elf_header = draw(st.sampled_from(changed))


def command_line_changed(draw: Draw, image: MutatedImage) -> None:
    """The command line has no ``elfcorehdr=``, another address, another form, or two of them."""
    rest = " ".join(word for word in image.cmdline.split() if not word.startswith("elfcorehdr="))
    right, wrong = image.place, draw(st.sampled_from((0, image.place + PAGE, image.place - PAGE, NO_MEMORY)))
    image.cmdline = draw(
        st.sampled_from(
            (
                rest,
                f"elfcorehdr={wrong:#x} {rest}",
                f"{rest} elfcorehdr={wrong >> 10}K",
                f"elfcorehdr=64K@{right:#x} {rest}",
                f"elfcorehdr={right} {rest}",
                f"elfcorehdr={right >> 10}k {rest}",
                f'"elfcorehdr={right:#x}" {rest}',
                f"elfcorehdr={right:#x}x {rest}",
                f"elfcorehdr={right:x} {rest}",
                f"elfcorehdr=0{right:o} {rest}",
                f"elfcorehdr {rest}",
                f"xelfcorehdr={right:#x} {rest}",
                f"{rest} -- elfcorehdr={right:#x}",
                f"{rest.ljust(2060, 'x')} elfcorehdr={right:#x}"[:2047],
                f"elfcorehdr={right:#x} {rest} elfcorehdr={right:#x}",
                f"elfcorehdr={right:#x} {rest} elfcorehdr={wrong:#x}",
                f"elfcorehdr={wrong:#x} {rest} elfcorehdr={right:#x}",
            )
        )
    )


def memory_map_changed(draw: Draw, image: MutatedImage) -> None:
    """The E820 table lacks an entry, has another type in one, or calls more memory RAM."""
    backup = [image.entries[image.backup].p_offset] if image.backup is not None else []
    more = [image.place, 64 * MIB, DIMM.start, NO_MEMORY, *backup]
    how = draw(st.integers(0, 2))
    if how == 2 or not image.e820:
        start = draw(st.sampled_from(more))
        image.e820.append((Range(start, start + draw(st.sampled_from((PAGE, MIB)))), E820_RAM))
        return
    number = draw(st.integers(0, len(image.e820) - 1))
    if how == 0:
        del image.e820[number]
    else:
        image.e820[number] = (image.e820[number][0], draw(st.sampled_from((E820_RAM, E820_RESERVED))))


def backup_region_changed(draw: Draw, image: MutatedImage) -> None:
    """Low memory would be read from elsewhere than the place to which purgatory copies it."""
    if image.backup is not None:
        entry = image.entries[image.backup]
        at = entry.p_offset
        places = (at + PAGE, at - PAGE, at + 8, entry.p_paddr, image.place, at - MIB, NO_MEMORY, 64 * MIB)
        image.entries[image.backup] = entry._replace(p_offset=draw(st.sampled_from(places)))


def zero_page_unknown(_draw: Draw, image: MutatedImage) -> None:
    """The zero page has no setup header."""
    image.has_boot_params = False


HEADER_MUTATIONS: tuple[Mutation, ...] = (
    *(entry_missing, entry_twice, entry_moved, entry_changed, note_changed, elf_header_changed),
)
"""Mutations of a :class:`MutatedHeader`."""
MUTATIONS: tuple[Mutation, ...] = (
    *HEADER_MUTATIONS,
    *(command_line_changed, memory_map_changed, backup_region_changed, zero_page_unknown),
)
