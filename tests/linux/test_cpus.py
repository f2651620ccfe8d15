# SPDX-License-Identifier: MIT
"""/sys/devices/system/cpu, and the notes of CPUs that are not present yet.

Those come from the kernel's variables, are checked against sysfs, and are kept by a snapshot.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Cpu, NoteRegion
from crash_hotplug.linux.cpus import (
    CPU_LIMIT,
    SAVED_NOTES,
    notes_json,
    parse_cpu_list,
    read_cpus,
    read_possible_notes,
    with_possible_notes,
)
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.cli.running import run
from tests.linux.fake_kcore import DIRECT_MAP, TEXT_VIRT, write_kcore
from tests.trees import loaded_header, tree

CRASH_NOTES_VIRT = TEXT_VIRT + 0x3000
PER_CPU_OFFSET_VIRT = TEXT_VIRT + 0x4000
PERCPU_BASE = 0x2D400
"""The value of ``crash_notes``: an offset into each CPU's area."""
AREAS = [DIRECT_MAP + 0x3EC0_0000 + number * 0x4_0000 for number in range(4)]
PHYS = [area - DIRECT_MAP + PERCPU_BASE for area in AREAS]
SYMBOLS = f"{CRASH_NOTES_VIRT:016x} B crash_notes\n{PER_CPU_OFFSET_VIRT:016x} D __per_cpu_offset\n"


def sysfs_cpus(first: int = PHYS[0]) -> tuple[Cpu, ...]:
    """Return four possible CPUs of which two are present."""
    known = [NoteRegion(first, 368), NoteRegion(PHYS[1], 368), None, None]
    return tuple(Cpu(number, number < 2, number < 2, notes) for number, notes in enumerate(known))


def kernel(path: Path, areas: list[int] | None = None, symbols: str = SYMBOLS) -> Sysroot:
    (path / "proc").mkdir()
    (path / "proc" / "kallsyms").write_text(symbols)
    offsets = struct.pack("<4Q", *(AREAS if areas is None else areas))
    data = {CRASH_NOTES_VIRT: PERCPU_BASE.to_bytes(8, "little"), PER_CPU_OFFSET_VIRT: offsets}
    write_kcore(path / "proc" / "kcore", {}, data)
    return Sysroot(str(path))


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", [0, 1, 2, 3, 8]), ("0", [0]), ("", []), ("1,3-4", [1, 3, 4]), ("7-7", [7])]
)
def test_cpu_list_is_parsed(text: str, numbers: list[int]) -> None:
    assert parse_cpu_list(text) == numbers


@pytest.mark.parametrize("text", ["x", "3-1", "0-999999", "0,,1", "-1", "0-", "9" * 5000, str(CPU_LIMIT)])
def test_cpu_list_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_cpu_list(text)


@given(st.text(st.sampled_from("0123456789-, "), max_size=40))
def test_cpu_list_of_any_text_has_possible_numbers(text: str) -> None:
    with contextlib.suppress(InputError):
        assert all(0 <= number < CPU_LIMIT for number in parse_cpu_list(text))


def test_cpus_of_a_real_machine() -> None:
    cpus = read_cpus(Sysroot(str(tree("6.1-c", 1))))
    assert [(cpu.number, cpu.present, cpu.online) for cpu in cpus[:4]] == [
        (0, True, True),
        (1, True, True),
        (2, True, True),
        (3, False, False),
    ]
    assert len(cpus) == 8
    assert cpus[2].crash_notes == (0x3ECB9400, 368)
    assert cpus[3].crash_notes is None


