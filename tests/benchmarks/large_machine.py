# SPDX-License-Identifier: MIT
"""The tree of a machine of 8,192 memory ranges, 24,577 memory blocks and 4,096 CPUs, whose loaded header is older.

The header describes the machine as it booted: 14 CPUs and the memory below 4 GiB.
"""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.elf import PF_RWX, PT_LOAD, ProgramHeader, core_header, pack_program_headers
from crash_hotplug.core.elfcorehdr import build_elfcorehdr, parse_elfcorehdr
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.ranges import Range
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import Sysroot
from tests.linux.fake_kcore import DIRECT_MAP, TEXT_VIRT
from tests.linux.fake_kexec import HEADER, FakeKexec
from tests.trees import copied_tree

RANGES, RANGE_SIZE, RANGE_DISTANCE, FIRST_RANGE = 8192, 6 << 30, 8 << 30, 4 << 30
BLOCK_SIZE = 2 << 30
BLOCKS = 1 + RANGES * (RANGE_SIZE // BLOCK_SIZE)
"""24,577: one of memory below 4 GiB, three of each range."""
CPUS, DESCRIBED_CPUS = 4096, 14
NOTE_SIZE = 368
_PERCPU_BASE = 0x2D400
_CRASH_NOTES_VIRT, _PER_CPU_OFFSET_VIRT = TEXT_VIRT + 0x3000, TEXT_VIRT + 0x4000


def large_saved_tree(directory: Path, ranges: int = RANGES, cpus: int = CPUS) -> Path:
    """Return a saved tree of such a machine.

    :param ranges: memory ranges above 4 GiB, with three blocks each
    """
    saved = copied_tree("6.1-c", 0, directory / f"large-{ranges}-{cpus}")
    header = saved / "crash-image/elfcorehdr"
    header.write_bytes(_booted_header(header.read_bytes()))
    _write_machine(saved, ranges, cpus)
    with Kcore(Sysroot(str(saved))) as kcore:
        offset, headers = kcore.page_offset(), kcore.program_headers
    assert offset is not None
    entries = list(headers)
    for r in map(_range, range(ranges)):
        entries.append(ProgramHeader(PT_LOAD, PF_RWX, 0, r.start + offset, r.start, r.size, r.size, 4096))
    (saved / "proc/kcore").write_bytes(core_header(62, len(entries)).to_bytes() + pack_program_headers(entries))
    return saved


def large_live_tree(directory: Path, ranges: int = RANGES, cpus: int = CPUS) -> Path:
    """Return the tree of such a machine whose /proc/kcore has contents, for a ``tests.trees.LiveTree``."""
    fake = FakeKexec(directory, 0, more_ram=[_range(number) for number in range(ranges)])
    fake.write(HEADER, _booted_header(fake.header))
    _write_machine(fake.root, ranges, cpus)
    symbols = f"{_CRASH_NOTES_VIRT:016x} B crash_notes\n{_PER_CPU_OFFSET_VIRT:016x} D __per_cpu_offset\n"
    fake.write_file("proc/kallsyms", symbols + (fake.root / "proc/kallsyms").read_text())
    # The page tables of so much memory may need 257 MiB of control pages.
    iomem = (fake.root / "proc/iomem").read_text()
    fake.write_file("proc/iomem", iomem.replace("2e000000-39ffffff : Crash", "10000000-39ffffff : Crash"))
    offsets = (DIRECT_MAP + _notes(number).phys - _PERCPU_BASE for number in range(cpus))
    fake.write_kernel_data(_CRASH_NOTES_VIRT, struct.pack("<Q", _PERCPU_BASE))
    fake.write_kernel_data(_PER_CPU_OFFSET_VIRT, struct.pack(f"<{cpus}Q", *offsets))
    return fake.root


def _range(number: int) -> Range:
    start = FIRST_RANGE + number * RANGE_DISTANCE
    return Range(start, start + RANGE_SIZE)


def _notes(cpu: int) -> NoteRegion:
    """Return the place of a CPU's notes: in its own node's memory, as percpu memory is."""
    return NoteRegion(_range(cpu).start + 0x2000_0000 + cpu * 0x400, NOTE_SIZE)


def _booted_header(captured: bytes) -> bytes:
    loaded = parse_elfcorehdr(captured)
    notes = [_notes(number) for number in range(DESCRIBED_CPUS)]
    return build_elfcorehdr(X86_64, notes, loaded.vmcoreinfo, loaded.kernel_text, loaded.ram_headers).to_bytes(1024)


def _write_machine(root: Path, ranges: int, cpus: int) -> None:
    with (root / "proc/iomem").open("a") as iomem:
        iomem.writelines(f"{r.start:x}-{r.end - 1:x} : System RAM\n" for r in map(_range, range(ranges)))
    devices = root / "sys/devices/system"
    shutil.rmtree(devices / "memory")
    (devices / "memory").mkdir()
    (devices / "memory/block_size_bytes").write_text(f"{BLOCK_SIZE:x}\n")
    starts = [0, *(at for r in map(_range, range(ranges)) for at in range(r.start, r.end, BLOCK_SIZE))]
    for start in starts:
        _write_files(f"{devices}/memory/memory{start // BLOCK_SIZE}", state="online")
    for name in ("possible", "present", "online"):
        (devices / "cpu" / name).write_text(f"0-{cpus - 1}\n")
    for number in range(cpus):
        notes = _notes(number)
        _write_files(f"{devices}/cpu/cpu{number}", crash_notes=f"{notes.phys:x}", crash_notes_size=f"{notes.size}")


def _write_files(directory: str, **texts: str) -> None:
    os.makedirs(directory, exist_ok=True)
    for name, text in texts.items():
        with open(f"{directory}/{name}", "w", encoding="ascii") as file:
            file.write(f"{text}\n")
