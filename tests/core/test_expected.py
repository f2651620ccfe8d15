# SPDX-License-Identifier: MIT
"""The expected header keeps the parts that the loader wrote."""

from __future__ import annotations

import pytest
from hypothesis import given

from crash_hotplug.core.arch.boot_params import E820_MAX, E820_RAM, E820_RESERVED, ZeroPage
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError, NoRoomError
from crash_hotplug.core.expected import (
    describes_possible_cpus,
    expected_elfcorehdr,
    header_to_write,
    loader_of,
    with_capture_ram,
)
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Cpu, Machine
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.verdict import compare_header
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.image_in_memory import boot_params, with_zero_page
from tests.machines import GIB, LOW_RAM, MIB, crash_notes, machine, machines
from tests.trees import loaded_header, tree

BACKUP = 0x2FF0_0000


def captured(name: str, state: int) -> Machine:
    return read_machine(Sysroot(str(tree(name, state))))


@pytest.mark.parametrize(
    ("name", "loader", "backup"), [("6.1-c", Loader.KEXEC_TOOLS, 0x39F61000), ("6.1-s", Loader.KERNEL, None)]
)
def test_header_built_from_nothing_is_the_captured_one(name: str, loader: Loader, backup: int | None) -> None:
    header = expected_elfcorehdr(captured(name, 0), loader, backup_region_phys=backup)
    assert header.to_bytes(4096) == loaded_header(name, 0)


def test_header_of_the_next_state_is_what_the_kernel_wrote() -> None:
    loaded = parse_elfcorehdr(loaded_header("6.12-s", 0))
    header = expected_elfcorehdr(captured("6.12-s", 1), Loader.KERNEL, loaded)
    assert header.to_bytes(4096) == loaded_header("6.12-s", 1)
    assert header.to_bytes(4096) != loaded_header("6.12-s", 0), "negative control: the states differ"


def test_loaded_backup_region_is_kept() -> None:
    loaded = parse_elfcorehdr(loaded_header("6.12-ch", 0))
    header = expected_elfcorehdr(captured("6.12-ch", 1), Loader.KEXEC_TOOLS, loaded)
    assert header.backup_region == loaded.backup_region
    assert header.backup_region is not None


@given(machines())
def test_expected_header_is_accurate(described: Machine) -> None:
    for loader, backup in ((Loader.KERNEL, None), (Loader.KEXEC_TOOLS, BACKUP)):
        header = expected_elfcorehdr(described, loader, backup_region_phys=backup)
        assert compare_header(described, header, loader).findings == []


@given(machines(), machines())
def test_header_of_one_machine_adapted_to_another_is_accurate(before: Machine, now: Machine) -> None:
    loaded = expected_elfcorehdr(before, Loader.KEXEC_TOOLS, backup_region_phys=BACKUP)
    header = expected_elfcorehdr(now, Loader.KEXEC_TOOLS, loaded)
    result = compare_header(now, header, Loader.KEXEC_TOOLS)
    assert (result.findings, result.unchecked) == ([], [])
    assert header.backup_region == loaded.backup_region


def test_removed_cpu_is_left_out_of_a_header_of_present_cpus() -> None:
    loaded = expected_elfcorehdr(machine(online=(0, 1, 2)), Loader.KERNEL)
    header = expected_elfcorehdr(machine(online=(0, 2)), Loader.KERNEL, loaded)
    assert header.cpu_notes == (crash_notes(0), crash_notes(2))


def test_notes_of_all_possible_cpus_are_kept() -> None:
    loaded = expected_elfcorehdr(machine(online=range(8)), Loader.KERNEL)
    now = machine(online=(0, 2))
    assert describes_possible_cpus(loaded, now)
    assert expected_elfcorehdr(now, Loader.KERNEL, loaded).cpu_notes == loaded.cpu_notes


def test_header_describes_known_possible_cpus_since_6_6() -> None:
    cpus = tuple(cpu._replace(present=cpu.number < 2) for cpu in machine(online=range(4), possible=4).cpus)
    for release, described in (("6.5.0", 2), ("6.6.0", 4)):
        now = machine(release=release, possible=4)
        now = now._replace(cpus=cpus)
        assert len(expected_elfcorehdr(now, Loader.KERNEL).cpu_notes) == described


def test_low_memory_is_left_out_by_the_kernel_and_backed_up_by_kexec_tools() -> None:
    assert expected_elfcorehdr(machine(), Loader.KERNEL).ram[0].start == MIB
    backup = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, backup_region_phys=BACKUP).backup_region
    assert backup is not None
    assert (backup.p_offset, backup.p_paddr, backup.p_memsz) == (BACKUP, LOW_RAM[0], LOW_RAM[1] - LOW_RAM[0])


def test_kexec_tools_header_needs_the_place_of_the_backup_region() -> None:
    with pytest.raises(CannotTellError, match="points to the backup region"):
        expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS)


