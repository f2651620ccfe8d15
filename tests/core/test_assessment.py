"""A loaded image judged: who loaded it, what room it has, whether it can be corrected in its place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crash_hotplug.core.assessment import assess
from crash_hotplug.core.compare import Kind
from crash_hotplug.core.elfcorehdr import Dialect, parse_elfcorehdr
from crash_hotplug.core.expected import expected_elfcorehdr, loader_of
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.machine import Machine
from tests.machines import GIB, LOW_RAM, MIB, machine
from tests.trees import loaded_header

PLACE = 600 * MIB


def image_for(loaded_for: Machine, room: int) -> CrashImage:
    data = expected_elfcorehdr(loaded_for, Dialect.KERNEL).to_bytes(4096)
    return CrashImage(data, PLACE, cmdline=f"elfcorehdr={PLACE:#x}", kimage=Kimage(0, (Segment(PLACE, room, 4096),)))


@pytest.mark.parametrize(("room", "fits"), [(4096, False), (8192, True)])
def test_a_header_that_outgrew_its_place_is_said(room: int, fits: bool) -> None:
    dimms = [(n * GIB, n * GIB + 128 * MIB) for n in range(4, 90)]
    now = machine(ram=[LOW_RAM, (MIB, GIB), *dimms])
    notes = assess(now, image_for(machine(), room)).comparison.notes
    sentences = [note.sentence for note in notes if note.kind is Kind.DOES_NOT_FIT]
    if fits:
        assert sentences == []
    else:
        needed = "the elfcorehdr for this machine needs 5216 bytes, its segment has room for 4096"
        assert sentences == [f"it cannot be corrected in its place: {needed}"]


def test_the_loader_is_told_by_the_command_line_before_the_header() -> None:
    without_backup = parse_elfcorehdr(loaded_header("6.12-ch", 1))
    assert without_backup.backup_region is None
    assert loader_of(without_backup, CrashImage(b"", cmdline="elfcorehdr=1030656K")) is Dialect.KEXEC_TOOLS
    assert loader_of(without_backup, CrashImage(b"")) is Dialect.KERNEL
    with_backup = parse_elfcorehdr(loaded_header("6.12-ch", 0))
    assert loader_of(with_backup, CrashImage(b"")) is Dialect.KEXEC_TOOLS


@pytest.mark.parametrize(
    ("devices", "cmdline", "noted"),
    [
        (1, "quiet elfcorehdr=0x25800000", True),
        (1, "quiet acpi_no_memhotplug elfcorehdr=0x25800000", False),
        (0, "quiet elfcorehdr=0x25800000", False),
        (1, None, False),
    ],
)
def test_a_capture_kernel_that_may_claim_dimms_is_a_note(devices: int, cmdline: str | None, noted: bool) -> None:
    now = replace(machine(), acpi_memory_devices=devices)
    comparison = assess(now, replace(image_for(now, 8192), cmdline=cmdline)).comparison
    assert comparison.findings == []
    assert any(note.kind is Kind.CAPTURE_KERNEL_CLAIMS_MEMORY for note in comparison.notes) == noted
