# SPDX-License-Identifier: MIT
"""Crash images of arm64 model machines as a faulty loader would make them: the header, and the device tree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from crash_hotplug.core.arch.device_tree import DeviceTree
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.ranges import Range
from crash_hotplug_lab.model.arch.arm64 import ARM64
from crash_hotplug_lab.model.arch.arm64_loaders import ELFCOREHDR, USABLE_MEMORY
from crash_hotplug_lab.model.arch.flat_tree import Property, build_tree, cells, read_tree
from crash_hotplug_lab.model.user_space import LoadCall
from tests.lab.model.mutated_image import (
    DIMM,
    HEADER_MUTATIONS,
    MIB,
    NO_MEMORY,
    Draw,
    MutatedHeader,
    booted,
    read_image,
)

TreeMutation = Callable[[Draw, "MutatedTree"], None]


@dataclass
class MutatedTree(MutatedHeader):
    """The parts of an arm64 image that a mutation changes."""

    tree_phys: int
    chosen: list[Property]
    """The properties of ``/chosen``, in order."""
    reservations: list[Range]
    """Physical ranges of ``/memreserve/``."""
    is_tree: bool = True

    @classmethod
    def loaded(cls, release: str, loader: LoadCall, has_dimm: bool = False) -> MutatedTree:
        """Return an image before its mutation.

        :param has_dimm: whether :data:`DIMM` is plugged in when it is loaded
        """
        machine = booted(release, loader, has_dimm, ARM64).copy()
        machine.whole_headers = set()
        image = read_image(machine)
        header = parse_elfcorehdr(image.elfcorehdr)
        assert image.elfcorehdr_phys is not None
        assert isinstance(image.boot, DeviceTree)
        assert image.boot.phys is not None
        tree = read_tree(machine.memory, image.boot.phys)
        return cls(
            machine,
            image.elfcorehdr_phys,
            header.elf_header,
            list(header.program_headers),
            image.boot.phys,
            list(tree.chosen),
            list(tree.reservations),
        )

    def write(self) -> None:
        """Write the parts back into the image, and the digest of the whole where it has one."""
        self.write_header()
        blob = build_tree(self.chosen, self.reservations)
        self.machine.memory.write(self.tree_phys, blob if self.is_tree else b"\0" + blob[1:])
        assert self.machine.crash_image is not None
        if not self.machine.crash_image.file_mode:
            self.write_digest()

    @property
    def elfcorehdr_arguments(self) -> int:
        """How many places of the header the command line and the device tree tell."""
        return sum(name == ELFCOREHDR for name, _value in self.chosen) + self._bootargs.count(b"elfcorehdr=")

    @property
    def is_unreadable(self) -> bool:
        """Whether header, device tree or the capture kernel's RAM cannot be found in the image."""
        return not self.is_tree or self.is_no_core_header or not self.value(USABLE_MEMORY)

    @property
    def header_size(self) -> int:
        """Bytes of the header."""
        return 64 + 56 * len(self.entries)

    @property
    def _bootargs(self) -> bytes:
        return self.value("bootargs")

    def value(self, name: str) -> bytes:
        """Return the value of the first property of this name; nothing where there is none."""
        return next((value for found, value in self.chosen if found == name), b"")

    def change(self, name: str, value: bytes) -> None:
        """Change the first property of this name, where there is one."""
        number = next((number for number, (found, _value) in enumerate(self.chosen) if found == name), None)
        if number is not None:
            self.chosen[number] = (name, value)

    @property
    def boot_story(self) -> str:
        """The tree, for people."""
        return f"{[(name, value.hex()) for name, value in self.chosen]}\n{self.reservations}"


def _wrong_place(draw: Draw, image: MutatedTree) -> int:
    places = (0, image.place + 4096, image.place - 4096, image.place + 8, DIMM.start, NO_MEMORY, image.tree_phys)
    return draw(st.sampled_from(places))


