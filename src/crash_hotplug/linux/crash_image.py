"""The loaded crash image: out of the reserved region of a live machine, or out of a saved tree's crash-image/."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from crash_hotplug.core.elf import ELF_HEADER_SIZE, ElfFormatError, parse_core_header, program_headers_end
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.image import (
    PAGE,
    CrashImage,
    Kimage,
    Segment,
    cmdline_phys,
    elfcorehdr_argument,
    is_boot_params,
    parse_kimage,
)
from crash_hotplug.core.purgatory import digest_regions, find_backup_region
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.btf_file import kimage_layouts
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import Sysroot

SAVED = "/crash-image"
_CMDLINE_MAX = 4096
_HEADER_LIMIT = 8 << 20


def read_crash_image(sysroot: Sysroot, crashkernel: RangeList) -> CrashImage:
    """Read the loaded image's elfcorehdr and what surrounds it.

    :param crashkernel: the reserved physical ranges
    :raise CannotTellError: it cannot be found or read; the message says what is needed
    :raise InputError: a saved file is not what a snapshot writes
    """
    return find_crash_image(sysroot, crashkernel) if sysroot.is_live else _read_saved(sysroot)


def read_pointer(sysroot: Sysroot, kcore: Kcore) -> int:
    """Return the virtual address of the loaded image's ``struct kimage``; 0 where none is loaded.

    :raise CannotTellError: the symbol ``kexec_crash_image`` or the memory there cannot be read
    """
    pointer_virt = kallsyms.read_symbols(sysroot, ("kexec_crash_image",)).get("kexec_crash_image")
    if pointer_virt is None:
        raise kallsyms.explain_masked(sysroot)
    return int.from_bytes(kcore.read_virt(pointer_virt, 8), "little")


def read_identity(sysroot: Sysroot, kcore: Kcore) -> bytes:
    """Return what tells the loaded image from another: the pointer to its ``struct kimage`` and that one's bytes.

    The pointer alone does not: the kernel frees the former image before it makes the next, often in the same place.

    :return: nothing where no image is loaded
    :raise CannotTellError: it cannot be read
    """
    kimage_virt = read_pointer(sysroot, kcore)
    if kimage_virt == 0:
        return b""
    layouts = kimage_layouts(sysroot)
    return kimage_virt.to_bytes(8, "little") + kcore.read_virt(kimage_virt, max(layout.end for layout in layouts))


def find_crash_image(sysroot: Sysroot, crashkernel: RangeList) -> CrashImage:
    """Find the image of the live kernel: ``kexec_crash_image`` leads to ``struct kimage``, that to the segments.

    :raise CannotTellError: a step fails
    """
    with Kcore(sysroot) as kcore:
        kimage_virt = read_pointer(sysroot, kcore)
        if kimage_virt == 0:
            raise CannotTellError("the crash image was unloaded while it was being looked at")
        layouts = kimage_layouts(sysroot)
        data = kcore.read_virt(kimage_virt, max(layout.end for layout in layouts))
        kimage = parse_kimage(data, crashkernel, layouts)
        purgatory = _read_purgatory(kcore, kimage)
        named = digest_regions(purgatory, kimage, crashkernel) or ()
        kimage = _whole_image(kimage, named)
        header_at = _find_elfcorehdr(kcore, kimage)
        image = CrashImage(
            _read_header(kcore, header_at),
            header_at.phys,
            kimage=kimage,
            backup_region_phys=_find_backup_region(sysroot, kcore, purgatory, named),
        )
        return _with_boot_params(kcore, image, kimage)


def _with_boot_params(kcore: Kcore, image: CrashImage, kimage: Kimage) -> CrashImage:
    """Add the zero page and the command line, where there is a zero page."""
    boot_params_at = _find_boot_params(kcore, kimage)
    if boot_params_at is None:
        return image
    boot_params = kcore.read_phys(boot_params_at, PAGE)
    command_at = cmdline_phys(boot_params)
    cmdline = _read_cmdline(kcore, kimage, command_at)
    argument = elfcorehdr_argument(cmdline or "")
    if argument is not None and argument[0] != image.elfcorehdr_phys:
        raise CannotTellError(
            f"the capture kernel would look for its elfcorehdr at {argument[0]:#x}, the image has one at "
            f"{image.elfcorehdr_phys:#x}"
        )
    return replace(
        image, boot_params=boot_params, boot_params_phys=boot_params_at, cmdline=cmdline, cmdline_phys=command_at
    )


def _read_purgatory(kcore: Kcore, kimage: Kimage) -> bytes:
    segment = kimage.segment_at(kimage.entry_phys)
    return b"" if segment is None else kcore.read_phys(segment.phys, segment.memsz)


def _whole_image(kimage: Kimage, named: tuple[Segment, ...]) -> Kimage:
    """Add the segments that an update in place did not list: purgatory's digest table names them."""
    listed = {segment.phys for segment in kimage.segments}
    unlisted = [segment for segment in named if segment.phys not in listed and segment.memsz]
    return replace(kimage, segments=tuple(sorted([*kimage.segments, *unlisted], key=lambda s: s.phys)))


