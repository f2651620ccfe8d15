# SPDX-License-Identifier: MIT
"""/proc/kcore: headers and contents."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from crash_hotplug.core.elf import PT_LOAD, ProgramHeader, core_header, pack_program_headers
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import Sysroot
from tests.linux.fake_kcore import DIRECT_MAP, RAM_SIZE, TEXT_PHYS, TEXT_VIRT, write_kcore
from tests.trees import tree


@pytest.fixture
def kcore(tmp_path: Path) -> Kcore:
    (tmp_path / "proc").mkdir()
    write_kcore(tmp_path / "proc" / "kcore", {0x5000: b"physical"}, {TEXT_VIRT + 16: b"virtual"})
    return Kcore(Sysroot(str(tmp_path)))


def test_memory_is_read_by_physical_and_virtual_address(kcore: Kcore) -> None:
    assert kcore.read_phys(0x5000, 8) == b"physical"
    assert kcore.read_virt(DIRECT_MAP + 0x5000, 8) == b"physical"
    assert kcore.read_virt(TEXT_VIRT + 16, 7) == b"virtual"


@pytest.mark.parametrize(("phys", "length"), [(RAM_SIZE, 1), (RAM_SIZE - 4, 8)])
def test_missing_memory_is_cannot_tell(kcore: Kcore, phys: int, length: int) -> None:
    with pytest.raises(CannotTellError, match="no memory at physical address"):
        kcore.read_phys(phys, length)


def write_phnum(tmp_path: Path, number: int) -> None:
    with (tmp_path / "proc" / "kcore").open("r+b") as file:
        file.seek(56)
        file.write(number.to_bytes(2, "little"))


def test_range_that_came_and_went_between_two_comparisons_of_the_headers_is_noticed(
    kcore: Kcore, tmp_path: Path
) -> None:
    write_phnum(tmp_path, 4)
    with pytest.raises(CannotTellError, match="memory came or went while /proc/kcore was read"):
        kcore.read_phys(0x5000, 8)
    write_phnum(tmp_path, 3)
    assert kcore.read_phys(0x5000, 8) == b"physical"
    assert kcore.has_moved()


def test_range_that_goes_while_the_headers_are_read_is_left_out(
    tmp_path: Path, kcore: Kcore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_phnum(tmp_path, 4)
    read_at, reads = Kcore._read_at, []

    def range_goes(self: Kcore, offset: int, length: int) -> bytes:
        reads.append(offset)
        if len(reads) == 2:
            write_phnum(tmp_path, 3)
        return read_at(self, offset, length)

    monkeypatch.setattr(Kcore, "_read_at", range_goes)
    with Kcore(Sysroot(str(tmp_path))) as opened:
        assert len(opened.program_headers) == 3
        assert opened.read_phys(0x5000, 8) == b"physical"


def test_addresses_without_a_physical_one_are_not_ram(kcore: Kcore) -> None:
    assert kcore.page_offset() == DIRECT_MAP
    assert kcore.phys_of_kernel_virt(TEXT_VIRT + 5) == TEXT_PHYS + 5
    assert kcore.phys_of_kernel_virt(DIRECT_MAP) is None


def test_headers_are_sorted_out_once_for_any_number_of_addresses(kcore: Kcore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine has up to 65,536 possible CPUs."""
    asked = []
    monkeypatch.setattr(Kcore, "is_kernel_text", lambda _self, p: asked.append(p))
    for number in range(1000):
        assert kcore.phys_of_direct_map_virt(DIRECT_MAP + number) == number
    assert asked == []


def test_kcore_headers_of_a_capture_are_read() -> None:
    with Kcore(Sysroot(str(tree("6.1-c", 1)))) as kcore:
        assert kcore.page_offset() == 0xFFFF8E35C0000000
        assert kcore.phys_of_kernel_virt(0xFFFFFFFF92000000) == 0x3A800000
        assert kcore.architecture.name == "x86_64"
        with pytest.raises(CannotTellError, match="does not give the memory"):
            kcore.read_phys(0x5000, 8)


def test_truncated_or_missing_kcore_is_reported(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "kcore").write_bytes((tree("6.1-c", 0) / "proc" / "kcore").read_bytes()[:300])
    with pytest.raises(InputError, match="is truncated"):
        Kcore(Sysroot(str(tmp_path)))
    (tmp_path / "proc" / "kcore").unlink()
    with pytest.raises(CannotTellError, match="does not exist"):
        Kcore(Sysroot(str(tmp_path)))


