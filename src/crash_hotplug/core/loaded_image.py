# SPDX-License-Identifier: MIT
"""Read the loaded crash image out of physical memory: segments, elfcorehdr, zero page, command line."""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import Architecture, BootDescription, whole_pages
from crash_hotplug.core.elf import ELF_HEADER_SIZE
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import CrashImage, Kimage, Segment, header_size
from crash_hotplug.core.purgatory import ReadPhys, digest_regions, find_backup_region, find_purgatory
from crash_hotplug.core.ranges import Range, RangeList

_ET_CORE = 4


class UnmappedImageError(CannotTellError):
    """The kernel has unmapped the loaded image: none of it can be read while it is loaded."""


def read_loaded_image(
    architecture: Architecture,
    kimage: Kimage,
    crashkernel: RangeList,
    backup_source: Range | None,
    read_phys: ReadPhys,
    updated_by_kernel: bool = False,
) -> CrashImage:
    """Read the image that ``struct kimage`` describes.

    :param crashkernel: the reserved physical ranges
    :param backup_source: the physical range that kexec-tools backs up: the first RAM below 640 KiB; None: not known
    :raise CannotTellError: no segment is an elfcorehdr
    """
    purgatory, copy = find_purgatory(kimage, read_phys)
    named = digest_regions(purgatory, kimage, crashkernel) or ()
    kimage = _whole_image(kimage, (*named, copy) if named and copy is not None else named)
    boot = architecture.find_boot_description(kimage, read_phys)
    header = _find_elfcorehdr(kimage, read_phys) or _described_elfcorehdr(boot, read_phys)
    if header is None:
        raise _why_no_elfcorehdr(kimage, read_phys)
    if kimage.segment_at(header.phys) is None:
        kimage = kimage.with_segments(*kimage.segments, header)
    return CrashImage(
        _read_header(header, read_phys),
        header.phys,
        boot,
        kimage,
        # kexec-tools backs up the first range (get_backup_area() in crashdump-x86.c).
        backup_region_phys=None if backup_source is None else find_backup_region(purgatory, named, backup_source),
        updated_by_kernel=updated_by_kernel,
    )


def _whole_image(kimage: Kimage, named: tuple[Segment, ...]) -> Kimage:
    """Add the segments that an update in place did not list: purgatory's digest table names them."""
    listed = {segment.phys for segment in kimage.segments}
    unlisted = [segment for segment in named if segment.phys not in listed and segment.memsz]
    return kimage.with_segments(*kimage.segments, *unlisted)


def _find_elfcorehdr(kimage: Kimage, read_phys: ReadPhys) -> Segment | None:
    return next((segment for segment in kimage.segments if _is_core_header(segment.phys, read_phys)), None)


def _is_core_header(phys: int, read_phys: ReadPhys) -> bool:
    # Purgatory is no ELF file any more once it is loaded; only the elfcorehdr is a core file's header.
    start = read_phys(phys, ELF_HEADER_SIZE)
    return start[:4] == b"\x7fELF" and int.from_bytes(start[16:18], "little") == _ET_CORE


def _described_elfcorehdr(boot: BootDescription | None, read_phys: ReadPhys) -> Segment | None:
    """Return the place of a header that no segment has: the last load listed one page, to keep the rest readable."""
    phys = None if boot is None else boot.elfcorehdr_phys
    room = None if boot is None or phys is None else boot.elfcorehdr_room(phys, None, ())
    if phys is None or room is None or not _is_core_header(phys, read_phys):
        return None
    return Segment(phys, whole_pages(room), room)


def _why_no_elfcorehdr(kimage: Kimage, read_phys: ReadPhys) -> CannotTellError:
    if any(any(read_phys(segment.phys, ELF_HEADER_SIZE)) for segment in kimage.segments):
        return CannotTellError("none of the loaded crash image's segments is an elfcorehdr")
    return UnmappedImageError(
        "/proc/kcore shows zeros in place of the loaded crash image (arm64 kernels before 6.4 unmap it): crash-hotplug "
        "update --strategy auto unloads it for a moment, to read it and bring it up to date"
    )


def _read_header(segment: Segment, read_phys: ReadPhys) -> bytes:
    needed = header_size(read_phys(segment.phys, ELF_HEADER_SIZE)) or ELF_HEADER_SIZE
    return read_phys(segment.phys, min(whole_pages(needed), segment.memsz))
