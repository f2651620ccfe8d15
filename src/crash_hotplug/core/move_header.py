"""Move an elfcorehdr that outgrew its segment: a new place, and all that points to it, in one kexec_load.

The capture kernel finds the header by ``elfcorehdr=`` and must not use its place as RAM, so command line and E820
table of the zero page change with it, and purgatory's digest with them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import replace

from crash_hotplug.core.elfcorehdr import Dialect
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import (
    E820_COUNT,
    E820_ENTRY,
    E820_MAX,
    E820_RAM,
    E820_RESERVED,
    E820_TABLE,
    PAGE,
    CrashImage,
    Kimage,
    Segment,
    e820_table,
    elfcorehdr_argument,
)
from crash_hotplug.core.in_place import ReadPhys, control_pages_bound, find_digest_table, with_new_digest
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.purgatory import purgatory_phys
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.update_plan import UpdatePlan, build_plan, known_places

MAX_MEMORY_RANGES = 8192
"""Memory ranges that a moved header has room for, as the kernel's CRASH_MAX_MEMORY_RANGES."""
_CMDLINE_SIZE = 0x238


def room_for(possible_cpus: int, memory_ranges: int = MAX_MEMORY_RANGES) -> int:
    """Return the bytes of a segment for a header of so many CPUs and memory ranges, whole pages.

    Two entries more are for vmcoreinfo and the kernel text.
    """
    return whole_pages(64 + 56 * (2 + possible_cpus + memory_ranges))


def whole_pages(size: int) -> int:
    """Return *size* bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def plan_move(
    image: CrashImage, machine: Machine, room: int, read_phys: ReadPhys, header: bytes | None = None
) -> UpdatePlan:
    """Plan to move the header of *image* to a free place of *room* bytes.

    :param header: what to write there instead of the header as it is
    :raise CannotTellError: there is no such place, or what points to the header cannot be changed
    """
    kimage, elfcorehdr_phys = known_places(image)
    if image.boot_params_phys is None or image.cmdline_phys is None or image.cmdline is None:
        raise CannotTellError("the zero page and command line of the capture kernel were not found")
    zero_page_segment = kimage.segment_at(image.boot_params_phys)
    purgatory_segment = kimage.segment_at(kimage.entry_phys)
    if zero_page_segment is None or purgatory_segment is None:
        raise CannotTellError("the capture kernel's zero page or purgatory was not found")
    place = find_place(image, machine, room)
    parameters = bytearray(read_phys(zero_page_segment.phys, zero_page_segment.memsz))
    zero_page_at = image.boot_params_phys - zero_page_segment.phys
    _change_command_line(parameters, image.cmdline_phys - zero_page_segment.phys, zero_page_at, image.cmdline, place)
    _reserve(parameters, zero_page_at, Range(place, place + room))

    def read_changed(phys: int, length: int) -> bytes:
        return bytes(parameters[:length]) if phys == zero_page_segment.phys else read_phys(phys, length)

    purgatory = read_phys(purgatory_segment.phys, purgatory_segment.memsz)
    table = find_digest_table(purgatory, kimage, read_phys)
    contents = {
        zero_page_segment.phys: bytes(parameters),
        purgatory_phys(kimage): with_new_digest(purgatory, table, elfcorehdr_phys, read_changed),
        place: image.elfcorehdr if header is None else header,
    }
    why = {
        zero_page_segment.phys: "the zero page, with the new place in command line and E820 table",
        purgatory_segment.phys: "purgatory, with a new digest",
        place: f"the elfcorehdr, moved from {elfcorehdr_phys:#x}",
    }
    return build_plan(_with_header_at(kimage, elfcorehdr_phys, place, room), machine, contents, why, read_phys, True)


def find_place(image: CrashImage, machine: Machine, room: int) -> int:
    """Return the physical address of a free place: as high as possible, below the segments at the region's end.

    Control pages come from the lowest holes, so that they stay apart.

    :raise CannotTellError: there is none
    """
    kimage, elfcorehdr_phys = known_places(image)
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


def _with_header_at(kimage: Kimage, old: int, new: int, room: int) -> Kimage:
    others = [s for s in kimage.segments if s.phys != old]
    return replace(kimage, segments=tuple(sorted([*others, Segment(new, room, room)], key=lambda s: s.phys)))


def _change_command_line(parameters: bytearray, at: int, zero_page_at: int, cmdline: str, place: int) -> None:
    """Write the new ``elfcorehdr=``, in the words of the loader, into the segment of the zero page."""
    argument = elfcorehdr_argument(cmdline)
    if argument is None:
        raise CannotTellError("the capture kernel's command line has no elfcorehdr=")
    word = f"{place >> 10}K" if argument[1] is Dialect.KEXEC_TOOLS else hex(place)
    old = cmdline.encode("ascii", "replace")
    new = re.sub(rb"(^|\s)elfcorehdr=\S+", rb"\g<1>elfcorehdr=" + word.encode(), old)
    (longest,) = struct.unpack_from("<I", parameters, zero_page_at + _CMDLINE_SIZE)
    space = bytes(parameters[at : at + max(len(old), len(new)) + 1])
    if not at >= 0 or not space.startswith(old) or space[len(old) :].strip(b"\0") or len(space) <= len(new):
        raise CannotTellError("the capture kernel's command line has no room for the new place of its elfcorehdr")
    if len(new) > longest:
        raise CannotTellError(f"the capture kernel's command line would have {len(new)} bytes; it takes {longest}")
    parameters[at : at + len(space)] = new.ljust(len(space), b"\0")


def _reserve(parameters: bytearray, zero_page_at: int, place: Range) -> None:
    """Make *place* a reserved range of the E820 table: the capture kernel must not use it as RAM."""
    entries = []
    for whole, kind in e820_table(bytes(parameters[zero_page_at : zero_page_at + PAGE])):
        if kind == E820_RAM and whole.overlaps(place):
            entries += [
                (Range(whole.start, place.start), kind),
                (place, E820_RESERVED),
                (Range(place.end, whole.end), kind),
            ]
        else:
            entries.append((whole, kind))
    entries = [(part, kind) for part, kind in entries if part.size > 0]
    if len(entries) > E820_MAX:
        raise CannotTellError(f"the capture kernel's E820 table has no room: {len(entries)} entries of {E820_MAX}")
    parameters[zero_page_at + E820_COUNT] = len(entries)
    for number, (part, kind) in enumerate(entries):
        at = zero_page_at + E820_TABLE + number * E820_ENTRY.size
        E820_ENTRY.pack_into(parameters, at, part.start, part.size, kind)
