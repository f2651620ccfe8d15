# SPDX-License-Identifier: MIT
"""The plan of an update in place: which segments one kexec_load lists, with what contents, and why.

A plan is made before anything is touched, and is not made where it cannot be proven safe.  docs/in-place.md says why it
is safe.  The facts are those of ``kimage_alloc_crash_control_pages()`` in kernel/kexec_core.c.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from crash_hotplug.core.architecture import PAGE, whole_pages
from crash_hotplug.core.boot_params import E820_RAM, change_elfcorehdr_argument, e820_table, has_argument, reserve
from crash_hotplug.core.elf import ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError, NoRoomError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage, Kimage, Segment, elfcorehdr_room
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.purgatory import (
    ReadPhys,
    digest_covers,
    digest_regions,
    purgatory_phys,
    read_purgatory,
    without_elfcorehdr,
)
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import human_size
from crash_hotplug.core.steps import Say, say_nothing

MAX_MEMORY_RANGES = 8192
"""Memory ranges that a moved header has room for, as the kernel's CRASH_MAX_MEMORY_RANGES."""
_SPARE_ENTRIES = 448
"""Program headers that the listed part of the header's room holds beyond the present ones.

The kernel writes zeros to the end of each listed segment, and keeps its own later updates within it, so the whole room
(900 KiB with 8,192 ranges) is not listed.  The next update in place lists more when it is needed.
"""
MAX_ROOM = whole_pages(ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE * 0xFFFE)
"""Bytes of the largest elfcorehdr: ``e_phnum`` has 16 bits, and 0xffff (PN_XNUM) means something else."""
_HASHED = "the image is hashed once, to exclude its elfcorehdr from purgatory's digest"
_ZEROS = bytes(PAGE)


class TornImageError(CrashHotplugError):
    """The loaded image is torn, parts of two images: purgatory's digest check rejects it, so it must be reloaded."""


class NewSegment(NamedTuple):
    """One segment as kexec_load takes it."""

    phys: int
    """Physical address, page aligned."""
    data: bytes
    memsz: int
    """Bytes it takes, a multiple of the page size; behind *data* the kernel writes zeros."""
    why: str
    """Why it is listed, for people."""

    def holds(self, phys: int) -> bool:
        """Whether the physical address lies in it."""
        return self.phys <= phys < self.phys + self.memsz


class UpdatePlan(NamedTuple):
    """What one kexec_load(2) is to be given, and what is known to hold afterwards."""

    entry_phys: int
    segments: tuple[NewSegment, ...]
    kept: tuple[Range, ...]
    """Segments that are not listed and stay as they are: physical ranges."""
    control_pages: Range
    """Where the kernel's control pages can lie at most: below it, or in it."""
    excludes_elfcorehdr: bool
    """Whether this update takes the elfcorehdr out of purgatory's digest."""
    as_they_are: tuple[int, ...] = ()
    """Physical addresses of the listed segments whose contents were read and do not change."""

    @property
    def has_unproven_zeros(self) -> bool:
        """Whether a page of zeros is listed as it is that no digest was computed over yet.

        /proc/kcore gives zeros for a page that is hwpoisoned, offline or not present (0daa322b8ff9 "fs/proc/kcore:
        don't read offline sections, logically offline pages and hwpoisoned pages", Linux 5.14).  Purgatory has such
        pages of its own, and its digest does not cover it.
        """
        covered = [s.data for s in self.segments if s.phys in self.as_they_are and not s.holds(self.entry_phys)]
        is_proven = self.excludes_elfcorehdr
        return not is_proven and any(d.startswith(_ZEROS, at) for d in covered for at in range(0, len(d), PAGE))

    @property
    def bytes_copied(self) -> int:
        """Bytes that the kernel copies."""
        return sum(len(segment.data) for segment in self.segments)


def room_for(possible_cpus: int, memory_ranges: int = MAX_MEMORY_RANGES) -> int:
    """Return the bytes of room for a header of so many CPUs and memory ranges, whole pages.

    Two more entries are for vmcoreinfo and the kernel text.
    """
    return whole_pages(ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE * (2 + possible_cpus + memory_ranges))


class Move(NamedTuple):
    """A header that moves: where to, and what points to it then."""

    place: int
    """Physical address of its new place."""
    room: int
    """Bytes of that place."""
    parameters: bytes
    """The segment of the zero page, with the place in command line and E820 table."""
    parameters_before: bytes
    """That segment as it was read."""


