"""How long one look at a machine takes: the source of the storm's in-place-look cost.

``pytest tests/model/test_storm_look.py --benchmark-enable`` prints the figures, of this machine and for its number of
memory blocks; nothing here asserts a time.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.memory_blocks import read_memory_blocks
from crash_hotplug.linux.sysroot import Sysroot


def test_look_at_this_machine(benchmark: BenchmarkFixture) -> None:
    live = Sysroot()
    try:
        blocks = read_machine(live).memory_blocks
    except CrashHotplugError as error:
        pytest.skip(f"this machine cannot be read: {error}")
    benchmark.extra_info["memory_blocks"] = 0 if blocks is None else blocks.online + blocks.offline
    benchmark(read_machine, live)


def test_memory_blocks_of_this_machine(benchmark: BenchmarkFixture) -> None:
    live = Sysroot()
    blocks = read_memory_blocks(live)
    if blocks is None:
        pytest.skip("this machine has no memory blocks")
    benchmark.extra_info["memory_blocks"] = blocks.online + blocks.offline
    benchmark(read_memory_blocks, live)
