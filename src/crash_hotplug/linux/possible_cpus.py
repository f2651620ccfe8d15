"""Where CPUs that are not present yet would save their registers.

sysfs tells it for present CPUs only, but percpu memory exists for every possible CPU from boot on: the address is the
value of ``crash_notes`` plus ``__per_cpu_offset[N]``, both read through /proc/kcore.  A snapshot keeps the addresses.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import replace

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import Cpu, NoteRegion
from crash_hotplug.linux import kallsyms
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import LARGE, Sysroot

SAVED = "/possible-cpus.json"


def with_possible_notes(sysroot: Sysroot, kcore: Kcore | None, cpus: Sequence[Cpu]) -> tuple[Cpu, ...]:
    """Return *cpus* with the notes of those that are not present, where they can be read and proven.

    :raise InputError: the saved addresses are not what a snapshot writes
    """
    if sysroot.is_live:
        found = {} if kcore is None else read_from_kernel(sysroot, kcore, cpus)
    else:
        found = _read_saved(sysroot)
    return tuple(
        replace(cpu, crash_notes=found[cpu.number]) if cpu.crash_notes is None and cpu.number in found else cpu
        for cpu in cpus
    )


def read_from_kernel(sysroot: Sysroot, kcore: Kcore, cpus: Sequence[Cpu]) -> dict[int, NoteRegion]:
    """Compute the address of every possible CPU's notes from the kernel's own variables.

    Each is checked against sysfs where sysfs has it; one that differs makes all of them worthless.

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


def to_json(cpus: Sequence[Cpu]) -> bytes:
    """Return what a snapshot keeps: physical address and size of each CPU's notes that are known."""
    notes = {
        str(cpu.number): {"phys": hex(cpu.crash_notes.phys), "size": cpu.crash_notes.size}
        for cpu in cpus
        if cpu.crash_notes is not None
    }
    return json.dumps({"crash_notes": notes}, indent=1).encode() + b"\n"


def _read_saved(sysroot: Sysroot) -> dict[int, NoteRegion]:
    text = sysroot.read_text(SAVED, LARGE)
    if text is None:
        return {}
    name = sysroot.locate(SAVED)
    try:
        notes = json.loads(text)["crash_notes"]
        return {int(number): _note(value["phys"], value["size"]) for number, value in notes.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{name} is not what a snapshot writes: {error!r}") from error


def _note(phys: object, size: object) -> NoteRegion:
    if not isinstance(phys, str) or not re.fullmatch(r"0x[0-9a-f]{1,16}", phys):
        raise ValueError("an address is not a hex string")
    if not isinstance(size, int) or not 0 < size < 1 << 20:
        raise ValueError("a size is not a small number")
    return NoteRegion(int(phys, 16), size)
