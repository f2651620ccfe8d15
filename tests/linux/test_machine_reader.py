# SPDX-License-Identifier: MIT
"""A machine put together from its files, whole and with parts missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import KernelText, MemoryBlocks, NoteRegion
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.linux.kallsyms import explain_masked
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import Sysroot
from tests.trees import LiveTree, tree


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(tree("6.1-c", 1), tmp_path / "copy")
    return tmp_path / "copy"


def test_machine_of_a_capture_is_read() -> None:
    machine = read_machine(Sysroot(str(tree("6.1-c", 2))))
    assert machine.kernel_release == "6.1.0-50-cloud-amd64"
    assert machine.kernel_text == KernelText(0xFFFFFFFF92000000, 0x3A800000, 0x2830000)
    assert machine.page_offset == 0xFFFF8E35C0000000
    assert machine.vmcoreinfo == NoteRegion(0x11EE000, 0x1024), "1024 is hexadecimal"
    assert machine.memory_blocks == MemoryBlocks(
        128 << 20, online=9, offline=1, offline_ram=RangeList([(0x1_0800_0000, 0x1_1000_0000)])
    )
    assert machine.reserves_crashkernel
    assert machine.ram[-1] == (0x1_0000_0000, 0x1_1000_0000), "an offlined block stays in /proc/iomem"


def test_kernel_text_without_kcore_is_placed_by_iomem(copy: Path) -> None:
    (copy / "proc" / "kcore").unlink()
    machine = read_machine(Sysroot(str(copy)))
    assert machine.kernel_text == KernelText(0xFFFFFFFF92000000, 0x3A800000, 0x2830000)
    assert machine.page_offset is None


def test_kernel_text_with_masked_symbols_is_unknown(copy: Path) -> None:
    (copy / "proc" / "kallsyms").write_text("0000000000000000 T _text\n0000000000000000 B _end\n")
    assert read_machine(Sysroot(str(copy))).kernel_text is None


def test_masked_memory_is_cannot_tell(copy: Path) -> None:
    (copy / "proc" / "iomem").write_text("00000000-00000000 : System RAM\n")
    with pytest.raises(CannotTellError, match="run as root"):
        read_machine(Sysroot(str(copy)))
    (copy / "proc" / "iomem").unlink()
    with pytest.raises(CannotTellError, match="does not exist"):
        read_machine(Sysroot(str(copy)))


@pytest.mark.parametrize("text", ["", "0x11ee000", "nonsense 1024", "0x11ee000 1024 7"])
def test_vmcoreinfo_place_in_another_form_is_refused(copy: Path, text: str) -> None:
    (copy / "sys" / "kernel" / "vmcoreinfo").write_text(text)
    with pytest.raises(InputError, match="ADDRESS SIZE"):
        read_machine(Sysroot(str(copy)))


def test_kcore_of_another_architecture_is_refused(copy: Path) -> None:
    data = bytearray((copy / "proc" / "kcore").read_bytes())
    data[18] = 21
    (copy / "proc" / "kcore").write_bytes(data)
    with pytest.raises(InputError, match="is for ppc64"):
        read_machine(Sysroot(str(copy)))


def test_addresses_hidden_even_from_root_name_the_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert str(explain_masked(Sysroot())).endswith("they are hidden even from root (kernel.kptr_restrict)")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert str(explain_masked(Sysroot())).endswith("run as root")


@pytest.mark.parametrize(
    ("cmdline", "is_reserved"),
    [("crashkernel=192M crashkernel=96M,cma\n", True), ("crashkernel=192M,high crashkernel=96M,low cma\n", False)],
)
def test_cma_reservation_is_read_from_the_command_line(copy: Path, cmdline: str, is_reserved: bool) -> None:
    (copy / "proc" / "cmdline").write_text(cmdline)
    assert read_machine(Sysroot(str(copy))).reserves_cma is is_reserved


def test_cma_ranges_are_ram_of_the_capture_kernel(copy: Path) -> None:
    (copy / "sys/kernel/kexec").mkdir()
    (copy / "sys/kernel/kexec/crash_cma_ranges").write_text("28000000-2dffffff\n")
    assert read_machine(Sysroot(str(copy))).capture_ram == RangeList([(0x2800_0000, 0x2E00_0000)])


@pytest.mark.parametrize(
    ("cmdline", "reserves"),
    [
        ("crashkernel=192M quiet", True),
        ("quiet crashkernel=1G,high", True),
        ("quiet nocrashkernel=1", False),
        ("", False),
    ],
)
def test_crashkernel_option_is_found(copy: Path, cmdline: str, reserves: bool) -> None:
    (copy / "proc" / "cmdline").write_text(f"{cmdline}\n")
    assert read_machine(Sysroot(str(copy))).reserves_crashkernel is reserves


@pytest.mark.parametrize("end", ["ffffffff92000000", "ffffffff91000000"])
def test_kernel_text_that_ends_before_it_starts_is_unknown(copy: Path, end: str) -> None:
    (copy / "proc" / "kallsyms").write_text(f"ffffffff92000000 T _text\n{end} B _end\n")
    assert read_machine(Sysroot(str(copy))).kernel_text is None


def test_kernel_text_whose_symbols_may_not_be_read_is_unknown(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: object) -> dict[str, int]:
        raise CannotTellError("no")

    monkeypatch.setattr("crash_hotplug.linux.kallsyms.read_symbols", refused)
    assert read_machine(Sysroot(str(copy))).kernel_text is None


def test_kcore_is_closed_when_the_machine_was_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Kcore] = []

    def keep(sysroot: Sysroot) -> Kcore:
        opened.append(Kcore(sysroot))
        return opened[-1]

    monkeypatch.setattr("crash_hotplug.linux.machine_reader.Kcore", keep)
    read_machine(Sysroot(str(copy)))
    assert [kcore._file.closed for kcore in opened] == [True]


@pytest.mark.parametrize(("name", "is_supported"), [("x86_64", True), ("aarch64", True), ("riscv64", False)])
def test_architecture_of_a_live_machine_without_kcore_is_that_of_uname(
    copy: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, name: str, is_supported: bool
) -> None:
    (copy / "proc" / "kcore").unlink()
    running_architecture.cache_clear()
    request.addfinalizer(running_architecture.cache_clear)
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(machine=name))
    if is_supported:
        assert read_machine(LiveTree(str(copy))).architecture.name == name
    else:
        with pytest.raises(InputError, match="this machine is riscv64; supported are x86_64, aarch64"):
            read_machine(LiveTree(str(copy)))
