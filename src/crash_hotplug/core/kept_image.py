# SPDX-License-Identifier: MIT
"""The previous image: kept while another one is loaded in its place, and put back where that fails."""

from __future__ import annotations

from contextlib import closing

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage, Segment
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.purgatory import ReadPhys, read_purgatory, verify_digest
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crash_hotplug.core.crash_machine import CrashMachine
    from crash_hotplug.core.steps import Steps


class KeptImage(NamedTuple):
    """A whole image, kept while another one is loaded in its place, to be put back where that fails.

    The kernel drops the previous image before it checks the new one.  One kexec_load that lists all of its segments
    makes it what it was.
    """

    entry_phys: int
    segments: tuple[NewSegment, ...]
    updated_by_kernel: bool

    def read_phys(self, phys: int, length: int) -> bytes:
        """Return bytes of the image at a physical address.

        :raise CannotTellError: no segment has all of them
        """
        for s in self.segments:
            if s.phys <= phys and phys + length <= s.phys + s.memsz:
                return s.data[phys - s.phys : phys - s.phys + length]
        raise CannotTellError(f"no segment of the image has {length} bytes at {phys:#x}")


def keep(image: CrashImage, crashkernel: RangeList, read_phys: ReadPhys) -> KeptImage | None:
    """Read all of an image; None where its digest cannot be shown to fit.

    With no image a panic reboots the machine; with a damaged image it hangs in purgatory.  The digest does not cover
    purgatory, nor the elfcorehdr after an update: these two have to read the same twice, as /proc/kcore may show zeros.

    :param crashkernel: the reserved physical ranges
    """
    kimage = image.kimage
    if kimage is None or len(kimage.segments) > KEXEC_SEGMENT_MAX:
        return None
    start = kimage.segment_at(kimage.entry_phys)

    def contents(s: Segment) -> bytes:
        purgatory = read_purgatory(kimage, read_phys) if s == start else b""  # from its copy, where it is unmapped
        return purgatory or read_phys(s.phys, s.memsz)

    try:
        segments = tuple(NewSegment(s.phys, contents(s), s.memsz, "as it was") for s in kimage.segments)
        kept = KeptImage(kimage.entry_phys, segments, image.updated_by_kernel)
        verify_digest(image, crashkernel, kept.read_phys)
        header_phys = image.elfcorehdr_phys
        is_same = header_phys is None or kept.read_phys(header_phys, len(image.elfcorehdr)) == image.elfcorehdr
        is_same &= start is None or contents(start) == kept.read_phys(start.phys, start.memsz)
    except CrashHotplugError:
        return None
    return kept if is_same else None


def keep_image(machine: CrashMachine) -> KeptImage | None:
    """Keep the loaded image; None where none is loaded, or :func:`keep` does not keep it."""
    try:
        if machine.image_loaded() is False:
            return None
        with closing(machine.observe()) as observation:
            if not observation.identity():
                return None
            kept = keep(observation.image(), observation.machine().crashkernel, observation.read_phys)
            observation.confirm()
            return kept
    except CrashHotplugError:
        return None


def put_back(machine: CrashMachine, kept: KeptImage | None) -> Steps[str]:
    """Load the previous image again unless one is loaded, and say what is loaded now, for people."""
    try:
        is_loaded = machine.image_loaded()
        if is_loaded is None:
            return "whether a crash image is loaded now cannot be told"
        if is_loaded:
            return "the previous image is still loaded" if kept is not None else "an image is loaded"
        if kept is None:
            return "no crash image is loaded now"
        yield from machine.kexec_load(kept.entry_phys, kept.segments, kept.updated_by_kernel)
    except CrashHotplugError as error:
        return f"no crash image is loaded now, and the previous one could not be put back: {error}"
    return "the previous image was put back"
