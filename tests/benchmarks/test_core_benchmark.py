# SPDX-License-Identifier: MIT
"""Building, parsing and comparing a header of the largest machines: ``make bench-core`` shows the figures.

The assertions are about growth, side by side in one run, never about seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.verdict import compare_header
from tests.machines import LOW_RAM, MIB, machine

CPUS = 1024
RANGES = 8192


def large_machine(scale: float = 1.0) -> Machine:
    """Return a machine with CPUS CPUs and RANGES memory ranges with gaps between them, or that times *scale*."""
    blocks = range(1, int(RANGES * scale) + 1)
    ram = [LOW_RAM, *((n * 256 * MIB, n * 256 * MIB + 128 * MIB) for n in blocks)]
    return machine(
        online=range(int(CPUS * scale)), possible=int(CPUS * scale), ram=ram, crashkernel=[(1 << 50, 1 << 51)]
    )


def steps(described: Machine) -> dict[str, Callable[[], object]]:
    header = expected_elfcorehdr(described, Loader.KERNEL)
    data = header.to_bytes(4096)
    return {
        "build": lambda: expected_elfcorehdr(described, Loader.KERNEL).to_bytes(4096),
        "parse": lambda: parse_elfcorehdr(data),
        "compare": lambda: compare_header(described, parse_elfcorehdr(data), Loader.KERNEL),
    }


@pytest.mark.parametrize("step", ["build", "parse", "compare"])
def test_header_of_a_large_machine(benchmark: BenchmarkFixture, step: str) -> None:
    benchmark(steps(large_machine())[step])


def best_of(runs: int, step: Callable[[], object]) -> float:
    times = []
    for _ in range(runs):
        started = time.process_time()
        step()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize("step", ["build", "parse", "compare"])
def test_cost_is_linear_in_the_entries(step: str) -> None:
    """Eight times the entries take about eight times as long; a quadratic step would take 64 times."""
    small, large = (steps(large_machine(scale))[step] for scale in (0.125, 1.0))
    ratio = best_of(7, large) / best_of(7, small)
    assert ratio < 24