def _rooms(image: MutatedTree) -> tuple[int, ...]:
    return (0, 1, image.header_size - 56, image.header_size, image.header_size + 56, 4096, 64 << 10)


def place_changed(draw: Draw, image: MutatedTree) -> None:
    """``linux,elfcorehdr`` has another address."""
    image.change(ELFCOREHDR, cells(_wrong_place(draw, image), 4096))


def room_changed(draw: Draw, image: MutatedTree) -> None:
    """``linux,elfcorehdr`` has another size, and so has the reservation that the kernel's loader makes for it."""
    room = draw(st.sampled_from(_rooms(image)))
    image.change(ELFCOREHDR, cells(image.place, room))
    reserved = [r if r.start != image.place else Range(r.start, r.start + room) for r in image.reservations]
    image.reservations = [r for r in reserved if r.size]  # one of no bytes ends the list


def place_missing(_draw: Draw, image: MutatedTree) -> None:
    """There is no ``linux,elfcorehdr``, and no reservation that would make up for it."""
    image.reservations = [r for r in image.reservations if r.start != image.place]
    image.chosen = [p for p in image.chosen if p[0] != ELFCOREHDR]


def place_twice(draw: Draw, image: MutatedTree) -> None:
    """``linux,elfcorehdr`` is there twice, with another address or another size.

    The reservation that the kernel's loader makes for the header would make up for a size that is too small.
    """
    image.reservations = [r for r in image.reservations if r.start != image.place]
    is_wrong = draw(st.booleans())
    place = _wrong_place(draw, image) if is_wrong else image.place
    at = draw(st.sampled_from((0, len(image.chosen))))
    image.chosen.insert(at, (ELFCOREHDR, cells(place, draw(st.sampled_from(_rooms(image))))))


def usable_memory_changed(draw: Draw, image: MutatedTree) -> None:
    """The capture kernel gets another part of the memory, all of it, or none.

    The ranges do not cut the kernel, the initrd or the tree in two: whether it starts then depends on more.
    """
    start, end = image.machine.profile.reserved
    whole = (start, end - start)
    values = (
        b"",
        cells(start, 0),
        cells(start + 8 * MIB, end - start - 8 * MIB),
        cells(start, image.place // (64 << 10) * (64 << 10) - start),
        cells(start - 16 * MIB, end - start + 16 * MIB),
        cells(start, end - start + MIB),
        cells(DIMM.start, DIMM.size),
        cells(NO_MEMORY, end - start),
        cells(*whole, DIMM.start, DIMM.size),
        cells(*whole, start - 64 * MIB, MIB),
    )
    image.change(USABLE_MEMORY, draw(st.sampled_from(values)))


def usable_memory_missing(_draw: Draw, image: MutatedTree) -> None:
    """There is no ``linux,usable-memory-range``."""
    image.chosen = [p for p in image.chosen if p[0] != USABLE_MEMORY]


def command_line_changed(draw: Draw, image: MutatedTree) -> None:
    """The command line has an ``elfcorehdr=`` that overrides the device tree."""
    place = draw(st.sampled_from((image.place, _wrong_place(draw, image))))
    image.change("bootargs", b"quiet elfcorehdr=%#x nr_cpus=1\0" % place)


def reservation_missing(_draw: Draw, image: MutatedTree) -> None:
    """The kernel's loader reserves nothing by ``/memreserve/``: ``linux,elfcorehdr`` is enough."""
    image.reservations = []


def tree_unknown(_draw: Draw, image: MutatedTree) -> None:
    """The device tree is none."""
    image.is_tree = False


TREE_MUTATIONS: tuple[TreeMutation, ...] = (
    *(place_changed, room_changed, place_missing, place_twice, usable_memory_changed, usable_memory_missing),
    *(command_line_changed, reservation_missing, tree_unknown),
)
MUTATIONS = (*TREE_MUTATIONS, *TREE_MUTATIONS, *HEADER_MUTATIONS)
