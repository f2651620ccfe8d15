# SPDX-License-Identifier: MIT
"""Read the loaded crash image out of physical memory: segments, elfcorehdr, zero page, command line."""

from __future__ import annotations

from crash_hotplug.core.architecture import PAGE, whole_pages
from crash_hotplug.core.boot_params import cmdline_phys, is_boot_params
from crash_hotplug.core.elf import ELF_HEADER_SIZE, ElfFormatError, parse_core_header, program_headers_end
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.purgatory import ReadPhys, digest_regions, find_backup_region, read_purgatory
from crash_hotplug.core.ranges import Range, RangeList

_CMDLINE_MAX = 4096
_ET_CORE = 4


def read_loaded_image(
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
    image = CrashImage(
        _read_header(header, read_phys),
        header.phys,
        kimage=kimage,
        # kexec-tools backs up the first range (get_backup_area() in crashdump-x86.c).
        backup_region_phys=None if backup_source is None else find_backup_region(purgatory, named, backup_source),
        updated_by_kernel=updated_by_kernel,
    )
    return _with_boot_params(image, kimage, read_phys)


def _whole_image(kimage: Kimage, named: tuple[Segment, ...]) -> Kimage:
    """Add the segments that an update in place did not list: purgatory's digest table names them."""
    listed = {segment.phys for segment in kimage.segments}
    unlisted = [segment for segment in named if segment.phys not in listed and segment.memsz]
    return kimage._replace(segments=tuple(sorted([*kimage.segments, *unlisted], key=lambda s: s.phys)))


def _find_elfcorehdr(kimage: Kimage, read_phys: ReadPhys) -> Segment:
    for segment in kimage.segments:
        start = read_phys(segment.phys, ELF_HEADER_SIZE)
        # Purgatory is no ELF file any more once it is loaded; only the elfcorehdr is a core file's header.
        if start[:4] == b"\x7fELF" and int.from_bytes(start[16:18], "little") == _ET_CORE:
            return segment
    raise CannotTellError("none of the loaded crash image's segments is an elfcorehdr")


def _read_header(segment: Segment, read_phys: ReadPhys) -> bytes:
    start = read_phys(segment.phys, ELF_HEADER_SIZE)
    try:
        needed = program_headers_end(parse_core_header(start, "the loaded elfcorehdr")[0])
    except ElfFormatError:
        needed = ELF_HEADER_SIZE  # the parser of the header reports the error
    return read_phys(segment.phys, min(whole_pages(needed), segment.memsz))


def _with_boot_params(image: CrashImage, kimage: Kimage, read_phys: ReadPhys) -> CrashImage:
    """Add the zero page and the command line, where there is a zero page."""
    boot_params_at = _find_boot_params(kimage, read_phys)
    if boot_params_at is None:
        return image
    boot_params = read_phys(boot_params_at, PAGE)
    command_at = cmdline_phys(boot_params)
    cmdline = _read_cmdline(kimage, command_at, read_phys)
    return image._replace(
        boot_params=boot_params, boot_params_phys=boot_params_at, cmdline=cmdline, cmdline_phys=command_at
    )


def _find_boot_params(kimage: Kimage, read_phys: ReadPhys) -> int | None:
    for segment in kimage.segments:
        # Both loaders put the zero page first in a segment of its own.
        page = read_phys(segment.phys, min(PAGE, segment.memsz))
        if is_boot_params(page) and kimage.segment_at(cmdline_phys(page)) is not None:
            return segment.phys
    return None


def _read_cmdline(kimage: Kimage, phys: int, read_phys: ReadPhys) -> str | None:
    segment = kimage.segment_at(phys)
    if segment is None:
        return None
    data = read_phys(phys, min(_CMDLINE_MAX, segment.range.end - phys))
    return data.split(b"\0")[0].decode("ascii", "replace")
