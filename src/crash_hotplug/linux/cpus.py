"""/sys/devices/system/cpu: which CPUs there are, and where each saves its registers at a panic."""

from __future__ import annotations

import re

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import Cpu, NoteRegion
from crash_hotplug.linux.sysroot import Sysroot

DIRECTORY = "/sys/devices/system/cpu"
CPU_LIMIT = 1 << 16
"""No kernel is built for more CPUs (x86_64 allows 8192)."""
_LIST_ITEM = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def read_cpus(sysroot: Sysroot) -> tuple[Cpu, ...]:
    """Read every possible CPU; notes that may not be read are None.

    :raise CannotTellError: which CPUs are present is not to be had
    :raise InputError: a file is not what the kernel writes
    """
    present = _read_list(sysroot, "present")
    if present is None:
        raise CannotTellError(f"{sysroot.locate(DIRECTORY)}/present does not exist: the CPUs cannot be told")
    online = _read_list(sysroot, "online")
    possible = _read_list(sysroot, "possible")
    numbers = sorted(set(possible or ()) | set(present))
    return tuple(
        Cpu(
            number,
            number in present,
            number in (present if online is None else online),
            _read_crash_notes(sysroot, number) if number in present else None,
        )
        for number in numbers
    )


def _read_list(sysroot: Sysroot, name: str) -> frozenset[int] | None:
    text = sysroot.read_text(f"{DIRECTORY}/{name}")
    return None if text is None else frozenset(parse_cpu_list(text, sysroot.locate(f"{DIRECTORY}/{name}")))


def parse_cpu_list(text: str, name: str = "the CPU list") -> list[int]:
    """Parse a list such as ``0-3,8``; an empty one is empty.

    :raise InputError: it is not such a list, or names impossible CPUs
    """
    numbers: list[int] = []
    for item in text.split(",") if text else []:
        matched = _LIST_ITEM.fullmatch(item.strip())
        if matched is None:
            raise InputError(f"{name} is not a list of CPUs such as 0-3,8")
        first = int(matched[1])
        last = int(matched[2] or first)
        if last < first or last >= CPU_LIMIT or len(numbers) > CPU_LIMIT:
            raise InputError(f"{name} names CPUs that no machine has: {item.strip()}")
        numbers.extend(range(first, last + 1))
    return numbers


def _read_crash_notes(sysroot: Sysroot, number: int) -> NoteRegion | None:
    try:
        address = sysroot.read_text(f"{DIRECTORY}/cpu{number}/crash_notes")
        size = sysroot.read_text(f"{DIRECTORY}/cpu{number}/crash_notes_size")
    except CannotTellError:
        return None
    if address is None or size is None:
        return None
    if not re.fullmatch(r"[0-9a-f]{1,16}", address) or not re.fullmatch(r"[0-9]{1,9}", size):
        name = sysroot.locate(f"{DIRECTORY}/cpu{number}/crash_notes")
        raise InputError(f"{name} or its size is not a number: {address[:20]!r}, {size[:20]!r}")
    # Address 0 is what a masked or unallocated note reads as; no CPU's notes lie there.
    return NoteRegion(int(address, 16), int(size)) if int(address, 16) else None
