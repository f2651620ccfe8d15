# SPDX-License-Identifier: MIT
"""The loaded crash image: out of the reserved region of a live machine, or out of a saved tree's crash-image/."""

from __future__ import annotations

import re
from collections.abc import Mapping

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.elf import ElfFormatError, parse_core_header
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.image import CrashImage, Kimage, Segment, parse_kimage
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.btf_file import kimage_layouts
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import read_image_loaded
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.torn_image import why_torn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SAVED = "/crash-image"
POINTER_SYMBOLS = ("kexec_crash_image", "kexec_crash_loaded")
"""Symbols of which one is needed to find the loaded image."""
_HEADER_LIMIT = 8 << 20
_BOOT_LIMIT = 1 << 20
_ATTEMPTS = 8
_FUNCTION = 64
"""Bytes of ``kexec_crash_loaded()`` that are looked at: it has sixteen instructions at most."""
_POINTER = 8
"""Bytes of a pointer."""


def read_crash_image(sysroot: Sysroot, crashkernel: RangeList) -> CrashImage:
    """Read the loaded image: elfcorehdr, zero page, command line and segments.

    :param crashkernel: the reserved physical ranges
    :raise CannotTellError: it cannot be found or read; the message names the requirement
    :raise InputError: a saved file is not in the format of a snapshot
    """
    return find_crash_image(sysroot, crashkernel) if sysroot.is_live else _read_saved(sysroot)


def read_identity(sysroot: Sysroot, kcore: Kcore) -> bytes:
    """Return the identity of the loaded image: the pointer to its ``struct kimage``, and the bytes of that structure.

    The pointer alone does not identify an image: the kernel frees the previous one before it allocates the next, often
    in the same place.

    :return: empty where no image is loaded
    :raise CannotTellError: the symbol ``kexec_crash_image`` or the memory there cannot be read
    """
    pointer_virt = find_pointer(sysroot, kcore)
    for _attempt in range(_ATTEMPTS):
        pointer = kcore.read_virt(pointer_virt, _POINTER)
        kimage_virt = int.from_bytes(pointer, "little")
        if kimage_virt:
            return pointer + kcore.read_virt(kimage_virt, max(layout.end for layout in kimage_layouts(sysroot)))
        if not read_image_loaded(sysroot):
            return b""
    # /proc/kcore shows zeros for a page that it cannot read.
    raise CannotTellError("an image is loaded, but /proc/kcore shows no pointer to it")


def find_pointer(sysroot: Sysroot, kcore: Kcore) -> int:
    """Return the virtual address of ``kexec_crash_image``: its symbol's, or out of ``kexec_crash_loaded()``'s code.

    Kernels without CONFIG_KALLSYMS_ALL (Debian's for arm64 up to 6.1) show functions only.  What the pointer names is
    proven by :func:`~crash_hotplug.core.image.parse_kimage`.

    :raise CannotTellError: neither shows it; a saved tree has no code
    """
    symbols = kallsyms.read_symbols(sysroot, POINTER_SYMBOLS)
    if "kexec_crash_image" in symbols:
        return symbols["kexec_crash_image"]
    function = symbols.get("kexec_crash_loaded")
    if function is not None and sysroot.is_live:
        found = kcore.architecture.variable_read_by(kcore.read_virt(function, _FUNCTION), function)
        if found is not None and found % _POINTER == 0:
            return found
    raise kallsyms.explain_missing(sysroot, "kexec_crash_image")


def identified_kimage(sysroot: Sysroot, identity: bytes, crashkernel: RangeList) -> Kimage:
    """Return the ``struct kimage`` that :func:`read_identity` found.

    :param crashkernel: the reserved physical ranges, in which its segments must lie
    :raise CannotTellError: its layout is not known
    """
    return parse_kimage(identity[_POINTER:], crashkernel, kimage_layouts(sysroot))


