# SPDX-License-Identifier: MIT
"""The VMCOREINFO note: ``KEY=VALUE`` lines that the kernel keeps for tools, in its memory and in a dump."""

from __future__ import annotations

import contextlib
import re

from crash_hotplug.core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime


_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""``__START_KERNEL_map`` of x86_64 (Documentation/arch/x86/x86_64/mm.rst)."""


class Vmcoreinfo(NamedTuple):
    """The kernel's description of itself; None where a value is missing."""

    kernel_release: str | None
    panic_time: datetime | None
    """In UTC, whole seconds (``CRASHTIME``)."""
    sme_mask: int | None = None
    """The bit of a page-table entry that marks encrypted memory (AMD SME and SEV); 0 where it is not in use."""


def parse_vmcoreinfo(descriptor: bytes) -> Vmcoreinfo:
    """Parse the note's descriptor; lines without a known key are skipped."""
    values = {}
    for line in descriptor.decode("ascii", "replace").splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key] = value.strip("\0 ")
    release = values.get("OSRELEASE")
    printable = release is not None and release.isprintable() and 0 < len(release) <= 64
    mask = re.fullmatch(r"-?\d{1,20}", values.get("NUMBER(sme_mask)", ""))
    return Vmcoreinfo(
        release if printable else None,
        _time(values.get("CRASHTIME", "")),
        None if mask is None else int(mask[0]) % (1 << 64),
    )


def parse_kernel_text_offset(descriptor: bytes) -> int | None:
    """Return the virtual minus the physical address of the kernel text, modulo 2^64; None where the note lacks it.

    arm64 has it as ``kimage_voffset``, x86_64 has the physical address of ``__START_KERNEL_map`` as ``phys_base``.
    """
    voffset = re.search(rb"^NUMBER\(kimage_voffset\)=0x([0-9a-f]{1,16})$", descriptor, re.MULTILINE)
    if voffset is not None:
        return int(voffset[1], 16)
    phys_base = re.search(rb"^NUMBER\(phys_base\)=(-?\d{1,20})$", descriptor, re.MULTILINE)
    return None if phys_base is None else (_START_KERNEL_MAP - int(phys_base[1])) % (1 << 64)


def parse_symbols(descriptor: bytes) -> dict[str, int]:
    """Return the virtual address of each symbol in the note (``SYMBOL(NAME)=ADDRESS``)."""
    symbols = {}
    for line in descriptor.split(b"\n"):
        name, separator, address = line.partition(b")=")
        if name.startswith(b"SYMBOL(") and separator and len(address) <= 16:
            with contextlib.suppress(ValueError):
                symbols[name[len(b"SYMBOL(") :].decode("ascii", "replace")] = int(address, 16)
    return symbols


def _time(seconds: str) -> datetime | None:
    from datetime import datetime, timezone  # noqa: PLC0415 only a dump has the time of its panic

    if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 11):
        return None
    return datetime.fromtimestamp(int(seconds), tz=timezone.utc)