def test_cpus_without_the_list_of_present_ones_cannot_be_told(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    with pytest.raises(CannotTellError, match="present does not exist"):
        read_cpus(Sysroot(str(tmp_path)))


@pytest.mark.parametrize(("content", "expected"), [("0\n", None), (None, None)])
def test_notes_that_are_masked_or_missing_are_not_known(tmp_path: Path, content: str | None, expected: None) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    notes = copy / "sys/devices/system/cpu/cpu1/crash_notes"
    notes.unlink()
    if content is not None:
        notes.write_text(content)
    assert read_cpus(Sysroot(str(copy)))[1].crash_notes is expected


def test_notes_that_are_no_number_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    (copy / "sys/devices/system/cpu/cpu1/crash_notes").write_text("somewhere")
    with pytest.raises(InputError, match="'somewhere'"):
        read_cpus(Sysroot(str(copy)))


def test_possible_notes_come_from_the_kernels_variables(tmp_path: Path) -> None:
    sysroot = kernel(tmp_path)
    with Kcore(sysroot) as kcore:
        found = read_possible_notes(sysroot, kcore, sysfs_cpus())
    assert found == {number: NoteRegion(phys, 368) for number, phys in enumerate(PHYS)}


def test_possible_notes_that_disagree_with_sysfs_once_are_all_worthless(tmp_path: Path) -> None:
    sysroot = kernel(tmp_path)
    with Kcore(sysroot) as kcore:
        assert read_possible_notes(sysroot, kcore, sysfs_cpus(first=PHYS[0] + 0x400)) == {}


@pytest.mark.parametrize(
    ("areas", "symbols"),
    [([*AREAS[:3], 0x1234], SYMBOLS), (None, ""), (None, SYMBOLS.splitlines(keepends=True)[0])],
    ids=["outside RAM", "masked", "no SMP"],
)
def test_possible_notes_that_cannot_be_read_are_none(tmp_path: Path, areas: list[int] | None, symbols: str) -> None:
    sysroot = kernel(tmp_path, areas, symbols)
    with Kcore(sysroot) as kcore:
        assert read_possible_notes(sysroot, kcore, sysfs_cpus()) == {}


def test_possible_notes_are_kept_by_a_snapshot(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    known = tuple(Cpu(c.number, c.present, c.online, NoteRegion(PHYS[c.number], 368)) for c in sysfs_cpus())
    (tmp_path / SAVED_NOTES.lstrip("/")).write_bytes(notes_json(known))
    assert with_possible_notes(Sysroot(str(tmp_path)), None, sysfs_cpus()) == known


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"crash_notes": {"x": 1}}', '{"crash_notes": {"1": {"phys": "1", "size": 4}}}', "[" * 9999],
)
def test_saved_notes_that_are_broken_are_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "sys").mkdir()
    (tmp_path / SAVED_NOTES.lstrip("/")).write_text(text)
    with pytest.raises(InputError, match="is not in the format of a snapshot"):
        with_possible_notes(Sysroot(str(tmp_path)), None, sysfs_cpus())


def test_header_from_possible_notes_is_the_one_that_6_12_wrote(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The notes of the six absent CPUs are taken from the captured header, as a live machine would read them."""
    saved = tmp_path / "saved"
    run(capsys, "snapshot", "--sysroot", tree("6.12-s", 0), "-o", saved)
    notes = parse_elfcorehdr(loaded_header("6.12-s", 0)).cpu_notes
    (saved / SAVED_NOTES.lstrip("/")).write_bytes(
        notes_json([Cpu(n, n < 2, n < 2, note) for n, note in enumerate(notes)])
    )
    header = expected_elfcorehdr(read_machine(Sysroot(str(saved))), Loader.KERNEL)
    assert header.to_bytes(4096) == loaded_header("6.12-s", 0)


@pytest.mark.parametrize("name", ["present", "online", "possible"])
def test_list_of_cpus_that_is_empty_is_cannot_tell(tmp_path: Path, name: str) -> None:
    """A header without any CPU's notes would be called right."""
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 0), copy)
    (copy / "sys/devices/system/cpu" / name).write_text("")
    with pytest.raises(CannotTellError, match=f"{name} is empty"):
        read_cpus(Sysroot(str(copy)))


def test_cpu_that_is_present_and_not_in_the_list_is_offline(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree("6.1-c", 1), copy)
    (copy / "sys/devices/system/cpu/online").write_text("0,2\n")
    assert [cpu.online for cpu in read_cpus(Sysroot(str(copy)))[:3]] == [True, False, True]
    (copy / "sys/devices/system/cpu/online").unlink()
    assert [cpu.online for cpu in read_cpus(Sysroot(str(copy)))[:4]] == [True, True, True, False]


def test_possible_notes_wrap_around_the_end_of_the_address_space(tmp_path: Path) -> None:
    """Since 6.15 a per-CPU variable has a kernel address, and each CPU's offset is the difference to its area."""
    base = 0xFFFF_FFFF_8340_0000
    offsets = [(DIRECT_MAP + phys - base) % (1 << 64) for phys in PHYS]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "kallsyms").write_text(SYMBOLS)
    data = {CRASH_NOTES_VIRT: base.to_bytes(8, "little"), PER_CPU_OFFSET_VIRT: struct.pack("<4Q", *offsets)}
    write_kcore(tmp_path / "proc" / "kcore", {}, data)
    sysroot = Sysroot(str(tmp_path))
    with Kcore(sysroot) as kcore:
        found = read_possible_notes(sysroot, kcore, sysfs_cpus())
    assert found == {number: NoteRegion(phys, 368) for number, phys in enumerate(PHYS)}