def prepare_move(image: CrashImage, machine: Machine, room: int, read_phys: ReadPhys) -> Move:
    """Find a free place of *room* bytes for the header, and change what points to it.  Nothing is hashed.

    The capture kernel finds the header by ``elfcorehdr=`` and must not use its place as RAM, so command line and E820
    table of the zero page change with it.

    :raise CannotTellError: there is no such place, or what points to the header cannot be changed
    """
    kimage, _elfcorehdr_phys = _known_places(image)
    if image.boot_params_phys is None or image.cmdline_phys is None or image.cmdline is None:
        raise CannotTellError("the zero page and command line of the capture kernel were not found")
    if has_argument(image.cmdline, "memmap"):  # kexec --pass-memmap-cmdline: the E820 table alone would not reserve it
        raise CannotTellError("the capture kernel's command line has memmap=, which says what it uses as RAM")
    zero_page = kimage.segment_at(image.boot_params_phys)
    if zero_page is None or kimage.segment_at(kimage.entry_phys) is None:
        raise CannotTellError("the capture kernel's zero page or purgatory was not found")
    place = find_place(image, machine, room)
    before = read_phys(zero_page.phys, zero_page.memsz)
    parameters = bytearray(before)
    zero_page_at = image.boot_params_phys - zero_page.phys
    change_elfcorehdr_argument(parameters, image.cmdline_phys - zero_page.phys, zero_page_at, image.cmdline, place)
    reserve(parameters, zero_page_at, Range(place, place + room))
    return Move(place, room, bytes(parameters), before)


def plan_replacement(
    image: CrashImage, machine: Machine, header: bytes, read_phys: ReadPhys, say: Say = say_nothing
) -> UpdatePlan:
    """Plan to put *header*, which fits, into the place of the one that *image* has.

    Where the elfcorehdr is still part of purgatory's digest, the whole image is read and hashed, once.

    :param say: told before that
    :raise CannotTellError: it cannot be proven that the rest of the image survives
    """
    kimage, elfcorehdr_phys = _known_places(image)
    if kimage.segment_at(kimage.entry_phys) is None:
        raise CannotTellError("no segment of the loaded image holds its entry point")
    purgatory_at = purgatory_phys(kimage)
    listed = _listed_size(header, elfcorehdr_room(image, machine.crashkernel) or 0)
    planned = _with_header_at(kimage, elfcorehdr_phys, elfcorehdr_phys, listed)
    read_phys = _with_unchanged(planned, machine, (purgatory_at, elfcorehdr_phys), read_phys)
    purgatory = read_purgatory(kimage, read_phys)
    regions = digest_regions(purgatory, kimage, machine.crashkernel)
    if regions is None:
        raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind")
    excludes = digest_covers(regions, elfcorehdr_phys)
    if excludes:
        say(_HASHED)
        purgatory = without_elfcorehdr(purgatory, kimage, elfcorehdr_phys, read_phys)
    why = {
        purgatory_at: "purgatory, with a digest without the elfcorehdr" if excludes else "purgatory",
        elfcorehdr_phys: "the new elfcorehdr",
    }
    return _build_plan(planned, machine, {purgatory_at: purgatory, elfcorehdr_phys: header}, why, read_phys, excludes)


def plan_move(
    image: CrashImage, machine: Machine, move: Move, header: bytes, read_phys: ReadPhys, say: Say = say_nothing
) -> UpdatePlan:
    """Plan to put *header* into its new place; purgatory's digest changes with what points to it.

    The whole image is read and hashed, once.

    :param say: told before that
    :raise CannotTellError: it cannot be proven that the rest of the image survives
    """
    kimage, elfcorehdr_phys = _known_places(image)
    zero_page = kimage.segment_at(image.boot_params_phys or 0)
    if zero_page is None:
        raise CannotTellError("the capture kernel's zero page was not found")

    purgatory_at = purgatory_phys(kimage)
    moved = _with_header_at(kimage, elfcorehdr_phys, move.place, _listed_size(header, move.room))
    read_phys = _with_unchanged(moved, machine, (zero_page.phys, purgatory_at, move.place), read_phys)
    purgatory = read_purgatory(kimage, read_phys)
    say(_HASHED)
    read_phys = overlaid({zero_page.phys: move.parameters_before}, read_phys)
    changed = {zero_page.phys: move.parameters}
    contents = {
        zero_page.phys: move.parameters,
        purgatory_at: without_elfcorehdr(purgatory, kimage, elfcorehdr_phys, read_phys, changed),
        move.place: header,
    }
    why = {
        zero_page.phys: "the zero page, with the new place in command line and E820 table",
        purgatory_at: "purgatory, with a new digest",
        move.place: f"the elfcorehdr, moved from {elfcorehdr_phys:#x}",
    }
    return _build_plan(moved, machine, contents, why, read_phys, True)