def read_identified_image(
    sysroot: Sysroot,
    kcore: Kcore,
    identity: bytes,
    crashkernel: RangeList,
    ram: RangeList | None,
    updated_by_kernel: bool = False,
) -> CrashImage:
    """Read the image that :func:`read_identity` found out of the reserved region.

    :param crashkernel: the reserved physical ranges
    :param ram: physical ranges of RAM; None where they are not known, and with them the backup region
    :raise CannotTellError: no image was found, or it cannot be read
    """
    if not identity:
        raise CannotTellError("the crash image was unloaded while it was being looked at")
    kimage = identified_kimage(sysroot, identity, crashkernel)
    source = None if ram is None else _backup_source(ram, kcore.architecture)
    image = read_loaded_image(kcore.architecture, kimage, crashkernel, source, kcore.read_phys, updated_by_kernel)
    return image._replace(torn=why_torn(sysroot, identity))


def _backup_source(ram: RangeList, architecture: Architecture) -> Range | None:
    """Return the physical range that kexec-tools backs up: the first RAM below 640 KiB; None where there is none."""
    low = ram.intersect(RangeList([architecture.backup_region_source]))
    return low[0] if low else None


def find_crash_image(sysroot: Sysroot, crashkernel: RangeList) -> CrashImage:
    """Find the image of the live kernel: follow ``kexec_crash_image`` to ``struct kimage`` and to the segments.

    :raise CannotTellError: a step fails
    """
    for _attempt in range(_ATTEMPTS):
        with Kcore(sysroot) as kcore:
            image = _find(sysroot, kcore, crashkernel)
            if not kcore.has_moved():
                return image
    raise CannotTellError("memory came or went again and again while /proc/kcore was read")


def _find(sysroot: Sysroot, kcore: Kcore, crashkernel: RangeList) -> CrashImage:
    try:
        ram = read_iomem(sysroot).ram
    except CannotTellError:
        ram = None
    return read_identified_image(sysroot, kcore, read_identity(sysroot, kcore), crashkernel, ram)


def _read_saved(sysroot: Sysroot) -> CrashImage:
    header = sysroot.read(f"{SAVED}/elfcorehdr", _HEADER_LIMIT)
    if header is None:
        raise CannotTellError(
            f"{sysroot.locate(SAVED)} has no elfcorehdr: the tree was saved without the loaded image; "
            "give the header with --elfcorehdr FILE"
        )
    places = _read_places(sysroot)
    architecture = _architecture_of(header)
    return CrashImage(
        elfcorehdr=header,
        elfcorehdr_phys=_address(places, "elfcorehdr"),
        boot=None
        if architecture is None
        else architecture.saved_boot_description(
            lambda name: sysroot.read(f"{SAVED}/{name}", _BOOT_LIMIT), lambda name: _address(places, name)
        ),
        kimage=_saved_kimage(places),
        backup_region_phys=_address(places, "backup_region"),
    )


def saved_image_architecture(sysroot: Sysroot) -> Architecture | None:
    """Return the architecture that the header of a saved image names; None where it names none that is supported."""
    return _architecture_of(sysroot.read(f"{SAVED}/elfcorehdr", _HEADER_LIMIT) or b"")


def _architecture_of(header: bytes) -> Architecture | None:
    try:
        return parse_core_header(header, "the saved elfcorehdr")[1]
    except ElfFormatError:
        return None


def _read_places(sysroot: Sysroot) -> Mapping[str, Any]:
    import json  # noqa: PLC0415 only a saved tree has JSON

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
    """Return the content of image.json for an image: physical addresses and sizes as hex strings."""
    places: dict[str, Any] = {}
    for key, phys in (
        ("elfcorehdr", image.elfcorehdr_phys),
        ("backup_region", image.backup_region_phys),
        *(() if image.boot is None else image.boot.saved()[1].items()),
    ):
        if phys is not None:
            places[key] = hex(phys)
    if image.kimage is not None:
        places["entry"] = hex(image.kimage.entry_phys)
        places["segments"] = [
            {"phys": hex(s.phys), "memsz": hex(s.memsz), "bufsz": hex(s.bufsz)} for s in image.kimage.segments
        ]
    return places
