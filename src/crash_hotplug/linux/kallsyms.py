# SPDX-License-Identifier: MIT
"""Virtual addresses of a few kernel symbols: out of the kernel's table, or out of /proc/kallsyms."""

from __future__ import annotations

import os
import re

from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.kallsyms import KallsymsTable, Symbol
from crash_hotplug.core.vmcoreinfo import parse_symbols
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.kexec_state import read_vmcoreinfo, read_vmcoreinfo_place
from crash_hotplug.linux.sysroot import LARGE, Sysroot, read_parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PATH = "/proc/kallsyms"
SYMBOLS = {
    "_text": "T",
    "_stext": "T",
    "_end": "BD",
    "page_offset_base": "DB",
    "phys_base": "DB",
    "vmcoreinfo_note": "BD",
    "crash_notes": "BD",
    "__per_cpu_offset": "DB",
    "kexec_crash_image": "BD",
    "kexec_crash_loaded": "T",
}
"""The symbols that this project reads and a snapshot keeps, with the letters of nm(1) that each may have."""
_LONGEST_LINE = 1 << 10
"""Bytes; more than the kernel prints (KSYM_NAME_LEN is 512)."""
_SHOWN_ADDRESS = re.compile(rb"^0*[1-9a-f][0-9a-f]* ", re.MULTILINE)
_live: dict[str, Symbol | None] = {}
"""Symbols of the live machine, which keep their addresses until the next boot; None for one that does not exist."""


def read_symbols(sysroot: Sysroot, names: Iterable[str] = SYMBOLS) -> dict[str, int]:
    """Return the virtual address of each symbol that exists and is not masked (0 without privilege).

    :raise CannotTellError: the file may not be read
    """
    return {name: symbol.virt for name, symbol in _find(sysroot, names).items()}


def symbol_lines(sysroot: Sysroot, names: Iterable[str] = SYMBOLS) -> bytes:
    """Return the file's lines of the symbols, for a snapshot; errors as :func:`read_symbols`."""
    found = sorted((symbol.virt, symbol.type, name) for name, symbol in _find(sysroot, names).items())
    return "".join(f"{virt:016x} {letter} {name}\n" for virt, letter, name in found).encode()


def _find(sysroot: Sysroot, names: Iterable[str]) -> dict[str, Symbol]:
    if not sysroot.is_live:
        return search_text(sysroot, names)
    unknown = [name for name in names if name not in _live]
    if unknown:
        # Printing all symbols takes the kernel longer than all other work of an update.
        found = search_table(sysroot, unknown)
        found.update(search_text(sysroot, [name for name in unknown if name not in found]))
        # Where nothing is found the symbols are hidden, which a later look may not find any more.
        _live.update({name: found.get(name) for name in unknown if found})
    return {name: symbol for name in names if (symbol := _live.get(name)) is not None}


def search_table(sysroot: Sysroot, names: Iterable[str]) -> dict[str, Symbol]:
    """Return the symbols that are in the table in the kernel's memory; none where it cannot be read."""
    try:
        place = read_vmcoreinfo_place(sysroot)
        if place is None:
            return {}
        with Kcore(sysroot) as kcore:
            table = KallsymsTable(parse_symbols(read_vmcoreinfo(kcore, place)), kcore.read_virt)
            found = {name: table.find(name, SYMBOLS[name]) for name in names}
            if kcore.has_moved():  # an address that was read at a wrong offset would be kept until the process ends
                return {}
    except CrashHotplugError:
        return {}
    return {name: symbol for name, symbol in found.items() if symbol is not None}


def search_text(sysroot: Sysroot, names: Iterable[str]) -> dict[str, Symbol]:
    """Return the symbols that /proc/kallsyms shows with an address, by plain searches in large parts of it.

    :raise CannotTellError: the file may not be read
    """
    found: dict[str, Symbol] = {}
    left = set(names)
    opened = sysroot.open(PATH) if left else None
    if opened is None:
        return found
    with opened as file:
        rest = b""
        for part in read_parts(file, LARGE, sysroot.locate(PATH)):
            lines = rest + part
            shown = {name: symbol for name in left if (symbol := _symbol_in(lines, name)) is not None}
            found.update(shown)
            left -= shown.keys()
            if not left:
                break
            rest = lines[lines.rfind(b"\n") + 1 :][-_LONGEST_LINE:]
    return {name: symbol for name, symbol in found.items() if symbol.virt != 0}


def _symbol_in(lines: bytes, name: str) -> Symbol | None:
    """Return the first symbol of that name; a module's has the module behind its name."""
    end = lines.find(b" " + name.encode() + b"\n")
    if end < 0:
        return None
    # Without white space around it: "ffffffff81000000 T".
    address, _space, letter = lines[lines.rfind(b"\n", 0, end) + 1 : end].partition(b" ")
    if not address.isalnum() or len(address) > 16 or len(letter) != 1 or not letter.isalpha():
        return None
    try:
        return Symbol(int(address, 16), letter.decode())
    except ValueError:
        return None


def explain_missing(sysroot: Sysroot, name: str) -> CannotTellError:
    """Return the error for a symbol that :func:`read_symbols` did not find: all are hidden, or the kernel lacks it.

    :raise CannotTellError: the file may not be read
    """
    located = sysroot.locate(PATH)
    opened = sysroot.open(PATH)
    if opened is None:
        return CannotTellError(f"{located} does not exist, so the address of {name} is not known")
    with opened as file:
        # The first symbols, those of per-CPU variables, may be at 0; more than these have an address in 1 MiB.
        start = next(read_parts(file, LARGE, located))
    if _SHOWN_ADDRESS.search(start) is None:
        return explain_masked(sysroot)
    return CannotTellError(
        f"{located} shows addresses, but not that of {name}: this kernel was built without kexec, or without "
        "CONFIG_KALLSYMS_ALL"
    )


def explain_masked(sysroot: Sysroot) -> CannotTellError:
    """Return the error for symbols that are hidden."""
    cause = "even from root (kernel.kptr_restrict)"
    if not sysroot.is_live or os.geteuid() != 0:
        cause = "without CAP_SYSLOG (kernel.kptr_restrict); run as root"
    return CannotTellError(f"{sysroot.locate(PATH)} does not show the kernel's addresses: they are hidden {cause}")