def why_no_plan(image: CrashImage, machine: Machine) -> str | None:
    """Return why an update in place cannot be planned, without hashing anything; None where it can."""
    try:
        kimage, elfcorehdr_phys = _known_places(image)
        control = kimage.control_page_phys
        if control is None or _reservation_of(machine, elfcorehdr_phys).end < control or not control:
            raise CannotTellError("the control pages of the loaded image were not found in struct kimage")
        changed = (purgatory_phys(kimage), elfcorehdr_phys)
        segments_to_list(kimage, changed, _reservation_of(machine, elfcorehdr_phys), control_pages_bound(machine.ram))
    except CannotTellError as error:
        return str(error)
    return None


def overlaid(contents: Mapping[int, bytes], read_phys: ReadPhys) -> ReadPhys:
    """Return a reader of memory to which *contents*, by physical address, were written."""

    def read(phys: int, length: int) -> bytes:
        for at, data in contents.items():
            if at <= phys and phys + length <= at + len(data):
                return data[phys - at : phys - at + length]
        return read_phys(phys, length)

    return read


def check_result(plan: UpdatePlan, now: Kimage, header_there: bytes, header_meant: bytes) -> None:
    """Check what is loaded after the plan was carried out.

    :raise CrashHotplugError: the header is not the one that was meant (the kernel's own handler may have come since)
    :raise TornImageError: a segment may have been overwritten: the image has to be loaded anew
    """
    if not header_there.startswith(header_meant) or now.entry_phys != plan.entry_phys:
        raise CrashHotplugError("the header that was written is not the one that is there: reload the crash image")
    control = now.control_page_phys
    # control_page is the last byte in use on some kernels, the first free one on others.
    if not control or control > plan.control_pages.end or any(kept.start < control for kept in plan.kept):
        raise TornImageError("control pages may have overwritten a segment: reload the crash image")


def segments_to_list(kimage: Kimage, changed: Iterable[int], reserved: Range, control_size: int) -> tuple[Segment, ...]:
    """Return which segments a kexec_load must list so that its control pages overwrite none that it does not list.

    :param changed: physical addresses of segments with new contents
    :param control_size: bytes of control pages this machine needs, at most
    :raise CannotTellError: no hole is large enough even with every segment listed
    """
    listed = {segment for segment in kimage.segments if segment.phys in set(changed)}
    while True:
        hole = lowest_hole(reserved, (s.range for s in listed), control_size)
        if hole is None:
            raise CannotTellError(f"the reserved region has no hole of {control_size} bytes for control pages")
        # Not only what overlaps this hole: single control pages go into smaller holes below it.
        hit = [s for s in kimage.segments if s not in listed and s.phys < hole.end]
        if not hit:
            return tuple(sorted(listed, key=lambda s: s.phys))
        listed.update(hit)


def lowest_hole(reserved: Range, listed: Iterable[Range], size: int) -> Range | None:
    """Return the lowest page-aligned hole of *size* bytes in the reserved range that no listed segment covers.

    The kernel takes control pages from it.
    """
    at = reserved.start
    for taken in sorted(listed):
        if taken.start - at >= size:
            break
        at = max(at, taken.end)
    return Range(at, at + size) if at + size <= reserved.end else None


_CONTROL_PAGES_BESIDES_MAP = 2 + 1 + 1 + 4 + 4 + 16
"""Control code, its alignment to its own size, top-level table, page tables of the trampoline, levels above the
identity map, and sixteen for firmware tables (ACPI, EFI) that are mapped besides RAM."""


