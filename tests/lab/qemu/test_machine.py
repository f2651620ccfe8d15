# SPDX-License-Identifier: MIT
"""QEMU's command line."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug_lab.qemu import host_tools, machine
from crash_hotplug_lab.qemu.guest_architecture import ARM64, X86_64
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.machine import QemuMachine


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tools, "qemu", lambda architecture: [architecture.qemu])
    monkeypatch.setattr(machine, "has_kvm", lambda: True)


def command(
    tmp_path: Path,
    release: str,
    counts_instructions: bool = False,
    arch: str = "x86_64",
    crashkernel_cma: int = 0,
    **more: Any,  # noqa: ANN401 arguments of QemuMachine
) -> str:
    kernel = Kernel("k", "1", release, tmp_path / "vmlinuz", tmp_path, "trixie", arch)
    made = QemuMachine(
        kernel,
        tmp_path / "initramfs",
        tmp_path,
        counts_instructions=counts_instructions,
        crashkernel_cma=crashkernel_cma,
        **more,
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


def test_command_of_an_arm64_guest_is_emulated_and_has_a_firmware_with_acpi(tmp_path: Path) -> None:
    made = command(tmp_path, "6.12.0", arch="arm64")
    assert made.startswith("qemu-system-aarch64 ")
    assert "-accel tcg,thread=multi -machine virt,gic-version=3,acpi=on -cpu neoverse-n1 -m" in made
    assert "-smp 2 -kernel" in made
    assert "console=ttyAMA0 quiet panic=1 crashkernel=256M" in made
    assert "kvm" not in made


def test_qemu_of_arm64_is_given_its_firmware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(host_tools, "program_in", lambda tree, program: [f"{tree.name}/{program}"])
    assert host_tools.qemu(ARM64)[-1].endswith("usr/share/qemu-efi-aarch64/QEMU_EFI.fd")
    assert "-bios" not in host_tools.qemu(X86_64)


def test_instruction_pointers_are_read_by_the_architectures_name_of_them(tmp_path: Path) -> None:
    shown = {"x86_64": "RIP=ffffffff81000000 RFL=2", "arm64": " PC=ffff800080010000 X00=0"}
    for arch, registers in shown.items():
        kernel = Kernel("k", "1", "6.1.0", tmp_path, tmp_path, "trixie", arch)
        made = QemuMachine(kernel, tmp_path, tmp_path)

        async def answer(_command: str, registers: str = registers, **_arguments: object) -> str:
            return registers

        made.qmp = answer  # type: ignore[method-assign,assignment]
        (found,) = asyncio.run(made.instruction_pointers())
        assert hex(found) in ("0xffffffff81000000", "0xffff800080010000")


def test_command_reserves_a_cma_range_beside_the_crash_kernel_where_the_scenario_has_one(tmp_path: Path) -> None:
    with_cma = command(tmp_path, "7.3.4", crashkernel_cma=96 << 20)
    assert " crashkernel=192M " in with_cma
    assert " crashkernel=96M,cma " in with_cma
    assert "M,cma" not in command(tmp_path, "7.3.4")


def test_command_has_the_ram_at_boot_in_the_first_of_several_nodes(tmp_path: Path) -> None:
    made = command(tmp_path, "6.12.0", nodes=2)
    assert "-object memory-backend-ram,id=ram,size=1073741824,reserve=off -numa node,nodeid=0,memdev=ram " in made
    assert "-numa node,nodeid=1" in made
    assert "-numa" not in command(tmp_path, "6.12.0")


def test_command_reserves_no_host_memory_for_a_large_guest(tmp_path: Path) -> None:
    made = command(tmp_path, "6.12.0", memory=64 << 30)
    assert "memory-backend-ram,id=ram,size=68719476736,reserve=off -machine memory-backend=ram" in made
    assert "reserve=off" not in command(tmp_path, "6.12.0", memory=8 << 30)


def test_command_has_the_words_and_devices_of_the_scenario(tmp_path: Path) -> None:
    made = command(tmp_path, "6.12.0", append="memmap_on_memory=1", devices=("-device", "nvdimm"))
    assert "rdinit=/init memmap_on_memory=1 " in made
    assert made.endswith("-device nvdimm")


def test_memory_devices_are_listed_with_the_plugged_part_of_virtio_mem(tmp_path: Path) -> None:
    made = QemuMachine(Kernel("k", "1", "6.1.0", tmp_path, tmp_path, "trixie", "x86_64"), tmp_path, tmp_path)

    async def answer(_command: str, **_arguments: object) -> list[dict[str, Any]]:
        virtio = {"id": "vm0", "memaddr": 8 << 30, "size": 300 << 20, "max-size": 2 << 30}
        return [{"type": "virtio-mem", "data": virtio}, {"data": {"id": "d0", "addr": 4 << 30, "size": 1 << 28}}]

    made.qmp = answer  # type: ignore[method-assign,assignment]
    assert asyncio.run(made.dimms()) == [
        (4 << 30, (4 << 30) + (1 << 28), "d0"),
        (8 << 30, (8 << 30) + (300 << 20), "vm0"),
    ]
