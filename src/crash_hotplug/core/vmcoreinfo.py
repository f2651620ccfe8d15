"""The VMCOREINFO note: ``KEY=VALUE`` lines that the crashed kernel left for tools."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import NamedTuple


class Vmcoreinfo(NamedTuple):
    """What a dump says of the kernel that crashed; None where it does not."""

    kernel_release: str | None
    panic_time: datetime | None
    """In UTC, whole seconds (``CRASHTIME``)."""
    sme_mask: int | None = None
    """The bit of a page-table entry that marks encrypted memory (AMD SME and SEV); 0 where it is not in use."""


def parse_vmcoreinfo(descriptor: bytes) -> Vmcoreinfo:
    """Parse the note's descriptor; what is not text or has no known key is passed over."""
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


def _time(seconds: str) -> datetime | None:
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 11):
        return None
    return datetime.fromtimestamp(int(seconds), tz=timezone.utc)
