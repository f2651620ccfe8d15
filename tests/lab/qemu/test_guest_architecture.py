# SPDX-License-Identifier: MIT
"""Differences between arm64 and x86_64 guests: the code of a busy CPU, its registers in a dump, the tools."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from crash_hotplug_lab.in_guest import agent
from crash_hotplug_lab.qemu import dump, host_tools
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.guest_architecture import ARM64, X86_64, GuestArchitecture, architecture_of
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.scenario.records import BUSY_PATTERN, BUSY_REGISTERS

VALUES = {n: BUSY_PATTERN + n for n in range(8, 16)}


def loop_code(monkeypatch: pytest.MonkeyPatch, machine: str) -> bytes:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "guest", "6.1", "1", machine)))
    return agent._loop_code(VALUES)


def test_loop_of_a_busy_arm64_cpu_loads_the_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    *moves, loop = struct.unpack("<33I", loop_code(monkeypatch, "aarch64"))
    registers: dict[int, int] = {}
    for word in moves:  # C6.2 of the architecture's manual: movz clears the other bits, movk keeps them
        register, shift, value = word & 31, (word >> 21 & 3) * 16, word >> 5 & 0xFFFF
        kept = {0xD2800000: 0, 0xF2800000: registers.get(register, 0)}[word & 0xFF800000]
        registers[register] = kept & ~(0xFFFF << shift) | value << shift
    assert registers == VALUES
    assert loop == 0x14000000


def test_loop_of_a_busy_x86_cpu_loads_the_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    code = loop_code(monkeypatch, "x86_64")
    assert [struct.unpack_from("<BBQ", code, 10 * n) for n in range(8)] == [
        (0x49, 0xB8 + n, VALUES[n + 8]) for n in range(8)
    ]
    assert code[80:] == b"\xf3\x90\xeb\xfc"


def vmcore(path: Path, registers: list[int], loads: list[tuple[int, int, int]]) -> Path:
    """Write a vmcore with one NT_PRSTATUS and with loads of virtual address, physical address and size."""
    status = bytearray(112) + struct.pack(f"<{len(registers)}Q", *registers) + bytes(8)
    struct.pack_into("<I", status, 32, 4711)
    note = struct.pack("<III", 5, len(status), 1) + b"CORE\0\0\0\0" + status
    at = 64 + 56 * (1 + len(loads))
    headers = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(note), len(note), 4)
    for virtual, physical, size in loads:
        headers += struct.pack("<IIQQQQQQ", 1, 7, at, virtual, physical, 0, size, 4096)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 4, 183, 1, 0, 64, 0, 0, 64, 56, 1 + len(loads), 0, 0, 0)
    path.write_bytes(ident + elf + headers + note)
    return path


@pytest.mark.parametrize(
    ("architecture", "places"), [(ARM64, range(8, 16)), (X86_64, (9, 8, 7, 6, 3, 2, 1, 0))], ids=["arm64", "x86_64"]
)
def test_registers_8_to_15_are_read_from_their_places(
    tmp_path: Path, architecture: GuestArchitecture, places: list[int]
) -> None:
    registers = [0] * architecture.register_count
    for place, value in zip(places, BUSY_REGISTERS.values()):
        registers[place] = value
    (cpu,) = dump.cpus(vmcore(tmp_path / "vmcore", registers, []), architecture)
    assert (cpu.pid, cpu.registers) == (4711, tuple(BUSY_REGISTERS.values()))


@pytest.mark.parametrize(
    ("architecture", "place", "value", "in_kernel"),
    [
        (X86_64, 17, 0x33, False),  # __USER_CS
        (X86_64, 17, 0x10, True),  # __KERNEL_CS
        (ARM64, 33, 0x80001000, False),  # EL0t
        (ARM64, 33, 0x60400005, True),  # EL1h
        (ARM64, 33, 0x60400009, True),  # EL2h
    ],
)
def test_cpu_that_was_stopped_in_the_kernel_is_told_apart(
    tmp_path: Path, architecture: GuestArchitecture, place: int, value: int, in_kernel: bool
) -> None:
    registers = [0] * architecture.register_count
    registers[place] = value
    (cpu,) = dump.cpus(vmcore(tmp_path / "vmcore", registers, []), architecture)
    assert cpu.in_kernel is in_kernel


@pytest.mark.parametrize(
    ("architecture", "text", "direct"),
    [
        (ARM64, 0xFFFF800080000000, 0xFFFF000000000000),
        (ARM64, 0xFFFF800080000000, 0xFFF0000000000000),  # 52-bit addresses
        (X86_64, 0xFFFFFFFF81000000, 0xFFFF888000000000),
    ],
)
def test_kernel_text_is_no_range_of_ram(
    tmp_path: Path, architecture: GuestArchitecture, text: int, direct: int
) -> None:
    path = vmcore(tmp_path / "vmcore", [0] * 34, [(text, 0x40200000, 0x1000), (direct, 0x40000000, 0x100000)])
    assert dump.ranges(path, architecture) == [(0x40000000, 0x40100000)]


@pytest.mark.parametrize(
    ("code", "output", "answer"),
    [
        (0, "The dumpfile is saved", (True, "")),
        (1, "no\nlast words", (False, "last words")),
        (1, "VA Bits 52 not supported\nfailed", (None, "VA Bits 52 not supported")),
    ],
)  # fmt: skip
def test_makedumpfile_that_knows_no_such_kernel_is_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, output: str, answer: tuple[bool | None, str]
) -> None:
    monkeypatch.setattr(host_tools, "makedumpfile", lambda _: ["sh", "-c", f"echo '{output}'; exit {code}"])
    assert dump.accepted_by_makedumpfile(tmp_path / "vmcore", ARM64) == answer


def test_makedumpfile_of_arm64_runs_in_the_user_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_tools, "find_program", lambda tree, program: Path(tree.name, program))
    monkeypatch.setattr(host_tools, "program_in", lambda tree, program: [f"{tree.name}/{program}"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert host_tools.makedumpfile(X86_64) == ["trixie/makedumpfile"]
    run, loader, *_, program = host_tools.makedumpfile(ARM64)
    assert (run, program) == ("trixie-user/qemu-aarch64", "trixie-makedumpfile-arm64/makedumpfile")
    assert loader.endswith("trixie-makedumpfile-arm64/usr/lib/ld-linux-aarch64.so.1")
    assert [tools.name for tools in host_tools.tool_sets(X86_64)] == ["trixie"]
    assert [tools.name for tools in host_tools.tool_sets(ARM64)] == [
        "trixie-arm64",
        "trixie-user",
        "trixie-makedumpfile-arm64",
    ]


@pytest.mark.parametrize(
    ("arch", "release", "unmaps", "block_mib"),
    [
        ("arm64", "5.10.0-32-cloud-arm64", True, 1024),
        ("arm64", "6.1.0-50-cloud-arm64", True, 128),
        ("arm64", "6.12.1", False, 128),
        ("x86_64", "5.10.0", False, 128),
    ],
)
def test_kernel_unmaps_its_image_and_has_large_blocks(arch: str, release: str, unmaps: bool, block_mib: int) -> None:
    kernel = Kernel("k", "1", release, Path("vmlinuz"), Path("modules"), "trixie", arch)
    assert (kernel.unmaps_image, kernel.block_size >> 20) == (unmaps, block_mib)


def test_unknown_architecture_is_a_sentence() -> None:
    with pytest.raises(LabError, match="no architecture is known as sparc; known are x86_64, arm64"):
        architecture_of("sparc")
