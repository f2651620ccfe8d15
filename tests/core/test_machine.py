# SPDX-License-Identifier: MIT
"""Kernel releases, CPUs and memory of a machine."""

from __future__ import annotations

import pytest

from crash_hotplug.core.machine import kernel_version
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
