# SPDX-License-Identifier: MIT
"""The plan of an update in place: which segments one kexec_load lists, with what contents, and why.

A plan is made before anything is touched, and is not made where it cannot be proven safe.  docs/in-place.md says why it
is safe.  The facts are those of ``kimage_alloc_crash_control_pages()`` in kernel/kexec_core.c.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from crash_hotplug.core.arch.architecture import PAGE, whole_pages
from crash_hotplug.core.elf import ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError, NoRoomError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage, Kimage, Segment, elfcorehdr_room
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.purgatory import (
    ReadPhys,
    digest_covers,
    digest_regions,
    find_purgatory,
    new_purgatory,
    purgatory_phys,
    with_kernel_at,
    without_elfcorehdr,
)
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.reserved_region import (
    find_place,
    find_place_at_distance,
    lowest_hole,
    reservation_of,
    segments_to_list,
)
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
    source_phys: int | None = None
    """Where the contents were read that no digest has proven yet: they are read there once more before the call."""

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
    makes_readable: NewSegment | None = None
    """The one segment that a second kexec_load lists, so that the kernel unmaps no other; None where it unmaps none."""

    @property
    def has_unproven_zeros(self) -> bool:
        """Whether a page of zeros is listed as it is that no digest was computed over yet.

        /proc/kcore gives zeros for a page that is hwpoisoned, offline or not present (0daa322b8ff9 "fs/proc/kcore:
        don't read offline sections, logically offline pages and hwpoisoned pages", Linux 5.14).  Purgatory has such
        pages of its own, and its digest does not cover it.
        """
        covered = [s.data for s in self.segments if s.source_phys is not None and not s.holds(self.entry_phys)]
        is_proven = self.excludes_elfcorehdr
        return not is_proven and any(d.startswith(_ZEROS, at) for d in covered for at in range(0, len(d), PAGE))

    @property
    def bytes_copied(self) -> int:
        """Bytes that the kernel copies."""
        return sum(len(segment.data) for segment in self.segments)


def room_for(possible_cpus: int, memory_ranges: int = MAX_MEMORY_RANGES, page: int = PAGE) -> int:
    """Return the bytes of room for a header of so many CPUs and memory ranges, whole pages of *page* bytes.

    Two more entries are for vmcoreinfo and the kernel text.
    """
    return whole_pages(ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE * (2 + possible_cpus + memory_ranges), page)


class Move(NamedTuple):
    """A header that moves: where to, and what points to it then."""

    place: int
    """Physical address of its new place."""
    room: int
    """Bytes of that place."""
    boot: bytes
    """The segment of the boot description, with the place in it."""
    boot_before: bytes
    """That segment as it was read."""


def prepare_move(image: CrashImage, machine: Machine, room: int, read_phys: ReadPhys) -> Move:
    """Find a free place of *room* bytes for the header, and change what points to it.  Nothing is hashed.

    The boot description tells the capture kernel where the header is, and must not let it use that place as RAM, so it
    changes with the place.

    :raise CannotTellError: there is no such place, or what points to the header cannot be changed
    """
    kimage, old_place = _known_places(image)
    boot = _boot_segment(image)
    if image.boot is None or boot is None or kimage.segment_at(kimage.entry_phys) is None:
        raise CannotTellError("the capture kernel's boot description or purgatory was not found")
    why_not = image.boot.why_cannot_move()
    if why_not is not None:
        raise CannotTellError(why_not)
    place = find_place(kimage, image.capture_ram, machine, reservation_of(machine, old_place), room)
    before = read_phys(boot.phys, boot.memsz)
    changed = image.boot.with_elfcorehdr_at(before, boot.phys, Range(place, place + room))
    return Move(place, room, changed, before)


def _boot_segment(image: CrashImage) -> Segment | None:
    """Return the segment that has the boot description; None where that is not known."""
    if image.kimage is None or image.boot is None or image.boot.phys is None:
        return None
    return image.kimage.segment_at(image.boot.phys)


class _Draft:
    """A plan in the making: the image as it will be, and what is written of it."""

    def __init__(self, kimage: Kimage, capture_ram: RangeList, read_phys: ReadPhys) -> None:
        """Start with the image as it is.

        :param capture_ram: physical ranges of the capture kernel's RAM that no part of the image but its segments has
        """
        self.kimage, self.capture_ram, self.read_phys = kimage, capture_ram, read_phys
        self.contents: dict[int, bytes] = {}
        """New contents, by physical address."""
        self.why: dict[int, str] = {}
        self.sources: dict[int, int] = {}
        """Where contents that no digest proves were read, by the physical address that they get."""

    def put(self, phys: int, data: bytes, why: str) -> None:
        """Change the contents of a segment."""
        self.contents[phys], self.why[phys] = data, why

    def replace(self, old_phys: int, segment: Segment, data: bytes, why: str) -> None:
        """Put *segment* into the place of the one at a physical address, where there is one."""
        others = (s for s in self.kimage.segments if s.phys != old_phys)
        self.kimage = self.kimage.with_segments(*others, segment)
        self.put(segment.phys, data, why)


def plan_update(
    image: CrashImage,
    machine: Machine,
    header: bytes,
    move: Move | None,
    read_phys: ReadPhys,
    say: Say = say_nothing,
) -> UpdatePlan:
    """Plan to put *header* into its place: the present one, where it fits, or that of *move*.

    Where purgatory's digest has to change, because it has the elfcorehdr or because something else changes as well,
    the whole image is read and hashed, once.  The capture kernel moves then, where control pages would overwrite it.

    :param say: told before that
    :raise CannotTellError: it cannot be proven that the rest of the image survives
    """
    kimage, old_place = _known_places(image)
    if kimage.segment_at(kimage.entry_phys) is None:
        raise CannotTellError("no segment of the loaded image holds its entry point")
    place, room = (old_place, elfcorehdr_room(image, machine.crashkernel) or 0) if move is None else move[:2]
    # The header is listed with a part of its room only, but all of it is taken.
    draft = _Draft(kimage, image.capture_ram.exclude(RangeList([(place, place + room)])), read_phys)
    listed = _listed_size(header, room, machine)
    why = "the new elfcorehdr" if move is None else f"the elfcorehdr, moved from {old_place:#x}"
    draft.replace(old_place, Segment(place, listed, listed), header, why)
    boot, changed = _boot_segment(image), dict[int, bytes]()
    if move is not None:
        if image.boot is None or boot is None:
            raise CannotTellError("the capture kernel's boot description was not found")
        changed[boot.phys] = move.boot
        draft.put(boot.phys, move.boot, image.boot.moved)
        draft.read_phys = overlaid({boot.phys: move.boot_before}, draft.read_phys)
    purgatory, copy = find_purgatory(kimage, draft.read_phys)
    if not purgatory:
        kernel = _move_kernel(machine, draft, set())
        if kernel is not None:
            draft.sources[kernel.place] = kernel.old.phys
        return _plan_start_page(image, machine, draft, None, place, say)
    regions = digest_regions(purgatory, kimage, machine.crashkernel)
    if regions is None:
        raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind")
    if any(region.memsz and kimage.segment_at(region.phys) is None for region in regions):
        # It read as zeros when the image was read; what is not known as a part of the image would not be kept.
        raise CannotTellError("purgatory does not read the same twice")
    purgatory_at = purgatory_phys(kimage)
    if move is None and not digest_covers(regions, old_place):
        draft.put(purgatory_at, purgatory, "purgatory")
        draft.sources[purgatory_at] = purgatory_at if copy is None else copy.phys
        draft.read_phys = _with_unchanged(draft, machine, purgatory_at)
        return _build_plan(draft, machine, False)
    if copy is not None:
        raise CannotTellError("the image starts from a page whose copy would have to change: only a reload can do that")
    kernel = _move_kernel(machine, draft, {purgatory_at})
    draft.read_phys = _with_unchanged(draft, machine, purgatory_at)
    say(_HASHED)
    moved = {} if kernel is None else {kernel.old.phys: kernel.place}
    purgatory = without_elfcorehdr(purgatory, kimage, old_place, draft.read_phys, changed, moved)
    if kernel is not None:
        purgatory = with_kernel_at(purgatory, kernel.entry_phys, kernel.entry_phys + kernel.place - kernel.old.phys)
    draft.put(purgatory_at, purgatory, _why_purgatory(move))
    if machine.unmaps_image:
        return _plan_start_page(image, machine, draft, kimage.entry_phys, place, say)
    return _build_plan(draft, machine, True)


def _why_purgatory(move: Move | None) -> str:
    return "purgatory, with a digest without the elfcorehdr" if move is None else "purgatory, with a new digest"


class _KernelMove(NamedTuple):
    """The capture kernel moves."""

    old: Segment
    place: int
    """Physical address of its new place."""
    entry_phys: int
    """Physical address of its first instruction in the present place."""


def _move_kernel(machine: Machine, draft: _Draft, listed: Collection[int]) -> _KernelMove | None:
    """Move the capture kernel where the control pages would overwrite it in its present place.

    From then on that place is the hole for control pages, and later updates list the header and purgatory only.

    :param listed: physical addresses of segments that are listed, besides those with new contents
    :return: None where it stays, because nothing is overwritten or there is no other place
    """
    movable = machine.architecture.movable_kernel
    written = {*listed, *draft.contents}
    if movable is None or _is_enough(draft.kimage, machine, written):
        return None
    found = movable.find(draft.kimage, draft.read_phys)
    old = None if found is None else draft.kimage.segment_at(found[0])
    if found is None or old is None:
        return None
    place = find_place_at_distance(draft.kimage, draft.capture_ram, machine, old, movable.alignment)
    if place is None:
        return None
    others = tuple(s for s in draft.kimage.segments if s != old)
    there = draft.kimage._replace(segments=(*others, old._replace(phys=place)))
    if not _is_enough(there, machine, {place, *written}):
        return None
    contents = draft.read_phys(old.phys, old.memsz)
    draft.read_phys = overlaid({old.phys: contents}, draft.read_phys)
    draft.replace(old.phys, old._replace(phys=place), contents, f"the kernel, moved from {old.phys:#x}")
    return _KernelMove(old, place, found[1])


def _is_enough(kimage: Kimage, machine: Machine, written: Collection[int]) -> bool:
    """Whether the control pages overwrite nothing when only these segments are listed, by physical address."""
    reserved = reservation_of(machine, min(written))
    try:
        listed = segments_to_list(kimage, written, reserved, machine.control_bytes)
    except CannotTellError:
        return False
    return {s.phys for s in listed} <= set(written)


def _plan_start_page(
    image: CrashImage, machine: Machine, draft: _Draft, start_phys: int | None, place: int, say: Say
) -> UpdatePlan:
    """Complete a plan with a page of code as the entry point, which has a digest table over the whole image.

    Arm64's kexec_file_load makes no purgatory: ``struct kimage`` has the device tree's address (``arch.dtb_mem``),
    which a kexec_load makes 0.  What no digest proves before is read twice.  And where the kernel unmaps what is
    listed, the page alone is listed in the end; its copy behind it tells a later update the rest.

    :param start_phys: physical address of what the page starts; None: the kernel
    :param place: physical address of the header
    """
    movable, boot = machine.architecture.movable_kernel, _boot_segment(image)
    found = None if movable is None else movable.find(draft.kimage, overlaid(draft.contents, draft.read_phys))
    if movable is None or boot is None or found is None:
        raise CannotTellError("the loaded image has no purgatory, or no kernel that is known")
    page = machine.architecture.page_size
    copies = 2 if machine.unmaps_image else 1
    at = find_place(draft.kimage, draft.capture_ram, machine, reservation_of(machine, place), copies * page)
    draft.read_phys = overlaid(draft.contents, _with_unchanged(draft, machine, place))
    say("the image is hashed once, to give it a digest")
    regions = [(s.phys, 0 if s.phys == place else s.memsz) for s in draft.kimage.segments]
    code = movable.start_code(found[1] if start_phys is None else start_phys, boot.phys)
    start = new_purgatory(code, regions, page, draft.read_phys)
    draft.kimage = draft.kimage._replace(entry_phys=at)
    for number in range(copies):
        phys = at + number * page
        why = "its copy, which stays readable" if number else "a page that starts the image, with a digest"
        draft.replace(phys, Segment(phys, page, page), start, why)
    return _build_plan(draft, machine, True)


def why_no_plan(image: CrashImage, machine: Machine) -> str | None:
    """Return why an update in place cannot be planned, without hashing anything; None where it can."""
    try:
        kimage, elfcorehdr_phys = _known_places(image)
        control = kimage.control_page_phys
        if control is None or reservation_of(machine, elfcorehdr_phys).end < control or not control:
            raise CannotTellError("the control pages of the loaded image were not found in struct kimage")
        changed = (purgatory_phys(kimage), elfcorehdr_phys)
        segments_to_list(kimage, changed, reservation_of(machine, elfcorehdr_phys), machine.control_bytes)
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


def check_result(plan: UpdatePlan, now: Kimage) -> None:
    """Check what is loaded after the plan was carried out, but for the header.

    :raise CrashHotplugError: another image is loaded
    :raise TornImageError: a segment may have been overwritten: the image has to be loaded anew
    """
    if now.entry_phys != plan.entry_phys:
        raise CrashHotplugError("the image that was written is not the one that is there: reload the crash image")
    control = now.control_page_phys
    # control_page is the last byte in use on some kernels, the first free one on others.
    if not control or control > plan.control_pages.end or any(kept.start < control for kept in plan.kept):
        raise TornImageError("control pages may have overwritten a segment: reload the crash image")


def check_capture_kernel_fits(init_size: int, initrd_size: int, room: int, machine: Machine) -> None:
    """Check, before anything is loaded, that a header of *room* bytes can do and that the image can fit.

    :param init_size: bytes that the capture kernel takes while it starts
    :raise InputError: *room* is too small for this machine as it is, or larger than any elfcorehdr can be
    :raise NoRoomError: the memory reserved for the capture kernel is too small
    """
    now = room_for(len(machine.cpus), len(machine.dumpable_ram) + 1, machine.architecture.page_size)
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
    page = machine.architecture.page_size
    needed = sum(whole_pages(size, page) for size in (init_size, initrd_size, room)) + machine.control_bytes
    if needed > largest:
        raise NoRoomError(
            f"the reserved region ({human_size(largest)}) is too small: kernel, initrd, the elfcorehdr's room and "
            f"control pages need at least {human_size(needed)}; nothing was changed"
        )


def _known_places(image: CrashImage) -> tuple[Kimage, int]:
    if image.kimage is None or image.elfcorehdr_phys is None:
        raise CannotTellError("struct kimage of the loaded image could not be read")
    return image.kimage, image.elfcorehdr_phys


def _listed_size(header: bytes, room: int, machine: Machine) -> int:
    """Return the memsz with which the header's segment is listed: some entries more than it has, within its room."""
    page = machine.architecture.page_size
    spare = min(len(header) + _SPARE_ENTRIES * PROGRAM_HEADER_SIZE, room // page * page)
    return whole_pages(max(len(header), spare), page)


def _build_plan(draft: _Draft, machine: Machine, excludes_elfcorehdr: bool) -> UpdatePlan:
    """Complete a plan: find the segments that must be listed besides those with new contents.

    :raise CannotTellError: the control pages could overwrite a segment
    """
    reserved = reservation_of(machine, min(draft.contents))
    bound = machine.control_bytes
    listed = segments_to_list(draft.kimage, draft.contents, reserved, bound)
    if len(listed) > KEXEC_SEGMENT_MAX:
        raise CannotTellError(f"{len(listed)} segments would have to be listed; kexec_load takes {KEXEC_SEGMENT_MAX}")
    hole = lowest_hole(reserved, (s.range for s in listed), bound)
    if hole is None:
        raise CannotTellError(f"the reserved region has no hole of {bound} bytes for control pages")
    segments = []
    for s in listed:
        if s.phys in draft.contents:
            source = draft.sources.get(s.phys)
            segments.append(NewSegment(s.phys, draft.contents[s.phys], s.memsz, draft.why[s.phys], source))
        else:
            data = draft.read_phys(s.phys, s.memsz)
            segments.append(NewSegment(s.phys, data, s.memsz, "as it is, to keep its place", s.phys))
    kept = tuple(s.range for s in draft.kimage.segments if s not in listed)
    last = _makes_readable(draft.kimage, machine, segments)
    return UpdatePlan(draft.kimage.entry_phys, tuple(segments), kept, hole, excludes_elfcorehdr, last)


def _makes_readable(kimage: Kimage, machine: Machine, segments: Iterable[NewSegment]) -> NewSegment | None:
    """Return the start page, where the kernel unmaps what is listed and listing it alone overwrites nothing."""
    if not machine.unmaps_image or not _is_enough(kimage, machine, {kimage.entry_phys}):
        return None
    return next((s for s in segments if s.phys == kimage.entry_phys), None)


def _with_unchanged(draft: _Draft, machine: Machine, purgatory_at: int) -> ReadPhys:
    """Return a reader that has read the segments that are listed besides those that change, once and for all.

    A digest that is computed through it proves the bytes that kexec_load is going to be given.

    :raise CannotTellError: the control pages could overwrite a segment
    """
    changed = {purgatory_at, *draft.contents}
    listed = segments_to_list(draft.kimage, changed, reservation_of(machine, min(changed)), machine.control_bytes)
    read = {s.phys: draft.read_phys(s.phys, s.memsz) for s in listed if s.phys not in changed}
    return overlaid(read, draft.read_phys)
