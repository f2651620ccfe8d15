# SPDX-License-Identifier: MIT
"""Machines and headers made in memory, for tests, and hypothesis strategies for them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.machine import Cpu, KernelText, Machine, MemoryBlocks, NoteRegion
from crash_hotplug.core.ranges import RangeList

MIB = 1 << 20
GIB = 1 << 30
NOTES_SIZE = 0x170
DIRECT_MAP = 0xFFFF_8880_0000_0000
LOW_RAM = (0x1000, 0x9FC00)


def crash_notes(number: int) -> NoteRegion:
    """Return where CPU *number* of a made machine saves its registers."""
    return NoteRegion(0x3000_0000 + number * 0x4_0000 + 0x400, NOTES_SIZE)


def cpus(online: Sequence[int], offline: Sequence[int] = (), possible: int = 8) -> tuple[Cpu, ...]:
    """Return the CPUs of a machine, notes known for present ones."""
    present = {*online, *offline}
    return tuple(
        Cpu(number, number in present, number in online, crash_notes(number) if number in present else None)
        for number in range(possible)
    )


def machine(
    *,
    online: Sequence[int] = (0, 1),
    offline: Sequence[int] = (),
    possible: int = 8,
    ram: Sequence[tuple[int, int]] = (LOW_RAM, (MIB, GIB)),
    crashkernel: Sequence[tuple[int, int]] = ((512 * MIB, 768 * MIB),),
    release: str | None = "6.1.0-test",
    kernel_text: KernelText | None = KernelText(0xFFFF_FFFF_8100_0000, 16 * MIB, 32 * MIB),
    page_offset: int | None = DIRECT_MAP,
    vmcoreinfo: NoteRegion | None = NoteRegion(0x11E_E000, 0x1024),
) -> Machine:
    """Return a small machine; every part can be set."""
    return Machine(
        X86_64,
        release,
        cpus(online, offline, possible),
        RangeList(ram),
        RangeList(crashkernel),
        kernel_text,
        page_offset,
        vmcoreinfo,
        MemoryBlocks(128 * MIB, 8, 0),
    )


def range_lists(limit: int = 1 << 20) -> st.SearchStrategy[RangeList]:
    """Range lists with ends that collide often."""
    edge = st.integers(0, 40) | st.integers(0, limit)
    pair = st.tuples(edge, edge).map(lambda edges: (min(edges), max(edges)))
    return st.lists(pair, max_size=12).map(RangeList)


def machines() -> st.SearchStrategy[Machine]:
    """Machines of any shape that can be dumped."""
    block = st.integers(8, 64).map(lambda n: (n * 128 * MIB, (n + 1) * 128 * MIB))
    blocks = st.lists(block, max_size=8)
    online = st.sets(st.integers(0, 15), min_size=1, max_size=8)
    return st.builds(
        lambda more, present, hidden: machine(
            online=sorted(present),
            possible=16,
            ram=[LOW_RAM, (MIB, GIB), *more],
            crashkernel=[(512 * MIB, 512 * MIB + hidden)],
        ),
        blocks,
        online,
        st.integers(1, 256 * MIB // 4096).map(lambda pages: pages * 4096),
    )