def test_hidden_kcore_names_the_container_or_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Container runtimes put /dev/null over it, systemd an empty file."""
    (tmp_path / "empty").write_text("")
    for path, words in (("/dev/null", "is hidden: a container"), (str(tmp_path / "empty"), "is empty: a container")):
        monkeypatch.setattr("crash_hotplug.linux.kcore.PATH", path)
        with pytest.raises(CannotTellError, match=words):
            Kcore(Sysroot())


def test_layout_that_changed_since_the_open_is_noticed(kcore: Kcore, tmp_path: Path) -> None:
    assert not kcore.has_moved()
    with (tmp_path / "proc" / "kcore").open("r+b") as file:
        file.seek(64 + 8)
        file.write((0x2000).to_bytes(8, "little"))  # p_offset of the first program header
    assert kcore.has_moved()


def test_virtual_range_that_ends_behind_its_header_is_cannot_tell(kcore: Kcore) -> None:
    with pytest.raises(CannotTellError, match="no memory at virtual address"):
        kcore.read_virt(TEXT_VIRT + 0x80_0000 - 4, 8)


def test_kcore_that_is_refused_is_closed(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "kcore").write_bytes(b"no ELF file" * 20)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(InputError) as raised:
        Kcore(Sysroot(str(tmp_path)))
    assert len(os.listdir("/proc/self/fd")) == before
    assert raised.tb is not None  # it refers to the Kcore, which would else be closed as garbage


def test_kcore_that_gives_a_part_at_a_time_is_read_to_the_end(kcore: Kcore, monkeypatch: pytest.MonkeyPatch) -> None:
    read = kcore._file.read
    monkeypatch.setattr(kcore, "_file", SimpleNamespace(seek=kcore._file.seek, read=lambda n: read(min(n, 3))))
    assert kcore.read_phys(0x5000, 8) == b"physical"


def test_kcore_without_physical_addresses_has_no_ram(tmp_path: Path) -> None:
    """Kernels before 4.13."""
    (tmp_path / "proc").mkdir()
    entries = [ProgramHeader(PT_LOAD, 7, 0x1000, DIRECT_MAP + at, (1 << 64) - 1, 4096, 4096, 4096) for at in (0, 8192)]
    (tmp_path / "proc" / "kcore").write_bytes(core_header(62, 2).to_bytes() + pack_program_headers(entries))
    with Kcore(Sysroot(str(tmp_path))) as kcore:
        assert kcore.page_offset() is None
        with pytest.raises(CannotTellError, match="no memory at physical"):
            kcore.read_phys(0, 8)


def test_ram_whose_headers_disagree_has_no_page_offset(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    entries = [ProgramHeader(PT_LOAD, 7, 0, DIRECT_MAP + 2 * at, at, 4096, 4096, 4096) for at in (0, 8192)]
    (tmp_path / "proc" / "kcore").write_bytes(core_header(62, 2).to_bytes() + pack_program_headers(entries))
    with Kcore(Sysroot(str(tmp_path))) as kcore:
        assert kcore.page_offset() is None


def test_ram_that_does_not_begin_at_0_is_read_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    entry = ProgramHeader(PT_LOAD, 7, 0x1000, DIRECT_MAP + 0x10_0000, 0x10_0000, 4096, 4096, 4096)
    data = (core_header(62, 1).to_bytes() + pack_program_headers([entry])).ljust(0x1010, b"\0") + b"here".ljust(0xFF0)
    (tmp_path / "proc" / "kcore").write_bytes(data)
    with Kcore(Sysroot(str(tmp_path))) as kcore:
        assert kcore.read_phys(0x10_0010, 4) == b"here"
        assert kcore.read_virt(DIRECT_MAP + 0x10_0010, 4) == b"here"
        assert kcore.phys_of_direct_map_virt(DIRECT_MAP + 0x10_0010) == 0x10_0010


def test_address_in_the_direct_map_is_looked_up_among_ranges_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    starts = (0x30_0000, 0x10_0000, 0x20_0000)
    entries = [ProgramHeader(PT_LOAD, 7, 0, DIRECT_MAP + at, at, 4096, 4096, 4096) for at in starts]
    (tmp_path / "proc" / "kcore").write_bytes(core_header(62, 3).to_bytes() + pack_program_headers(entries))
    with Kcore(Sysroot(str(tmp_path))) as kcore:
        for start in starts:
            for phys, known in ((start - 1, False), (start, True), (start + 4095, True), (start + 4096, False)):
                assert kcore.phys_of_direct_map_virt(DIRECT_MAP + phys) == (phys if known else None)