def _find_backup_region(sysroot: Sysroot, kcore: Kcore, purgatory: bytes, named: tuple[Segment, ...]) -> int | None:
    try:
        low = read_iomem(sysroot).ram.intersect(RangeList([kcore.architecture.backup_region_source]))
    except CannotTellError:
        return None
    # kexec-tools backs up the first range (get_backup_area() in crashdump-x86.c).
    return find_backup_region(purgatory, named, low[0]) if low else None


def _find_elfcorehdr(kcore: Kcore, kimage: Kimage) -> Segment:
    for segment in kimage.segments:
        start = kcore.read_phys(segment.phys, ELF_HEADER_SIZE)
        # Purgatory is no ELF file any more once it is loaded; a core file header is the elfcorehdr's only.
        if start[:4] == b"\x7fELF" and int.from_bytes(start[16:18], "little") == 4:
            return segment
    raise CannotTellError("none of the loaded crash image's segments is an elfcorehdr")


def _read_header(kcore: Kcore, segment: Segment) -> bytes:
    name = "the loaded elfcorehdr"
    start = kcore.read_phys(segment.phys, ELF_HEADER_SIZE)
    try:
        needed = program_headers_end(parse_core_header(start, name)[0])
    except ElfFormatError:
        needed = ELF_HEADER_SIZE  # whoever parses it says what is wrong
    whole_pages = -(-needed // PAGE) * PAGE
    return kcore.read_phys(segment.phys, min(whole_pages, segment.memsz))


def _find_boot_params(kcore: Kcore, kimage: Kimage) -> int | None:
    for segment in kimage.segments:
        # The kernel's own loader puts boot_params first, kexec-tools too; both on a page of their own.
        page = kcore.read_phys(segment.phys, min(PAGE, segment.memsz))
        if is_boot_params(page) and kimage.segment_at(cmdline_phys(page)) is not None:
            return segment.phys
    return None


def _read_cmdline(kcore: Kcore, kimage: Kimage, phys: int) -> str | None:
    segment = kimage.segment_at(phys)
    if segment is None:
        return None
    data = kcore.read_phys(phys, min(_CMDLINE_MAX, segment.phys + segment.memsz - phys))
    return data.split(b"\0")[0].decode("ascii", "replace")


def _read_saved(sysroot: Sysroot) -> CrashImage:
    header = sysroot.read(f"{SAVED}/elfcorehdr", _HEADER_LIMIT)
    if header is None:
        raise CannotTellError(
            f"{sysroot.locate(SAVED)} has no elfcorehdr: the tree was saved without the loaded image; "
            "give the header with --elfcorehdr FILE"
        )
    places = _read_places(sysroot)
    cmdline = sysroot.read(f"{SAVED}/cmdline")
    return CrashImage(
        elfcorehdr=header,
        elfcorehdr_phys=_address(places, "elfcorehdr"),
        boot_params=sysroot.read(f"{SAVED}/boot_params"),
        boot_params_phys=_address(places, "boot_params"),
        cmdline=None if cmdline is None else cmdline.decode("ascii", "replace").strip("\0\n"),
        cmdline_phys=_address(places, "cmdline"),
        kimage=_saved_kimage(places),
    )


def _read_places(sysroot: Sysroot) -> Mapping[str, Any]:
    path = f"{SAVED}/image.json"
    text = sysroot.read_text(path)
    try:
        places = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{sysroot.locate(path)} is not JSON: {error}") from error
    if not isinstance(places, dict):
        raise InputError(f"{sysroot.locate(path)} is not a JSON object")
    return places


def _address(places: Mapping[str, Any], key: str) -> int | None:
    value = places.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"0x[0-9a-f]{1,16}", value):
        raise InputError(f"image.json: {key} is not an address such as 0x2a000000")
    return int(value, 16)


def _saved_kimage(places: Mapping[str, Any]) -> Kimage | None:
    entry, listed = _address(places, "entry"), places.get("segments")
    if entry is None or listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise InputError("image.json: segments is not a list of objects")
    segments = []
    for item in listed:
        phys, memsz, bufsz = (_address(item, key) for key in ("phys", "memsz", "bufsz"))
        if phys is None or memsz is None or bufsz is None:
            raise InputError("image.json: a segment lacks phys, memsz or bufsz")
        segments.append(Segment(phys, memsz, bufsz))
    return Kimage(entry, tuple(segments))


def places_of(image: CrashImage) -> dict[str, Any]:
    """Return what image.json holds of an image: physical addresses and sizes as hex strings."""
    places: dict[str, Any] = {}
    for key, phys in (
        ("boot_params", image.boot_params_phys),
        ("cmdline", image.cmdline_phys),
        ("elfcorehdr", image.elfcorehdr_phys),
    ):
        if phys is not None:
            places[key] = hex(phys)
    if image.kimage is not None:
        places["entry"] = hex(image.kimage.entry_phys)
        places["segments"] = [
            {"phys": hex(s.phys), "memsz": hex(s.memsz), "bufsz": hex(s.bufsz)} for s in image.kimage.segments
        ]
    return places
