# SPDX-License-Identifier: MIT
"""/sys/devices/system/cpu: the CPUs, and the place where each saves its registers at a panic.

sysfs has the place for present CPUs only, but percpu memory exists for every possible CPU from boot on: the address
is the value of ``crash_notes`` plus ``__per_cpu_offset[N]``, both read through /proc/kcore.  A snapshot keeps the
addresses.
"""

from __future__ import annotations

import re
import struct

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import Cpu, NoteRegion
from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import LARGE, DirectoryOfMany, Sysroot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = "/sys/devices/system/cpu"
SAVED_NOTES = "/possible-cpus.json"
"""The file of a saved tree with the notes of CPUs that are not present."""
CPU_LIMIT = 1 << 16
"""No kernel is built for more CPUs (x86_64 allows 8192)."""
_LIST_ITEM = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")
_ADDRESS = re.compile(r"[0-9a-f]{1,16}").fullmatch
_SIZE = re.compile(r"[0-9]{1,9}").fullmatch


def read_cpus(sysroot: Sysroot) -> tuple[Cpu, ...]:
    """Read every possible CPU; notes that may not be read are None.

    :raise CannotTellError: the list of present CPUs is missing or masked, or a list is empty
    :raise InputError: a file is not in the kernel's format
    """
    present = _read_list(sysroot, "present")
    if present is None:
        raise CannotTellError(
            f"{sysroot.locate(DIRECTORY)}/present does not exist, so the machine's CPUs are not known"
        )
    online = _read_list(sysroot, "online")
    possible = _read_list(sysroot, "possible")
    numbers = sorted(set(possible or ()) | set(present))
    directory = sysroot.directory_of_many(DIRECTORY)
    return tuple(
        Cpu(
            number,
            number in present,
            number in (present if online is None else online),
            _read_crash_notes(directory, number) if number in present else None,
        )
        for number in numbers
    )


def _read_list(sysroot: Sysroot, name: str) -> frozenset[int] | None:
    text, located = sysroot.read_text(f"{DIRECTORY}/{name}"), sysroot.locate(f"{DIRECTORY}/{name}")
    if text == "":  # CPU 0 is always possible and present, and one CPU reads this
        raise CannotTellError(f"{located} is empty")
    return None if text is None else frozenset(parse_cpu_list(text, located))


def parse_cpu_list(text: str, name: str = "the CPU list") -> list[int]:
    """Parse a list such as ``0-3,8``; empty text is an empty list.

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


def _read_crash_notes(directory: DirectoryOfMany, number: int) -> NoteRegion | None:
    name = f"cpu{number}"
    if name not in directory:  # a saved list may name many CPUs that have none
        return None
    try:
        address = directory.read_text(name, "crash_notes")
        size = directory.read_text(name, "crash_notes_size")
    except CannotTellError:
        return None
    if address is None or size is None:
        return None
    if not _ADDRESS(address) or not _SIZE(size):
        located = directory.locate(name, "crash_notes")
        raise InputError(f"{located} or its size is not a number: {address[:20]!r}, {size[:20]!r}")
    # A masked or unallocated note reads as address 0; no CPU's notes are there.
    return NoteRegion(int(address, 16), int(size)) if int(address, 16) else None


def with_possible_notes(sysroot: Sysroot, kcore: Kcore | None, cpus: Sequence[Cpu]) -> tuple[Cpu, ...]:
    """Return *cpus* with the notes of CPUs that are not present, where they can be read and proven.

    :raise InputError: the saved addresses are not in a snapshot's format
    """
    if sysroot.is_live:
        found = {} if kcore is None else read_possible_notes(sysroot, kcore, cpus)
    else:
        found = _read_saved_notes(sysroot)
    return tuple(
        cpu._replace(crash_notes=found[cpu.number]) if cpu.crash_notes is None and cpu.number in found else cpu
        for cpu in cpus
    )


def read_possible_notes(sysroot: Sysroot, kcore: Kcore, cpus: Sequence[Cpu]) -> dict[int, NoteRegion]:
    """Compute the address of every possible CPU's notes from the kernel's variables.

    Each address is compared with sysfs where sysfs has it; if one differs, none is used.

    :return: by CPU number; empty where the variables cannot be read or do not agree with sysfs
    """
    known = {cpu.number: cpu.crash_notes for cpu in cpus if cpu.crash_notes is not None}
    if not known:
        return {}
    size = next(iter(known.values())).size
    try:
        symbols = kallsyms.read_symbols(sysroot, ("crash_notes", "__per_cpu_offset"))
        base = int.from_bytes(kcore.read_virt(symbols["crash_notes"], 8), "little")
        count = max(cpu.number for cpu in cpus) + 1
        offsets = struct.unpack(f"<{count}Q", kcore.read_virt(symbols["__per_cpu_offset"], 8 * count))
    except (CannotTellError, KeyError):
        return {}
    found = {}
    for cpu in cpus:
        phys = kcore.phys_of_direct_map_virt((base + offsets[cpu.number]) % (1 << 64))
        if phys is None or known.get(cpu.number, NoteRegion(phys, size)).phys != phys:
            return {}
        found[cpu.number] = NoteRegion(phys, size)
    return found


def notes_json(cpus: Sequence[Cpu]) -> bytes:
    """Return the JSON for a snapshot: physical address and size of each CPU's notes that are known."""
    import json  # noqa: PLC0415 only a snapshot needs it

    notes = {
        str(cpu.number): {"phys": hex(cpu.crash_notes.phys), "size": cpu.crash_notes.size}
        for cpu in cpus
        if cpu.crash_notes is not None
    }
    return json.dumps({"crash_notes": notes}, indent=1).encode() + b"\n"


def _read_saved_notes(sysroot: Sysroot) -> dict[int, NoteRegion]:
    import json  # noqa: PLC0415

    text = sysroot.read_text(SAVED_NOTES, LARGE)
    if text is None:
        return {}
    name = sysroot.locate(SAVED_NOTES)
    try:
        notes = json.loads(text)["crash_notes"]
        return {int(number): _saved_note(value["phys"], value["size"]) for number, value in notes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{name} is not in the format of a snapshot: {error!r}") from error


def _saved_note(phys: object, size: object) -> NoteRegion:
    if not isinstance(phys, str) or not re.fullmatch(r"0x[0-9a-f]{1,16}", phys):
        raise ValueError("an address is not a hex string")
    if not isinstance(size, int) or not 0 < size < 1 << 20:
        raise ValueError("a size is not a small number")
    return NoteRegion(int(phys, 16), size)
