"""/proc/kallsyms: virtual addresses of a few kernel symbols."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from functools import lru_cache

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.sysroot import LARGE, Sysroot

PATH = "/proc/kallsyms"
SYMBOLS = (
    "_text",
    "_stext",
    "_end",
    "page_offset_base",
    "phys_base",
    "vmcoreinfo_note",
    "crash_notes",
    "__per_cpu_offset",
    "kexec_crash_image",
)
"""The symbols that this project looks at, and that a snapshot keeps."""


def read_symbols(sysroot: Sysroot, names: Iterable[str] = SYMBOLS) -> dict[str, int]:
    """Return the virtual address of each symbol that is there and not masked (0 without privilege).

    :raise CannotTellError: the file may not be read
    """
    lines = _lines(sysroot, names)
    return {name: address for name, (address, _line) in lines.items()}


def symbol_lines(sysroot: Sysroot, names: Iterable[str] = SYMBOLS) -> bytes:
    """Return the file's lines of the symbols, for a snapshot; errors as :func:`read_symbols`."""
    # By address, as the kernel lists them.
    return b"".join(line + b"\n" for _address, line in sorted(_lines(sysroot, names).values()))


def _lines(sysroot: Sysroot, names: Iterable[str]) -> dict[str, tuple[int, bytes]]:
    """Return address and line of each symbol that has an address."""
    if not sysroot.is_live:
        return _search(sysroot, names)
    # The kernel takes 30 ms to print them all, and they stay where they are until the next boot.
    wanted = set(names)
    return {name: found for name, found in _live_lines().items() if name in wanted}


@lru_cache(maxsize=1)
def _live_lines() -> dict[str, tuple[int, bytes]]:
    return _search(Sysroot(), SYMBOLS)


def _search(sysroot: Sysroot, names: Iterable[str]) -> dict[str, tuple[int, bytes]]:
    data = sysroot.read(PATH, LARGE) or b""
    found = {}
    for name in names:
        # A plain search: a regular expression over the 10 MB of a live kernel takes ten times as long.
        at = data.find(b" " + name.encode() + b"\n")
        line = data[data.rfind(b"\n", 0, max(at, 0)) + 1 : at + 1 + len(name)]
        matched = re.match(rb"([0-9a-fA-F]{8,16}) [A-Za-z] ", line) if at >= 0 else None
        if matched is not None and int(matched[1], 16) != 0:
            found[name] = int(matched[1], 16), line
    return found


def explain_masked(sysroot: Sysroot) -> CannotTellError:
    """Return the error for symbols that are not to be had."""
    who = "even from root (kernel.kptr_restrict)"
    if not sysroot.is_live or os.geteuid() != 0:
        who = "without CAP_SYSLOG (kernel.kptr_restrict); run as root"
    return CannotTellError(f"{sysroot.locate(PATH)} does not show the kernel's addresses: they are hidden {who}")
