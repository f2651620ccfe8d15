# SPDX-License-Identifier: MIT
"""Kernel releases, CPUs and memory of a machine."""

from __future__ import annotations

import pytest

from crash_hotplug.core.machine import kernel_version
from crash_hotplug.core.ranges import RangeList
from tests.machines import MIB, machine


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.1.0-50-cloud-amd64", (6, 1)),
        ("4.18.0-553.el8_10.x86_64", (4, 18)),
        ("7.2-rc1", (7, 2)),
        ("", None),
        (None, None),
        ("linux", None),
    ],
)
def test_kernel_version_from_a_release(release: str | None, version: tuple[int, int] | None) -> None:
    assert kernel_version(release) == version


def test_dumpable_ram_is_ram_without_the_crashkernel() -> None:
    assert [r.start for r in machine().dumpable_ram] == [0x1000, MIB, 768 * MIB]


def test_cpus_present_and_online() -> None:
    made = machine(online=(0, 3), offline=(5,))
    assert [cpu.number for cpu in made.present_cpus] == [0, 3, 5]
    assert [cpu.number for cpu in made.online_cpus] == [0, 3]


@pytest.mark.parametrize(
    ("release", "crashkernel", "keeps_out"),
    [
        ("5.13.0", False, True),
        ("5.12.0", False, False),
        ("5.12.0", True, True),
        ("5.5.0", True, True),
        ("5.4.0", True, False),
        ("6.0.0", False, True),
        ("4.18.0", True, False),
        (None, True, None),
    ],
)
def test_low_memory_is_unused_since_5_13_and_with_crashkernel_since_5_5(
    release: str | None, crashkernel: bool, keeps_out: bool | None
) -> None:
    assert machine(release=release)._replace(reserves_crashkernel=crashkernel).keeps_out_of_low_memory is keeps_out


def test_machine_reserves_a_crashkernel_and_has_no_memory_devices_unless_it_is_said() -> None:
    made = machine()
    assert (made.reserves_crashkernel, made.memory_encryption, made.acpi_memory_devices) == (True, None, 0)


def test_capture_kernels_other_ram_is_not_dumpable() -> None:
    cma = RangeList([(900 * MIB, 910 * MIB)])
    made = machine()._replace(capture_ram=cma)
    assert made.not_dumpable == made.crashkernel.union(cma)
    assert made.dumpable_ram == machine().dumpable_ram.exclude(cma)