def test_low_memory_outside_the_backup_region_is_described_in_place() -> None:
    pieces = machine(ram=[(0x1000, 0x5C000), (0x60000, 0x9F000), (MIB, GIB)])
    header = expected_elfcorehdr(pieces, Loader.KEXEC_TOOLS, backup_region_phys=BACKUP)
    low = [(p.p_offset, p.p_paddr) for p in header.ram_headers if p.p_paddr < MIB]
    assert low == [(BACKUP, 0x1000), (0x60000, 0x60000)]


def test_header_larger_than_its_room_is_an_error_with_both_sizes() -> None:
    size = expected_elfcorehdr(machine(), Loader.KERNEL).size
    assert expected_elfcorehdr(machine(), Loader.KERNEL, room=size).size == size
    with pytest.raises(NoRoomError, match=f"needs {size} bytes, its segment has room for {size - 1}"):
        expected_elfcorehdr(machine(), Loader.KERNEL, room=size - 1)


@pytest.mark.parametrize(
    ("lacking", "sentence"),
    [
        (machine(kernel_text=None), "the kernel text cannot be read"),
        (machine(page_offset=None), "direct-map address of RAM cannot be read"),
        (machine(vmcoreinfo=None), "vmcoreinfo cannot be read"),
    ],
)
def test_unreadable_facts_are_not_guessed(lacking: Machine, sentence: str) -> None:
    with pytest.raises(CannotTellError, match=sentence):
        expected_elfcorehdr(lacking, Loader.KERNEL)
    # A header loaded by this kernel has the same values, because they are fixed at boot.
    loaded = expected_elfcorehdr(machine(), Loader.KERNEL)
    assert expected_elfcorehdr(lacking, Loader.KERNEL, loaded).to_bytes() == loaded.to_bytes()


def test_present_cpu_with_masked_notes_is_cannot_tell() -> None:
    now = machine(online=(0, 1))
    masked = now._replace(cpus=(now.cpus[0], Cpu(1, True, True, None)))
    with pytest.raises(CannotTellError, match="the address of CPU 1's crash_notes cannot be read"):
        expected_elfcorehdr(masked, Loader.KERNEL)


def test_notes_described_twice_are_described_once_in_the_new_header() -> None:
    loaded = expected_elfcorehdr(machine(online=range(8)), Loader.KERNEL)
    entries = (loaded.program_headers[0], *loaded.program_headers)
    twice = loaded._replace(elf_header=loaded.elf_header._replace(e_phnum=len(entries)), program_headers=entries)
    assert expected_elfcorehdr(machine(online=range(8)), Loader.KERNEL, twice).to_bytes() == loaded.to_bytes()


def test_backup_region_is_read_from_where_purgatory_copies_it_to() -> None:
    loaded = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, backup_region_phys=BACKUP + 0x1000)
    corrected = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, loaded, BACKUP)
    assert corrected == expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, backup_region_phys=BACKUP)


def four_cpus(release: str | None, known: int = 4) -> Machine:
    """Return a machine with two present CPUs of four; the notes of so many are known."""
    every = machine(online=range(known), possible=4, release=release)
    return every._replace(cpus=tuple(cpu._replace(present=cpu.number < 2) for cpu in every.cpus))


@pytest.mark.parametrize(
    ("release", "loader", "known", "wanted", "described"),
    [
        ("6.6.0", Loader.KERNEL, 4, False, 4),
        ("6.6.0", Loader.KERNEL, 3, False, 2),  # not the three
        ("6.6.0", Loader.KEXEC_TOOLS, 4, False, 2),
        ("6.5.0", Loader.KERNEL, 4, True, 4),
        ("6.5.0", Loader.KERNEL, 3, True, 2),
        (None, Loader.KERNEL, 4, False, 2),
    ],
)
def test_possible_cpus_are_described_where_kernel_or_update_does_and_all_are_known(
    release: str | None, loader: Loader, known: int, wanted: bool, described: int
) -> None:
    header = expected_elfcorehdr(four_cpus(release, known), loader, backup_region_phys=BACKUP, possible_cpus=wanted)
    assert header.cpu_notes == tuple(crash_notes(number) for number in range(described))


def test_possible_cpus_are_not_added_to_a_loaded_header_of_present_ones() -> None:
    loaded = expected_elfcorehdr(four_cpus("6.5.0"), Loader.KERNEL)
    assert len(expected_elfcorehdr(four_cpus("6.6.0"), Loader.KERNEL, loaded).cpu_notes) == 2


def test_notes_described_twice_are_not_those_of_one_more_cpu() -> None:
    header = expected_elfcorehdr(machine(online=range(7)), Loader.KERNEL)
    assert not describes_possible_cpus(header, machine())
    twice = header._replace(program_headers=(header.program_headers[0], *header.program_headers))
    assert len(twice.cpu_notes) == 8
    assert not describes_possible_cpus(twice, machine())


def test_direct_map_address_is_not_guessed_from_a_header_without_ram() -> None:
    loaded = expected_elfcorehdr(machine(), Loader.KERNEL)
    text_only = loaded._replace(program_headers=tuple(p for p in loaded.program_headers if p not in loaded.ram_headers))
    with pytest.raises(CannotTellError, match="direct-map address of RAM cannot be read"):
        expected_elfcorehdr(machine(page_offset=None), Loader.KERNEL, text_only)


