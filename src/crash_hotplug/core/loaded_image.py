# SPDX-License-Identifier: MIT
"""Read the loaded crash image out of physical memory: segments, elfcorehdr, zero page, command line."""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import Architecture, whole_pages
from crash_hotplug.core.elf import ELF_HEADER_SIZE, ElfFormatError, parse_core_header, program_headers_end
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.purgatory import ReadPhys, digest_regions, find_backup_region, read_purgatory
from crash_hotplug.core.ranges import Range, RangeList

_ET_CORE = 4


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
    purgatory = read_purgatory(kimage, read_phys)
    named = digest_regions(purgatory, kimage, crashkernel) or ()
    kimage = _whole_image(kimage, named)
    header = _find_elfcorehdr(kimage, read_phys)
    return CrashImage(
        _read_header(header, read_phys),
        header.phys,
        architecture.find_boot_description(kimage, read_phys),
        kimage,
        # kexec-tools backs up the first range (get_backup_area() in crashdump-x86.c).
        backup_region_phys=None if backup_source is None else find_backup_region(purgatory, named, backup_source),
        updated_by_kernel=updated_by_kernel,
    )


def _whole_image(kimage: Kimage, named: tuple[Segment, ...]) -> Kimage:
    """Add the segments that an update in place did not list: purgatory's digest table names them."""
    listed = {segment.phys for segment in kimage.segments}
    unlisted = [segment for segment in named if segment.phys not in listed and segment.memsz]
    return kimage._replace(segments=tuple(sorted([*kimage.segments, *unlisted], key=lambda s: s.phys)))


def _find_elfcorehdr(kimage: Kimage, read_phys: ReadPhys) -> Segment:
    is_readable = False
    for segment in kimage.segments:
        start = read_phys(segment.phys, ELF_HEADER_SIZE)
        is_readable |= any(start)
        # Purgatory is no ELF file any more once it is loaded; only the elfcorehdr is a core file's header.
        if start[:4] == b"\x7fELF" and int.from_bytes(start[16:18], "little") == _ET_CORE:
            return segment
    if not is_readable:
        raise CannotTellError(
            "/proc/kcore shows zeros in place of the loaded crash image (arm64 kernels before 6.4 unmap it), so only a "
            "reload can bring it up to date: crash-hotplug update --strategy reload"
        )
    raise CannotTellError("none of the loaded crash image's segments is an elfcorehdr")


def _read_header(segment: Segment, read_phys: ReadPhys) -> bytes:
    start = read_phys(segment.phys, ELF_HEADER_SIZE)
    try:
        needed = program_headers_end(parse_core_header(start, "the loaded elfcorehdr")[0])
    except ElfFormatError:
        needed = ELF_HEADER_SIZE  # the parser of the header reports the error
    return read_phys(segment.phys, min(whole_pages(needed), segment.memsz))
