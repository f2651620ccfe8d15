# SPDX-License-Identifier: MIT
"""QEMU's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import host_tools, machine
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import QemuMachine


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tools, "qemu", lambda: ["qemu"])
    monkeypatch.setattr(machine, "has_kvm", lambda: True)


def command(tmp_path: Path, release: str, counts_instructions: bool = False, crashkernel_cma: int = 0) -> str:
    kernel = Kernel("k", "1", release, tmp_path / "vmlinuz", tmp_path, "trixie")
    made = QemuMachine(
        kernel,
        tmp_path / "initramfs",
        tmp_path,
        counts_instructions=counts_instructions,
        crashkernel_cma=crashkernel_cma,
    )
    return " ".join(made.command())


def test_command_uses_hardware_virtualisation_where_it_works(tmp_path: Path) -> None:
    assert "-accel kvm -machine q35 -cpu Haswell-noTSX-IBRS -m" in command(tmp_path, "6.1.0")


def test_command_shows_newer_kernels_a_hypervisor_they_know(tmp_path: Path) -> None:
    assert "-machine q35,vmport=on -cpu Haswell-noTSX-IBRS,-hypervisor" in command(tmp_path, "6.12.0")


@pytest.mark.parametrize("release", ["6.1.0", "6.12.0"])
def test_command_that_counts_instructions_has_emulation_and_no_vmport(tmp_path: Path, release: str) -> None:
    counted = command(tmp_path, release, counts_instructions=True)
    assert "-accel tcg,thread=single -icount shift=0 -machine q35 " in counted
    assert "kvm" not in counted


def test_command_reserves_a_cma_range_beside_the_crash_kernel_where_the_scenario_has_one(tmp_path: Path) -> None:
    with_cma = command(tmp_path, "7.3.4", crashkernel_cma=96 << 20)
    assert " crashkernel=192M " in with_cma
    assert " crashkernel=96M,cma " in with_cma
    assert "M,cma" not in command(tmp_path, "7.3.4")
