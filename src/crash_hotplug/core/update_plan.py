"""The plan of an update in place: which segments one kexec_load lists, with what contents, and why.

A plan is made before anything is touched, and is not made where it cannot be proven safe.  Why it is safe is told in
docs/in-place.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.handler import MixedImageError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage, Kimage
from crash_hotplug.core.in_place import (
    ReadPhys,
    control_pages_bound,
    find_digest_table,
    lowest_hole,
    segments_to_list,
    without_elfcorehdr,
)
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.purgatory import digest_covers, digest_regions, purgatory_phys
from crash_hotplug.core.ranges import Range


class NewSegment(NamedTuple):
    """One segment as kexec_load takes it."""

    phys: int
    """Physical address, page aligned."""
    data: bytes
    memsz: int
    """Bytes it takes, a multiple of the page size; behind *data* the kernel writes zeros."""
    why: str
    """Why it is listed, for people."""


@dataclass(frozen=True)
class UpdatePlan:
    """What one kexec_load(2) is to be given, and what is known to hold afterwards."""

    entry_phys: int
    segments: tuple[NewSegment, ...]
    kept: tuple[Range, ...]
    """Segments that are not listed and stay as they are: physical ranges."""
    control_pages: Range
    """Where the kernel's control pages can lie at most: below it, or in it."""
    takes_over: bool
    """Whether the elfcorehdr leaves purgatory's digest with this update."""

    @property
    def bytes_copied(self) -> int:
        """Bytes that the kernel copies."""
        return sum(len(segment.data) for segment in self.segments)


def plan_update(image: CrashImage, machine: Machine, header: bytes, read_phys: ReadPhys) -> UpdatePlan:
    """Plan to put *header* into the place of the one that *image* has.

    Where the elfcorehdr is still part of purgatory's digest, the whole image is read and hashed, once.

    :raise CannotTellError: it cannot be proven that the rest of the image survives
    """
    kimage, elfcorehdr_phys = known_places(image)
    purgatory_at = purgatory_phys(kimage)
    purgatory, takes_over = _purgatory_without_header(kimage, machine, elfcorehdr_phys, read_phys)
    contents = {purgatory_at: purgatory, elfcorehdr_phys: header}
    why = {purgatory_at: "purgatory, with a digest without the elfcorehdr" if takes_over else "purgatory"}
    why[elfcorehdr_phys] = "the new elfcorehdr"
    return build_plan(kimage, machine, contents, why, read_phys, takes_over)


def why_no_plan(image: CrashImage, machine: Machine) -> str | None:
    """Return why an update in place cannot be planned, without hashing anything; None where it can."""
    try:
        kimage, elfcorehdr_phys = known_places(image)
        reserved = _reserved(machine, elfcorehdr_phys)
        changed = (purgatory_phys(kimage), elfcorehdr_phys)
        segments_to_list(kimage, changed, reserved, control_pages_bound(machine.ram))
    except CannotTellError as error:
        return str(error)
    return None


def known_places(image: CrashImage) -> tuple[Kimage, int]:
    """Return the image's ``struct kimage`` and the physical address of its elfcorehdr.

    :raise CannotTellError: they are not known
    """
    if image.kimage is None or image.elfcorehdr_phys is None:
        raise CannotTellError("struct kimage of the loaded image could not be read")
    return image.kimage, image.elfcorehdr_phys


def build_plan(
    kimage: Kimage,
    machine: Machine,
    contents: dict[int, bytes],
    why: dict[int, str],
    read_phys: ReadPhys,
    takes_over: bool,
) -> UpdatePlan:
    """Complete a plan: find the segments that must be listed besides those with new *contents*, by physical address.

    :raise CannotTellError: the control pages could overwrite a segment
    """
    reserved = _reserved(machine, min(contents))
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
    return UpdatePlan(kimage.entry_phys, tuple(segments), kept, hole, takes_over)


def check_result(plan: UpdatePlan, now: Kimage, header_there: bytes, header_meant: bytes) -> None:
    """Check what is loaded after the plan was carried out.

    :raise CrashHotplugError: the header is not the one that was meant (the kernel's own handler may have come since)
    :raise MixedImageError: a segment may have been overwritten: the image has to be loaded anew
    """
    if not header_there.startswith(header_meant) or now.entry_phys != plan.entry_phys:
        raise CrashHotplugError("the header that was written is not the one that is there: reload the crash image")
    control = now.control_page_phys
    # control_page is the last byte in use on some kernels, the first free one on others.
    if control is None or any(kept.start < control for kept in plan.kept):
        raise MixedImageError("control pages may have overwritten a segment: reload the crash image")


def verify_digest(image: CrashImage, machine: Machine, read_phys: ReadPhys) -> None:
    """Compute purgatory's digest over the whole image, as purgatory will after a panic.

    :raise CrashHotplugError: it is not the one that purgatory has: a panic now would leave no dump
    :raise CannotTellError: the image is not known well enough
    """
    kimage, _elfcorehdr_phys = known_places(image)
    segment = kimage.segment_at(kimage.entry_phys)
    purgatory = b"" if segment is None else read_phys(segment.phys, segment.memsz)
    if digest_regions(purgatory, kimage, machine.crashkernel) is None:
        raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind")
    try:
        find_digest_table(purgatory, kimage, read_phys)
    except CannotTellError:
        raise CrashHotplugError(
            "purgatory's digest does not fit the loaded image: a panic now would leave no dump; reload the crash image"
        ) from None


def _purgatory_without_header(
    kimage: Kimage, machine: Machine, elfcorehdr_phys: int, read_phys: ReadPhys
) -> tuple[bytes, bool]:
    segment = kimage.segment_at(kimage.entry_phys)
    if segment is None:
        raise CannotTellError("no segment of the loaded image holds its entry point")
    purgatory = read_phys(segment.phys, segment.memsz)
    regions = digest_regions(purgatory, kimage, machine.crashkernel)
    if regions is None:
        raise CannotTellError("purgatory's digest table was not found: the image may be of an unknown kind")
    if not digest_covers(regions, elfcorehdr_phys):
        return purgatory, False
    table = find_digest_table(purgatory, kimage, read_phys)
    return without_elfcorehdr(purgatory, table, elfcorehdr_phys, read_phys) or purgatory, True


def _reserved(machine: Machine, phys: int) -> Range:
    """Return the reserved range that holds *phys*: the kernel takes segments and control pages from one only."""
    for reserved in machine.crashkernel:
        if reserved.start <= phys < reserved.end:
            return reserved
    raise CannotTellError(f"{phys:#x} does not lie in the memory reserved for the capture kernel")
