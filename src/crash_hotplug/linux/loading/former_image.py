"""The image that is loaded now, kept while another one is loaded in its place, to be put back where that fails.

The kernel drops the former image before it looks at the new one.  Its segments are still known then, read through
/proc/kcore, and one kexec_load that lists all of them makes it what it was.
"""

from __future__ import annotations

from typing import NamedTuple

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.image import KEXEC_SEGMENT_MAX, CrashImage
from crash_hotplug.core.update_plan import NewSegment, verify_digest
from crash_hotplug.linux.crash_image import find_crash_image
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import read_kexec_state
from crash_hotplug.linux.loading.kexec_load import KEXEC_UPDATE_ELFCOREHDR, load_crash_image
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot


class FormerImage(NamedTuple):
    """A whole image, as kexec_load takes it."""

    entry_phys: int
    segments: tuple[NewSegment, ...]
    flags: int

    def read_phys(self, phys: int, length: int) -> bytes:
        """Return bytes of the image at a physical address.

        :raise CannotTellError: no segment has all of them
        """
        for s in self.segments:
            if s.phys <= phys and phys + length <= s.phys + s.memsz:
                return s.data[phys - s.phys : phys - s.phys + length]
        raise CannotTellError(f"no segment of the image has {length} bytes at {phys:#x}")


def keep_former_image(sysroot: Sysroot) -> FormerImage | None:
    """Read the loaded image out of the reserved region; None where none is loaded or it cannot be read whole."""
    kept = _keep(sysroot)
    return None if kept is None else kept[1]


def keep_whole_image(sysroot: Sysroot) -> FormerImage | None:
    """Keep the loaded image as :func:`keep_former_image` does, if purgatory will find it whole; else None.

    With no image a panic reboots the machine; with one whose digest does not fit it hangs in purgatory.
    """
    kept = _keep(sysroot)
    if kept is None:
        return None
    image, former = kept
    try:
        verify_digest(image, read_machine(sysroot, only_for_header=True), former.read_phys)
    except CrashHotplugError:
        return None
    return former


def _keep(sysroot: Sysroot) -> tuple[CrashImage, FormerImage] | None:
    try:
        state = read_kexec_state(sysroot)
        if state.image_loaded is False:
            return None
        image = find_crash_image(sysroot, read_iomem(sysroot).crashkernel)
        kimage = image.kimage
        if kimage is None or len(kimage.segments) > KEXEC_SEGMENT_MAX:
            return None
        with Kcore(sysroot) as kcore:
            segments = tuple(
                NewSegment(s.phys, kcore.read_phys(s.phys, s.memsz), s.memsz, "as it was") for s in kimage.segments
            )
    except CrashHotplugError:
        return None
    flags = KEXEC_UPDATE_ELFCOREHDR if state.kernel_updates_image else 0
    return image, FormerImage(kimage.entry_phys, segments, flags)


def put_back(former: FormerImage | None, sysroot: Sysroot) -> str:
    """Load the former image again unless one is loaded; say what is loaded now, for people."""
    try:
        is_loaded = read_kexec_state(sysroot).image_loaded
        if is_loaded is None:
            return "whether a crash image is loaded now cannot be told"
        if is_loaded:
            return "the former image is still loaded" if former is not None else "an image is loaded"
        if former is None:
            return "no crash image is loaded now"
        load_crash_image(former.entry_phys, former.segments, former.flags)
    except CrashHotplugError as error:
        return f"no crash image is loaded now, and the former one could not be put back: {error}"
    return "the former image was put back"
