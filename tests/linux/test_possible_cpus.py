"""Notes of CPUs that are not present yet: out of the kernel's variables, checked against sysfs, kept by a snapshot."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from crash_hotplug.core.elfcorehdr import Dialect, parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.machine import Cpu, NoteRegion
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.possible_cpus import SAVED, read_from_kernel, to_json, with_possible_notes
from crash_hotplug.linux.sysroot import Sysroot
from tests.cli.running import run
from tests.linux.fake_kcore import DIRECT_MAP, TEXT_VIRT, write_kcore
from tests.trees import loaded_header, tree

CRASH_NOTES_VIRT = TEXT_VIRT + 0x3000
PER_CPU_OFFSET_VIRT = TEXT_VIRT + 0x4000
PERCPU_BASE = 0x2D400
"""What ``crash_notes`` holds: an offset into each CPU's area."""
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


def test_the_kernels_variables_tell_every_possible_cpu(tmp_path: Path) -> None:
    sysroot = kernel(tmp_path)
    with Kcore(sysroot) as kcore:
        found = read_from_kernel(sysroot, kcore, sysfs_cpus())
    assert found == {number: NoteRegion(phys, 368) for number, phys in enumerate(PHYS)}


def test_one_disagreement_with_sysfs_makes_all_of_them_worthless(tmp_path: Path) -> None:
    sysroot = kernel(tmp_path)
    with Kcore(sysroot) as kcore:
        assert read_from_kernel(sysroot, kcore, sysfs_cpus(first=PHYS[0] + 0x400)) == {}


@pytest.mark.parametrize(
    ("areas", "symbols"),
    [([*AREAS[:3], 0x1234], SYMBOLS), (None, ""), (None, SYMBOLS.splitlines(keepends=True)[0])],
    ids=["outside RAM", "masked", "no SMP"],
)
def test_what_cannot_be_read_is_left_alone(tmp_path: Path, areas: list[int] | None, symbols: str) -> None:
    sysroot = kernel(tmp_path, areas, symbols)
    with Kcore(sysroot) as kcore:
        assert read_from_kernel(sysroot, kcore, sysfs_cpus()) == {}


def test_a_snapshot_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "sys").mkdir()
    known = tuple(Cpu(c.number, c.present, c.online, NoteRegion(PHYS[c.number], 368)) for c in sysfs_cpus())
    (tmp_path / SAVED.lstrip("/")).write_bytes(to_json(known))
    assert with_possible_notes(Sysroot(str(tmp_path)), None, sysfs_cpus()) == known


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"crash_notes": {"x": 1}}', '{"crash_notes": {"1": {"phys": "1", "size": 4}}}', "[" * 9999],
)
def test_broken_saved_addresses_are_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "sys").mkdir()
    (tmp_path / SAVED.lstrip("/")).write_text(text)
    with pytest.raises(InputError, match="is not what a snapshot writes"):
        with_possible_notes(Sysroot(str(tmp_path)), None, sysfs_cpus())


def test_with_them_the_header_from_nothing_is_the_one_that_6_12_wrote(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The notes of the six absent CPUs are taken from the captured header, as a live machine would read them."""
    saved = tmp_path / "saved"
    run(capsys, "snapshot", "--sysroot", tree("6.12-s", 0), "-o", saved)
    notes = parse_elfcorehdr(loaded_header("6.12-s", 0)).cpu_notes
    (saved / SAVED.lstrip("/")).write_bytes(to_json([Cpu(n, n < 2, n < 2, note) for n, note in enumerate(notes)]))
    header = expected_elfcorehdr(read_machine(Sysroot(str(saved))), Dialect.KERNEL)
    assert header.to_bytes(4096) == loaded_header("6.12-s", 0)