def control_pages_bound(ram: RangeList) -> int:
    """Return how many bytes of control pages x86_64 takes for a crash image, at most.

    ``init_pgtable()`` of arch/x86/kernel/machine_kexec_64.c maps all RAM: without 1 GiB pages that is one page per
    started GiB and one per started 512 GiB.
    """
    top = ram[-1].end if ram else 0
    return PAGE * (_CONTROL_PAGES_BESIDES_MAP + -(-top // (1 << 30)) + -(-top // (1 << 39)))


def find_place(image: CrashImage, machine: Machine, room: int) -> int:
    """Return the physical address of a free place: as high as possible, below the segments at the region's end.

    Control pages come from the lowest holes, so they stay apart.

    :raise CannotTellError: there is none
    """
    kimage, elfcorehdr_phys = _known_places(image)
    reserved = next((r for r in machine.crashkernel if r.start <= elfcorehdr_phys < r.end), None)
    ram = RangeList(r for r, kind in e820_table(image.boot_params or b"") if kind == E820_RAM)
    if reserved is not None:
        taken = RangeList(s.range for s in kimage.segments)
        free = RangeList([reserved]).intersect(ram).exclude(taken)
        needed = room + control_pages_bound(machine.ram)
        for hole in reversed(list(free)):
            place = (hole.end - room) // PAGE * PAGE
            if hole.size >= needed + PAGE:
                return place
    raise CannotTellError(f"the reserved region has no free place of {room} bytes for a larger elfcorehdr")


def check_capture_kernel_fits(init_size: int, initrd_size: int, room: int, machine: Machine) -> None:
    """Check, before anything is loaded, that a header of *room* bytes can do and that the image can fit.

    :param init_size: bytes that the capture kernel takes while it starts
    :raise InputError: *room* is too small for this machine as it is, or larger than any elfcorehdr can be
    :raise NoRoomError: the memory reserved for the capture kernel is too small
    """
    now = room_for(len(machine.cpus), len(machine.dumpable_ram) + 1)
    if room < now:
        raise InputError(
            f"room for {room} bytes is too small: the elfcorehdr needs {now} for this machine as it is now, "
            f"with {len(machine.cpus)} possible CPUs"
        )
    if room > MAX_ROOM:
        raise InputError(
            f"room for {room} bytes is more than an elfcorehdr can use ({MAX_ROOM}: it has 65,534 entries)"
        )
    largest = max((reserved.size for reserved in machine.crashkernel), default=0)
    # Alignment and small segments come on top.
    needed = sum(whole_pages(size) for size in (init_size, initrd_size, room)) + control_pages_bound(machine.ram)
    if needed > largest:
        raise NoRoomError(
            f"the reserved region ({human_size(largest)}) is too small: kernel, initrd, the elfcorehdr's room and "
            f"control pages need at least {human_size(needed)}; nothing was changed"
        )


def _known_places(image: CrashImage) -> tuple[Kimage, int]:
    if image.kimage is None or image.elfcorehdr_phys is None:
        raise CannotTellError("struct kimage of the loaded image could not be read")
    return image.kimage, image.elfcorehdr_phys


def _listed_size(header: bytes, room: int) -> int:
    """Return the memsz with which the header's segment is listed: some entries more than it has, within its room."""
    spare = min(len(header) + _SPARE_ENTRIES * PROGRAM_HEADER_SIZE, room // PAGE * PAGE)
    return whole_pages(max(len(header), spare))


def _with_header_at(kimage: Kimage, old: int, new: int, memsz: int) -> Kimage:
    others = [s for s in kimage.segments if s.phys != old]
    return kimage._replace(segments=tuple(sorted([*others, Segment(new, memsz, memsz)], key=lambda s: s.phys)))


def _build_plan(
    kimage: Kimage,
    machine: Machine,
    contents: Mapping[int, bytes],
    why: Mapping[int, str],
    read_phys: ReadPhys,
    excludes_elfcorehdr: bool,
) -> UpdatePlan:
    """Complete a plan: find the segments that must be listed besides those with new *contents*, by physical address.

    :raise CannotTellError: the control pages could overwrite a segment
    """
    reserved = _reservation_of(machine, min(contents))
    bound = control_pages_bound(machine.ram)
    listed = segments_to_list(kimage, contents, reserved, bound)
    if len(listed) > KEXEC_SEGMENT_MAX:
        raise CannotTellError(f"{len(listed)} segments would have to be listed; kexec_load takes {KEXEC_SEGMENT_MAX}")
    hole = lowest_hole(reserved, (s.range for s in listed), bound)
    if hole is None:
        raise CannotTellError(f"the reserved region has no hole of {bound} bytes for control pages")
    segments = []
    for s in listed:
        data = contents[s.phys] if s.phys in contents else read_phys(s.phys, s.memsz)
        segments.append(NewSegment(s.phys, data, s.memsz, why.get(s.phys, "as it is, to keep its place")))
    kept = tuple(s.range for s in kimage.segments if s not in listed)
    changed = contents if excludes_elfcorehdr else set(contents) - {purgatory_phys(kimage)}
    as_they_are = tuple(s.phys for s in listed if s.phys not in changed)
    return UpdatePlan(kimage.entry_phys, tuple(segments), kept, hole, excludes_elfcorehdr, as_they_are)


def _with_unchanged(kimage: Kimage, machine: Machine, changed: Collection[int], read_phys: ReadPhys) -> ReadPhys:
    """Return a reader that has read the segments that are listed besides those *changed*, once and for all.

    A digest that is computed through it proves the bytes that kexec_load is going to be given.

    :raise CannotTellError: the control pages could overwrite a segment
    """
    listed = segments_to_list(kimage, changed, _reservation_of(machine, min(changed)), control_pages_bound(machine.ram))
    return overlaid({s.phys: read_phys(s.phys, s.memsz) for s in listed if s.phys not in changed}, read_phys)


def _reservation_of(machine: Machine, phys: int) -> Range:
    """Return the reserved range that holds *phys*: the kernel takes segments and control pages from one only."""
    for reserved in machine.crashkernel:
        if reserved.start <= phys < reserved.end:
            return reserved
    raise CannotTellError(f"{phys:#x} does not lie in the memory reserved for the capture kernel")
