# SPDX-License-Identifier: MIT
"""The comparison of two elfcorehdrs, and the memory that is plugged at the panic."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import cast

import pytest

from crash_hotplug_lab.qemu import guest_run
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import QemuMachine
from crash_hotplug_lab.qemu.results import Result
from crash_hotplug_lab.scenario.file import read_scenario

DIRECT = 0xFFFF0000_00000000


def header(*ranges: tuple[int, int, int]) -> bytes:
    """Return a header that describes one CPU, and ranges of physical start, size and mapping."""
    entries = [(4, 0, 0x1000, 0, 0x1000, 0x1A8, 0x1A8, 0)]
    entries += [(1, 7, start, mapping + start, start, size, size, 0) for start, size, mapping in ranges]
    raw = bytearray(b"".join(struct.pack("<IIQQQQQQ", *entry) for entry in entries))
    return bytes(56) + struct.pack("<H", len(entries)) + bytes(6) + bytes(raw)


def test_ranges_that_touch_are_the_same_as_one_range() -> None:
    apart = header((0x40000000, 0x1000, DIRECT), (0x40001000, 0x2000, DIRECT))
    one = header((0x40000000, 0x3000, DIRECT))
    assert guest_run._header(apart) != guest_run._header(one)
    assert guest_run._entries(apart) == guest_run._entries(one)


def test_other_ranges_are_not_the_same() -> None:
    one = header((0x40000000, 0x3000, DIRECT))
    gap = header((0x40000000, 0x1000, DIRECT), (0x40002000, 0x1000, DIRECT))
    shorter = header((0x40000000, 0x1000, DIRECT), (0x40001000, 0x1000, DIRECT))
    mapped_elsewhere = header((0x40000000, 0x1000, DIRECT), (0x40001000, 0x2000, 0))
    for other in (gap, shorter, mapped_elsewhere):
        assert guest_run._entries(other) != guest_run._entries(one)


BLOCK = 128 << 20


class FakeMachine:
    """A machine with an NVDIMM of four memory blocks, a virtio-mem device and a DIMM."""

    kernel = Kernel("6.12", "1", "6.12.0", Path("vmlinuz"), Path("modules"), "trixie")

    async def dimms(self) -> list[tuple[int, int, str]]:
        return [(0, BLOCK, "dimm0"), (4 * BLOCK, 8 * BLOCK, "dax0"), (16 * BLOCK, 17 * BLOCK + 1, "vm0")]


class FakeRun(guest_run.GuestRun):
    """A run whose guest has given devices to the kmem driver."""

    async def block_size(self) -> int:
        return BLOCK


@pytest.mark.parametrize("name", ["dax0", "cxl0"])  # QEMU lists an NVDIMM, but no CXL device
def test_memory_of_kmem_is_plugged_as_long_as_the_guest_has_it(name: str, tmp_path: Path) -> None:
    scenario, result = read_scenario("hot-add"), Result("hot-add", "", "6.12", "1", "6.12.0", "s", "in-place")
    machine = cast("QemuMachine", FakeMachine())
    others = [(0, BLOCK, "dimm0"), (16 * BLOCK, 18 * BLOCK, "vm0")]
    for online in (True, False):
        run = FakeRun(machine, scenario, "s", "in-place", tmp_path, result, lambda _: None)
        run._kmem |= {name, "dax0"}
        run.dimms[name] = (5 * BLOCK, 8 * BLOCK)
        run.seen.online |= {name} if online else set()
        asyncio.run(run._see_plugged())
        expected = [*others, (5 * BLOCK, 8 * BLOCK, name)] if online else others
        assert run.seen.plugged == expected
        assert run.seen.unplugged == [(17 * BLOCK + 1, 18 * BLOCK)]