HIGH = (MIB, GIB)


def test_backup_region_needs_low_memory() -> None:
    """Without RAM below 640 KiB kexec-tools backs nothing up."""
    without = machine(ram=[(700 << 10, 720 << 10), HIGH])
    header = expected_elfcorehdr(without, Loader.KEXEC_TOOLS, backup_region_phys=BACKUP)
    assert header.backup_region is None
    assert (
        expected_elfcorehdr(without, Loader.KEXEC_TOOLS).ram
        == header.ram
        == RangeList([HIGH]).exclude(without.crashkernel)
    )


def test_loaded_header_of_kexec_tools_without_a_backup_region_gets_none() -> None:
    loaded = expected_elfcorehdr(machine(), Loader.KERNEL)
    header = expected_elfcorehdr(machine(), Loader.KEXEC_TOOLS, loaded)
    assert header.ram[0].start == MIB


def test_header_to_write_keeps_the_loaders_rules_and_describes_possible_cpus() -> None:
    now = four_cpus("6.5.0")
    tools = expected_elfcorehdr(now, Loader.KEXEC_TOOLS, backup_region_phys=BACKUP)
    boot = ZeroPage(cmdline="elfcorehdr=524288K")
    image = CrashImage(tools.to_bytes(), 0x2000_0000, boot, backup_region_phys=BACKUP)
    assert header_to_write(now, image).backup_region == tools.backup_region
    assert len(header_to_write(now, image).cpu_notes) == 4
    assert len(header_to_write(now, image, possible_cpus=False).cpu_notes) == 2
    lost = expected_elfcorehdr(now, Loader.KERNEL)  # the kernel's own update drops the backup region
    written = header_to_write(now, image._replace(elfcorehdr=lost.to_bytes()))
    assert written.backup_region == tools.backup_region


@pytest.mark.parametrize(
    ("cmdline", "backup", "loader"),
    [
        ("elfcorehdr=524288K", None, Loader.KEXEC_TOOLS),
        ("elfcorehdr=0x20000000", BACKUP, Loader.KERNEL),
        (None, BACKUP, Loader.KEXEC_TOOLS),
        (None, None, Loader.KERNEL),
    ],
)
def test_loader_is_that_of_the_command_line_else_of_the_backup_region(
    cmdline: str | None, backup: int | None, loader: Loader
) -> None:
    built = Loader.KERNEL if backup is None else Loader.KEXEC_TOOLS
    header = expected_elfcorehdr(machine(), built, backup_region_phys=backup)
    assert loader_of(header, CrashImage(header.to_bytes(), boot=ZeroPage(cmdline=cmdline))) is loader


def test_capture_ram_is_the_ram_of_the_memory_map_outside_of_the_reservation() -> None:
    """Memory of crashkernel=SIZE,cma, beside low memory, which every capture kernel has."""
    now = machine()
    cma, own = Range(768 * MIB, 800 * MIB), now.crashkernel[0]
    entries = [(Range(0x1000, 0x9000), E820_RAM), (own, E820_RAM), (cma, E820_RAM)]
    entries.append((Range(900 * MIB, 910 * MIB), E820_RESERVED))
    image = CrashImage(b"", boot=ZeroPage(boot_params(entries), cmdline="quiet"))
    assert with_capture_ram(now, image).capture_ram == RangeList([cma])
    known = now._replace(capture_ram=RangeList([(4 * GIB, 5 * GIB)]))
    assert with_capture_ram(known, image).capture_ram == RangeList([cma])  # the map of the image decides
    full = with_zero_page(image, page=boot_params([*entries, *[(Range(0, 0), E820_RESERVED)] * (E820_MAX - 4)]))
    assert with_capture_ram(known, full).capture_ram == RangeList([cma, (4 * GIB, 5 * GIB)])
    assert with_capture_ram(now, with_zero_page(image, cmdline=None)).capture_ram == RangeList([cma])
    assert with_capture_ram(now, with_zero_page(image, cmdline="memmap=1G")) == now
    assert with_capture_ram(known, with_zero_page(image, cmdline="memmap=1G")) == known
    assert with_capture_ram(now, with_zero_page(image, page=None)) == now
    assert with_capture_ram(now, image._replace(boot=None)) == now


def test_header_to_write_leaves_the_capture_kernels_ram_out() -> None:
    now = machine()
    cma = Range(768 * MIB, 800 * MIB)
    page = boot_params([(now.crashkernel[0], E820_RAM), (cma, E820_RAM)])
    boot = ZeroPage(page, cmdline="elfcorehdr=0x1")
    image = CrashImage(expected_elfcorehdr(now, Loader.KERNEL).to_bytes(), boot=boot)
    assert header_to_write(now, image).ram == now.dumpable_ram.exclude(RangeList([(0, MIB), cma]))
