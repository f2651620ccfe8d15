# SPDX-License-Identifier: MIT
"""The verdict: a header against a machine with every kind of finding and note, and a loaded image."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.arch.arm64 import ARM64
from crash_hotplug.core.arch.boot_params import (
    E820_COUNT,
    E820_ENTRY,
    E820_RAM,
    E820_RESERVED,
    E820_TABLE,
    ZeroPage,
    e820_table,
)
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.elf import PT_NOTE, ProgramHeader
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.expected import expected_elfcorehdr, loader_of
from crash_hotplug.core.finding import Comparison, Kind, Verdict
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Cpu, KernelText, Machine, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.verdict import IN_DUMP, assess, compare_header, compare_memory
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.image_in_memory import boot_params, with_zero_page, zero_page
from tests.machines import DIRECT_MAP, GIB, LOW_RAM, MIB, machine
from tests.trees import NAMES, loaded_header, tree

BACKUP = 0x2FF0_0000
DIMM = (4 * GIB, 4 * GIB + 256 * MIB)
PLACE = 600 * MIB
WITH_DIMM = (LOW_RAM, (MIB, GIB), DIMM)


def compared(loaded_for: Machine, now: Machine, loader: Loader = Loader.KERNEL) -> Comparison:
    """Compare the header made for one machine with another."""
    return compare_header(now, expected_elfcorehdr(loaded_for, loader, backup_region_phys=BACKUP), loader)


def changed(header: ElfCoreHeader, index: int, **fields: int) -> ElfCoreHeader:
    entries = list(header.program_headers)
    entries[index] = entries[index]._replace(**fields)
    return header._replace(program_headers=tuple(entries))


def kinds(result: Comparison) -> list[Kind]:
    return [finding.kind for finding in result.findings]


def test_header_of_the_same_machine_is_accurate() -> None:
    result = compared(machine(), machine())
    assert (result.verdict, result.findings) == (Verdict.ACCURATE, [])


def test_cpu_added_is_missing() -> None:
    result = compared(machine(), machine(online=(0, 1, 5)))
    assert kinds(result) == [Kind.CPU_MISSING]
    assert result.findings[0].cpu == 5
    assert "CPU 5" in result.findings[0].sentence


def test_cpu_added_and_still_offline_is_a_note() -> None:
    result = compared(machine(), machine(offline=(5,)))
    assert (result.verdict, result.notes[0].kind) == (Verdict.ACCURATE, Kind.CPU_OFFLINE_NOT_DESCRIBED)


def test_cpu_described_and_not_online_is_no_error() -> None:
    assert compared(machine(online=(0, 1, 2)), machine(online=(0, 1), offline=(2,))).findings == []
    assert compared(machine(online=(0, 1, 2)), machine(online=(0, 1))).findings == []


def test_cpu_notes_described_too_small_are_a_finding() -> None:
    header = changed(expected_elfcorehdr(machine(), Loader.KERNEL), 0, p_filesz=16, p_memsz=16)
    assert kinds(compare_header(machine(), header, Loader.KERNEL)) == [Kind.CPU_NOTES_TOO_SMALL]


def test_memory_added_is_missing() -> None:
    result = compared(machine(), machine(ram=WITH_DIMM))
    assert kinds(result) == [Kind.MEMORY_MISSING]
    assert tuple(result.findings[0].ranges[0]) == DIMM
    assert result.findings[0].size == 256 * MIB
    assert result.findings[0].sentence.startswith("256 MiB at 0x100000000 is not described")


def test_memory_removed_is_described_but_gone() -> None:
    result = compared(machine(ram=WITH_DIMM), machine())
    assert kinds(result) == [Kind.MEMORY_GONE]
    assert result.findings[0].size == 256 * MIB


def test_crashkernel_memory_is_not_described() -> None:
    shrunk = machine(crashkernel=[(512 * MIB, 600 * MIB)])
    assert kinds(compared(machine(), shrunk)) == [Kind.MEMORY_MISSING]
    assert kinds(compared(shrunk, machine())) == [Kind.CRASHKERNEL_DESCRIBED]


@pytest.mark.parametrize(
    ("release", "crashkernel", "verdict"),
    [
        ("6.1.0", True, Verdict.ACCURATE),
        ("5.13.0", False, Verdict.ACCURATE),
        ("5.10.0", True, Verdict.ACCURATE),
        ("5.10.0", False, Verdict.NOT_ACCURATE),
        ("5.4.0", True, Verdict.NOT_ACCURATE),
        ("4.18.0-553.el8", True, Verdict.NOT_ACCURATE),
        (None, True, Verdict.CANNOT_TELL),
    ],
)
def test_backup_region_dropped_is_judged_by_kernel(release: str | None, crashkernel: bool, verdict: Verdict) -> None:
    now = machine(release=release)._replace(reserves_crashkernel=crashkernel)
    header = expected_elfcorehdr(now, Loader.KERNEL)
    result = compare_header(now, header, Loader.KEXEC_TOOLS)
    assert result.verdict is verdict
    shown = {
        Verdict.ACCURATE: [note.sentence for note in result.notes],
        Verdict.NOT_ACCURATE: [finding.sentence for finding in result.findings],
        Verdict.CANNOT_TELL: result.unchecked,
    }[verdict]
    assert "first 640 KiB are no longer described" in shown[0]


def test_backup_region_kept_or_left_out_by_the_kernels_loader_is_not_mentioned() -> None:
    for loader in Loader:
        result = compared(machine(), machine(), loader)
        assert not any(note.kind is Kind.BACKUP_REGION_DROPPED for note in result.notes)


@pytest.mark.parametrize(
    ("now", "kind"),
    [
        (machine(kernel_text=KernelText(0xFFFF_FFFF_8100_0000, 32 * MIB, 32 * MIB)), Kind.WRONG_KERNEL_TEXT),
        (machine(vmcoreinfo=NoteRegion(0x11E_F000, 0x1024)), Kind.WRONG_VMCOREINFO),
        (machine(vmcoreinfo=NoteRegion(0x11E_E000, 0x2024)), Kind.WRONG_VMCOREINFO),
        (machine(page_offset=DIRECT_MAP + GIB), Kind.WRONG_DIRECT_MAP),
    ],
)
def test_addresses_of_another_boot_are_findings(now: Machine, kind: Kind) -> None:
    assert kinds(compared(machine(), now)) == [kind]


def test_header_without_kernel_text_is_a_finding() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    without = header._replace(
        program_headers=tuple(p for p in header.program_headers if p != header.program_headers[3])
    )
    assert kinds(compare_header(machine(), without, Loader.KERNEL)) == [Kind.WRONG_KERNEL_TEXT]


def test_file_size_of_a_removed_range_gone_wrong_is_malformed() -> None:
    """Powerpc wrote FileSiz 0xffffffffc0000000 into a header once."""
    header = changed(expected_elfcorehdr(machine(), Loader.KERNEL), 4, p_filesz=0xFFFF_FFFF_C000_0000)
    assert Kind.MALFORMED in kinds(compare_header(machine(), header, Loader.KERNEL))


def test_range_read_from_another_place_is_a_finding() -> None:
    header = changed(expected_elfcorehdr(machine(), Loader.KERNEL), 4, p_offset=7 * GIB)
    assert kinds(compare_header(machine(), header, Loader.KERNEL)) == [Kind.WRONG_SOURCE]


def test_range_described_twice_is_a_finding() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    twice = header._replace(program_headers=(*header.program_headers, header.program_headers[4]))
    assert kinds(compare_header(machine(), twice, Loader.KERNEL)) == [Kind.OVERLAP]


def test_low_memory_that_is_not_ram_is_a_finding() -> None:
    now = machine(ram=[(0x1000, 0x5000), (MIB, GIB)])
    assert kinds(compared(machine(), now, Loader.KEXEC_TOOLS)) == [Kind.MEMORY_GONE]


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        (machine(kernel_text=None), "kernel text"),
        (machine(page_offset=None), "direct-map"),
        (machine(vmcoreinfo=None), "vmcoreinfo"),
        (machine()._replace(cpus=(Cpu(0, True, True, None),)), "whether CPU 0 is described"),
    ],
)
def test_check_that_cannot_be_made_is_named_and_the_verdict_is_cannot_tell(lacking: Machine, sentence: str) -> None:
    result = compare_header(lacking, expected_elfcorehdr(machine(), Loader.KERNEL), Loader.KERNEL)
    assert result.verdict is Verdict.CANNOT_TELL
    assert sentence in result.unchecked[0]


def test_finding_outweighs_a_check_that_cannot_be_made() -> None:
    result = compared(machine(), machine(ram=WITH_DIMM)._replace(vmcoreinfo=None))
    assert result.verdict is Verdict.NOT_ACCURATE


def test_room_left_is_a_note() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    note = compare_header(machine(), header, Loader.KERNEL, room=4096).notes[-1]
    assert note.kind is Kind.ROOM_LEFT
    assert "room left for 66 more CPUs or memory ranges (400 of 4096 bytes used" in note.sentence
    small = compare_header(machine(), header, Loader.KERNEL, room=100).notes[-1]
    assert "does not fit" in small.sentence


def test_possible_cpus_all_described_are_a_note() -> None:
    result = compared(machine(online=range(8)), machine(online=(0, 3)))
    assert [note.kind for note in result.notes] == [Kind.ALL_POSSIBLE_CPUS]


def image_for(loaded_for: Machine, room: int) -> CrashImage:
    data = expected_elfcorehdr(loaded_for, Loader.KERNEL).to_bytes(4096)
    return CrashImage(data, PLACE, ZeroPage(cmdline=f"elfcorehdr={PLACE:#x}"), Kimage(0, (Segment(PLACE, room, 4096),)))


@pytest.mark.parametrize(("room", "fits"), [(4096, False), (8192, True)])
def test_header_that_outgrew_its_place_is_a_note(room: int, fits: bool) -> None:
    dimms = [(n * GIB, n * GIB + 128 * MIB) for n in range(4, 90)]
    now = machine(ram=[LOW_RAM, (MIB, GIB), *dimms])
    notes = assess(now, image_for(machine(), room)).comparison.notes
    sentences = [note.sentence for note in notes if note.kind is Kind.DOES_NOT_FIT]
    if fits:
        assert sentences == []
    else:
        needed = "the elfcorehdr for this machine needs 5216 bytes, its segment has room for 4096"
        assert sentences == [f"the header cannot be corrected in its place: {needed}"]


def test_accurate_header_has_no_note_that_a_larger_one_does_not_fit() -> None:
    """CPUs that are offline are no finding, although the expected header describes them."""
    now = machine(offline=range(2, 80), possible=80)
    comparison = assess(now, image_for(machine(), 4096)).comparison
    assert comparison.findings == []
    assert not any(note.kind is Kind.DOES_NOT_FIT for note in comparison.notes)


def test_ram_of_the_capture_kernel_outside_of_the_reservation_is_not_missed() -> None:
    """Memory of crashkernel=SIZE,cma, which the E820 table of the image names."""
    cma = Range(896 * MIB, 928 * MIB)
    without = machine(ram=(LOW_RAM, (MIB, cma.start), (cma.end, GIB)))
    image = image_for(without, 8192)
    now = machine()._replace(reserves_cma=True)
    assert kinds(assess(now, image).comparison) == [Kind.MEMORY_MISSING]
    with_map = with_zero_page(image, page=boot_params([(cma, E820_RAM)]))
    assert assess(now, with_map).comparison.verdict is Verdict.ACCURATE


def test_torn_image_is_the_first_finding() -> None:
    torn = image_for(machine(), 8192)._replace(torn="control pages")
    comparison = assess(machine(), torn).comparison
    assert (comparison.verdict, kinds(comparison)) == (Verdict.NOT_ACCURATE, [Kind.TORN_IMAGE])
    assert "an update left this image torn: control pages; reload it" in comparison.findings[0].sentence
    assert kinds(assess(machine(ram=WITH_DIMM), torn).comparison) == [Kind.TORN_IMAGE, Kind.MEMORY_MISSING]


def test_loader_is_known_from_the_command_line_before_the_header() -> None:
    without_backup = parse_elfcorehdr(loaded_header("6.12-ch", 1))
    assert without_backup.backup_region is None
    assert (
        loader_of(without_backup, CrashImage(b"", boot=ZeroPage(cmdline="elfcorehdr=1030656K"))) is Loader.KEXEC_TOOLS
    )
    assert loader_of(without_backup, CrashImage(b"")) is Loader.KERNEL
    with_backup = parse_elfcorehdr(loaded_header("6.12-ch", 0))
    assert loader_of(with_backup, CrashImage(b"")) is Loader.KEXEC_TOOLS


@pytest.mark.parametrize(
    ("cmdline", "sentence"),
    [
        ("quiet", "has no elfcorehdr="),
        ("elfcorehdr=0x25800000 elfcorehdr=0x25800000", "has elfcorehdr= 2 times"),
        ("elfcorehdr=0x25800000 elfcorehdr=0x25801000", "has elfcorehdr= 2 times"),
        ("elfcorehdr=0x25801000", "would look for its elfcorehdr at 0x25801000, but the image has it at 0x25800000"),
    ],
)
def test_command_line_that_does_not_name_the_header_is_a_finding(cmdline: str, sentence: str) -> None:
    image = image_for(machine(), 8192)
    assert assess(machine(), image).comparison.verdict is Verdict.ACCURATE  # negative control
    comparison = assess(machine(), image._replace(boot=ZeroPage(cmdline=cmdline))).comparison
    assert kinds(comparison) == [Kind.HEADER_NOT_FOUND]
    assert sentence in comparison.findings[0].sentence


def test_command_line_that_is_not_known_is_not_checked() -> None:
    image = image_for(machine(), 8192)
    unreadable = assess(machine(), image._replace(boot=None)).comparison
    assert (unreadable.verdict, len(unreadable.unchecked)) == (Verdict.CANNOT_TELL, 1)
    assert "its command line cannot be read out of the image" in unreadable.unchecked[0]
    nowhere = assess(machine(), image._replace(elfcorehdr_phys=None, kimage=None)).comparison
    assert nowhere.verdict is Verdict.CANNOT_TELL
    assert "the header's own address is not known" in nowhere.unchecked[0]
    header_only = assess(machine(), CrashImage(image.elfcorehdr)).comparison
    assert (header_only.verdict, len(header_only.left_out)) == (Verdict.ACCURATE, 1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", range(4))
def test_every_change_to_a_captured_header_changes_the_verdict(name: str, state: int) -> None:
    """Each field of each entry is changed, and each entry is described twice and not at all."""
    sysroot = Sysroot(str(tree(name, state)))
    now = read_machine(sysroot)
    image = read_crash_image(sysroot, now.crashkernel)
    header = parse_elfcorehdr(image.elfcorehdr)
    backup = header.backup_region
    if backup is not None:
        image = image._replace(backup_region_phys=backup.p_offset)

    def said(entries: Sequence[ProgramHeader]) -> list[str]:
        elf_header = header.elf_header._replace(e_phnum=len(entries))
        data = header._replace(elf_header=elf_header, program_headers=tuple(entries)).to_bytes(4096)
        found = assess(now, image._replace(elfcorehdr=data)).comparison
        notes = [note for note in found.notes if note.kind is not Kind.ROOM_LEFT]
        return [*(finding.sentence for finding in [*found.findings, *notes]), *found.unchecked]

    entries = list(header.program_headers)
    right = said(entries)
    for number, p in enumerate(entries):
        for field, value in zip(p._fields, p):
            for difference in (1, 0x1000, -0x1000, 1 << 62):
                if 0 <= value + difference < 1 << (32 if field in ("p_type", "p_flags") else 64):
                    changed_entry = p._replace(**{field: value + difference})
                    assert said([*entries[:number], changed_entry, *entries[number + 1 :]]) != right, changed_entry
        assert said([*entries[:number], p, *entries[number:]]) != right, f"twice: {p}"
        assert said([*entries[:number], *entries[number + 1 :]]) != right, f"missing: {p}"


def test_notes_of_no_cpu_and_notes_too_large_are_a_note() -> None:
    now = machine(online=range(8))
    header = expected_elfcorehdr(now, Loader.KERNEL)

    def unknown(entries: Sequence[ProgramHeader]) -> list[str]:
        described = header._replace(program_headers=tuple(entries))
        notes = compare_header(now, described, Loader.KERNEL).notes
        return [note.sentence for note in notes if note.kind is Kind.UNKNOWN_NOTES]

    first, *others = header.program_headers
    elsewhere = first._replace(p_offset=0x5000, p_paddr=0x5000)
    larger = first._replace(p_filesz=first.p_filesz + 4, p_memsz=first.p_memsz + 4)
    assert unknown([first, *others]) == []
    assert unknown([elsewhere, first, *others]) == ["the notes at 0x5000 are no CPU's and not vmcoreinfo"]
    assert unknown([larger, *others]) == ["a CPU saves 368 bytes at 0x30000400, but 372 are described"]
    # One CPU is not present, so the address of its notes is not known: one place too many is a note, not each.
    now = machine(online=range(7))
    assert unknown([first, *others]) == []
    assert len(unknown([elsewhere, first, *others])) == 1


def test_unknown_notes_are_judged_as_far_as_addresses_and_sizes_are_known() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    elsewhere = changed(header, 0, p_offset=0x5000, p_paddr=0x5000)

    def unknown(now: Machine, described: ElfCoreHeader) -> list[str]:
        notes = compare_header(now, described, Loader.KERNEL).notes
        return [note.sentence for note in notes if note.kind is Kind.UNKNOWN_NOTES]

    # Six of eight CPUs are not present: a place that is not known may be one of theirs, if it has the size.
    assert unknown(machine(), elsewhere) == []
    larger = changed(elsewhere, 0, p_filesz=0x180, p_memsz=0x180)
    assert unknown(machine(), larger) == ["the notes at 0x5000 are no CPU's and not vmcoreinfo"]
    assert unknown(machine(vmcoreinfo=None), larger) == []
    nothing_known = machine()._replace(cpus=tuple(cpu._replace(crash_notes=None) for cpu in machine().cpus))
    assert unknown(nothing_known, larger) == []
    # The largest notes of any CPU are the measure.
    first, second, *others = machine().cpus
    assert second.crash_notes is not None
    uneven = machine()._replace(cpus=(first, second._replace(crash_notes=second.crash_notes._replace(size=8)), *others))
    assert unknown(uneven, header) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state", range(4))
def test_header_that_a_real_loader_or_kernel_wrote_has_nothing_unusual(name: str, state: int) -> None:
    sysroot = Sysroot(str(tree(name, state)))
    now = read_machine(sysroot)
    comparison = assess(now, read_crash_image(sysroot, now.crashkernel)).comparison
    unusual = {Kind.UNUSUAL, Kind.UNKNOWN_NOTES, Kind.DESCRIBED_TWICE, Kind.WRONG_BACKUP_REGION, Kind.HEADER_NOT_FOUND}
    assert not unusual & {finding.kind for finding in [*comparison.findings, *comparison.notes]}
    assert not {Kind.CAPTURE_KERNEL_CLAIMS_MEMORY, Kind.MALFORMED} & set(kinds(comparison))
    assert comparison.left_out == []


@pytest.mark.parametrize(
    ("place", "copied", "sentence"),
    [
        (BACKUP, BACKUP + 0x1000, "but purgatory copies them to 0x2ff01000"),
        (900 * MIB, None, "which is not reserved memory"),
        (PLACE, None, "which the capture kernel uses for something else"),
    ],
)
def test_backup_region_that_is_not_where_purgatory_copies_to_is_a_finding(
    place: int, copied: int | None, sentence: str
) -> None:
    def image(backup: int, copied_to: int | None) -> CrashImage:
        header = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, backup_region_phys=backup)
        return image_for(machine(), 8192)._replace(elfcorehdr=header.to_bytes(4096), backup_region_phys=copied_to)

    assert assess(machine(), image(BACKUP, BACKUP)).comparison.findings == []  # negative control
    comparison = assess(machine(), image(place, copied)).comparison
    assert kinds(comparison) == [Kind.WRONG_BACKUP_REGION]
    assert sentence in comparison.findings[0].sentence


@pytest.mark.parametrize(
    ("start", "kind", "found"),
    [
        (BACKUP, E820_RAM, True),
        (BACKUP, E820_RESERVED, False),
        (BACKUP - 0x1000, E820_RAM, False),
        (BACKUP + LOW_RAM[1] - LOW_RAM[0] - 1, E820_RAM, True),
        (BACKUP + LOW_RAM[1] - LOW_RAM[0], E820_RAM, False),
    ],
)
def test_backup_region_in_the_capture_kernels_ram_is_a_finding(start: int, kind: int, found: bool) -> None:
    header = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, backup_region_phys=BACKUP)
    page = boot_params([(Range(start, start + 0x1000), kind)])
    image = with_zero_page(image_for(machine(), 8192)._replace(elfcorehdr=header.to_bytes(4096)), page=page)
    assert kinds(assess(machine(), image).comparison) == [Kind.WRONG_BACKUP_REGION] * found


def test_backup_region_at_the_end_of_the_address_space_is_a_finding_of_real_addresses() -> None:
    header = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, backup_region_phys=(1 << 64) - 0x1000)
    comparison = assess(machine(), image_for(machine(), 8192)._replace(elfcorehdr=header.to_bytes(4096))).comparison
    assert comparison.findings[0].ranges == (Range((1 << 64) - 0x1000, 1 << 64),)


@pytest.mark.parametrize(
    ("devices", "cmdline", "noted"),
    [
        (1, "quiet elfcorehdr=0x25800000", True),
        (1, "quiet acpi_no_memhotplug elfcorehdr=0x25800000", False),
        (0, "quiet elfcorehdr=0x25800000", False),
        (1, None, False),
    ],
)
def test_capture_kernel_that_may_claim_dimms_is_a_note(devices: int, cmdline: str | None, noted: bool) -> None:
    now = machine()._replace(acpi_memory_devices=devices)
    comparison = assess(now, image_for(now, 8192)._replace(boot=ZeroPage(cmdline=cmdline))).comparison
    assert comparison.findings == []
    assert any(note.kind is Kind.CAPTURE_KERNEL_CLAIMS_MEMORY for note in comparison.notes) == noted


IN_LOW_MEMORY = "has 635 KiB at 0x1000 as RAM, which it would have to read from there"


@pytest.mark.parametrize(
    ("ram", "sentence"),
    [
        ([(0x2E00_0000, 0x39F5_E000)], "has the elfcorehdr's place at 0x39f5d000 as RAM: it cannot read the header"),
        ([(0x2E00_0000, 0x3960_0000)], "has no RAM at 0x39f4e000, where the capture kernel is loaded"),
        ([], "has no RAM at 0x39f4e000, where the capture kernel is loaded"),
        ([(0x2E00_0000, 0x39F5_D000), (MIB, 2 * MIB)], "has 1 MiB at 0x100000 as RAM, which is not reserved for it"),
    ],
)
def test_memory_map_of_the_capture_kernel_is_checked(ram: list[tuple[int, int]], sentence: str) -> None:
    now, image = captured("6.1-c")
    table = [(r, kind) for r, kind in e820_table(zero_page(image).page or b"") if kind != E820_RAM]
    changed_map = with_map(image, [*table, *((Range(*r), E820_RAM) for r in ram)])
    findings = assess(now, changed_map).comparison.findings
    claims = [f.sentence for f in findings if f.kind is Kind.CAPTURE_KERNEL_CLAIMS_MEMORY]
    assert any(sentence in claim for claim in claims), claims
    page = zero_page(changed_map)._replace(cmdline=f"{image.cmdline} memmap=exactmap")
    by_memmap = changed_map._replace(boot=page)
    comparison = assess(now, by_memmap).comparison
    assert Kind.CAPTURE_KERNEL_CLAIMS_MEMORY not in kinds(comparison)
    assert comparison.left_out == ["the memory that the capture kernel uses: its command line has memmap="]


def test_cma_in_the_memory_map_is_reserved_where_the_kernel_was_given_it() -> None:
    now, image = captured("6.1-c")
    cma = (Range(0x2800_0000, 0x2E00_0000), E820_RAM)
    image = with_map(image, [*e820_table(zero_page(image).page or b""), cma])
    assert Kind.CAPTURE_KERNEL_CLAIMS_MEMORY in kinds(assess(now, image).comparison)
    assert Kind.CAPTURE_KERNEL_CLAIMS_MEMORY not in kinds(assess(now._replace(reserves_cma=True), image).comparison)


def test_low_memory_and_notes_that_the_capture_kernel_uses_itself_are_findings() -> None:
    now, image = captured("6.1-c")
    header = parse_elfcorehdr(image.elfcorehdr)
    assert header.backup_region is not None
    number = header.program_headers.index(header.backup_region)
    in_low = changed(header, number, p_offset=header.backup_region.p_paddr)
    assert IN_LOW_MEMORY in sentences(now, image, in_low)
    notes_there = changed(header, 0, p_offset=0x2E00_0000, p_paddr=0x2E00_0000)
    assert "has notes that the header describes as RAM" in sentences(now, image, notes_there)


@pytest.mark.parametrize("size", [0, (4 << 20) + 1, 1 << 62])
def test_notes_of_a_size_that_the_capture_kernel_cannot_read_are_a_finding(size: int) -> None:
    header = expected_elfcorehdr(machine(online=(0, 1, 2)), Loader.KERNEL)
    result = compare_header(machine(), changed(header, 2, p_filesz=size, p_memsz=size), Loader.KERNEL)
    assert kinds(result) == [Kind.MALFORMED]


def test_pt_note_behind_a_pt_load_is_a_finding() -> None:
    """The capture kernel takes the first entries out of the vmcore, as many as there are PT_NOTEs."""
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    first, *others = header.program_headers
    moved = header._replace(program_headers=(*others, first))
    assert kinds(compare_header(machine(), moved, Loader.KERNEL)) == [Kind.MALFORMED]


@pytest.mark.parametrize(("architecture", "found"), [(X86_64, []), (ARM64, [Kind.MEMORY_GONE])])
def test_notes_that_are_not_in_ram_are_a_finding_where_reading_them_ends_the_capture_kernel(
    architecture: Architecture, found: list[Kind]
) -> None:
    now = machine()._replace(architecture=architecture)
    header = expected_elfcorehdr(now, Loader.KERNEL)
    elsewhere = header.program_headers[0]._replace(p_offset=64 * GIB, p_paddr=64 * GIB)
    described = header._replace(program_headers=(elsewhere, *header.program_headers))
    assert kinds(compare_header(now, described, Loader.KERNEL)) == found


def test_notes_described_twice_are_a_finding_where_a_cpu_saves_them() -> None:
    header = expected_elfcorehdr(machine(online=(0, 1), offline=(2,)), Loader.KERNEL)
    cpu0, _cpu1, cpu2, vmcoreinfo = (p for p in header.program_headers if p.p_type == PT_NOTE)
    now = machine(online=(0, 1), offline=(2,))
    too_small = cpu0._replace(p_filesz=16, p_memsz=16)
    for twice, is_finding in ((cpu0, True), (cpu2, False), (vmcoreinfo, False), (too_small, False)):
        described = header._replace(program_headers=(twice, *header.program_headers))
        result = compare_header(now, described, Loader.KERNEL)
        assert kinds(result) == [Kind.DESCRIBED_TWICE] * is_finding
        assert Kind.DESCRIBED_TWICE in [found.kind for found in [*result.findings, *result.notes]]


def captured(name: str) -> tuple[Machine, CrashImage]:
    sysroot = Sysroot(str(tree(name, 0)))
    now = read_machine(sysroot)
    return now, read_crash_image(sysroot, now.crashkernel)


def with_map(image: CrashImage, table: Sequence[tuple[Range, int]]) -> CrashImage:
    page = bytearray(zero_page(image).page or b"")
    page[E820_COUNT] = len(table)
    for number, (r, kind) in enumerate(table):
        E820_ENTRY.pack_into(page, E820_TABLE + number * E820_ENTRY.size, r.start, r.size, kind)
    return image._replace(boot=zero_page(image)._replace(page=bytes(page)))


def sentences(now: Machine, image: CrashImage, header: ElfCoreHeader) -> str:
    comparison = assess(now, image._replace(elfcorehdr=header.to_bytes())).comparison
    return "; ".join(finding.sentence for finding in comparison.findings)


@pytest.mark.parametrize("is_online", [True, False])
def test_notes_described_too_small_are_a_finding_where_the_cpu_saves_them(is_online: bool) -> None:
    now = machine(online=(0, 1, 2) if is_online else (0, 1), offline=() if is_online else (2,))
    header = expected_elfcorehdr(now, Loader.KERNEL)
    result = compare_header(now, changed(header, 2, p_filesz=16, p_memsz=16), Loader.KERNEL)
    assert kinds(result) == [Kind.CPU_NOTES_TOO_SMALL] * is_online
    assert Kind.CPU_NOTES_TOO_SMALL in [found.kind for found in [*result.findings, *result.notes]]


def test_empty_pt_load_at_another_place_is_no_wrong_source() -> None:
    header = expected_elfcorehdr(machine(), Loader.KERNEL)
    number = len(header.program_headers) - 1
    entry = header.program_headers[number]
    empty = entry._replace(p_offset=1, p_filesz=0, p_memsz=0)
    with_empty = header._replace(program_headers=(*header.program_headers, empty))
    result = compare_header(machine(), with_empty, Loader.KERNEL)
    assert (kinds(result), Kind.UNUSUAL in [note.kind for note in result.notes]) == ([], True)
    assert kinds(compare_header(machine(), changed(header, number, p_offset=1), Loader.KERNEL)) == [Kind.WRONG_SOURCE]


PARTLY = machine(ram=WITH_DIMM)._replace(not_plugged=RangeList([(DIMM[0] + 128 * MIB, DIMM[1] - 2 * MIB)]))


def test_described_memory_that_is_not_plugged_is_a_note() -> None:
    result = compared(PARTLY, PARTLY)
    (note,) = [note for note in result.notes if note.kind is Kind.MEMORY_NOT_PLUGGED]
    assert result.verdict is Verdict.ACCURATE
    assert note.sentence == (
        "126 MiB at 0x108000000 is described, but virtio-mem has not plugged it: a dump would have zeros there, or "
        "leave it out as offline pages"
    )
    assert note.ranges == (Range(DIMM[0] + 128 * MIB, DIMM[1] - 2 * MIB),)
    in_dump = Comparison()
    compare_memory(PARTLY, PARTLY.dumpable_ram, in_dump, IN_DUMP)
    assert in_dump.notes[0].sentence.endswith("had not plugged it: zeros there, or pages left out, are no loss")


def test_several_ranges_that_are_not_plugged_are_one_note() -> None:
    ranges = RangeList((DIMM[0] + at * MIB, DIMM[0] + (at + 2) * MIB) for at in range(0, 128, 4))
    now = machine(ram=WITH_DIMM)._replace(not_plugged=ranges)
    (note,) = [note for note in compared(now, now).notes if note.kind is Kind.MEMORY_NOT_PLUGGED]
    assert note.sentence.startswith("64 MiB in 32 ranges is described, but virtio-mem")
    assert note.ranges == tuple(ranges)


def test_memory_that_is_neither_plugged_nor_described_has_no_note() -> None:
    result = compared(machine(), PARTLY)
    assert kinds(result) == [Kind.MEMORY_MISSING]
    assert Kind.MEMORY_NOT_PLUGGED not in [note.kind for note in result.notes]


def test_unknown_plugged_memory_does_not_change_the_verdict() -> None:
    unknown = machine(ram=WITH_DIMM)._replace(not_plugged=None)
    result = compared(unknown, unknown)
    assert (result.verdict, result.unchecked) == (Verdict.ACCURATE, [])
    assert result.left_out == ["which memory of virtio-mem is plugged: /proc/kpageflags was not readable, or not saved"]
    assert compared(machine(), machine()).left_out == []
