# SPDX-License-Identifier: MIT
"""A capture kernel's file, looked at before the loaded image is dropped."""

from __future__ import annotations

import re
import struct

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import (
    ZeroPage,
    change_elfcorehdr_argument,
    check_bzimage,
    cmdline_phys,
    e820_table,
    elfcorehdr_addresses,
    elfcorehdr_argument,
    init_size,
    is_boot_params,
    reserve,
    why_elfcorehdr_not_found,
    why_no_file_load,
)
from crash_hotplug.core.arch.cmdline import has_argument
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import CannotTellError, InputError, NoRoomError
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.plan import MAX_ROOM, check_capture_kernel_fits, room_for
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.trees import tree

MACHINE = read_machine(Sysroot(str(tree("6.1-c", 1))))
INIT_SIZE = 48 << 20
ROOM = 128 << 10


def bzimage_head(**changed: int) -> bytes:
    """Return the first bytes of a bzImage; its whole size is 0x5000."""
    head = bytearray(0x264)
    fields = {
        "setup_sects": (0x1F1, "<B", 39),
        "syssize": (0x1F4, "<I", 0),
        "boot_flag": (0x1FE, "<H", 0xAA55),
        "magic": (0x202, "<I", int.from_bytes(b"HdrS", "little")),
        "version": (0x206, "<H", 0x20F),
        "loadflags": (0x211, "<B", 1),
        "xloadflags": (0x236, "<H", 0x7F),
        "init_size": (0x260, "<I", INIT_SIZE),
    }
    for name, (at, form, value) in fields.items():
        struct.pack_into(form, head, at, changed.get(name, value))
    return bytes(head)


def test_whole_kernel_passes_the_checks() -> None:
    check_bzimage(bzimage_head(), 0x5000, "vmlinuz")
    assert why_no_file_load(bzimage_head()) is None
    assert init_size(bzimage_head()) == INIT_SIZE


@pytest.mark.parametrize(
    ("head", "size", "words"),
    [
        (bytes(0x264), 0x5000, "vmlinuz is not an x86 kernel image"),
        (b"", 0, "is not an x86 kernel image"),
        (bzimage_head()[:-1], 0x5000, "is not an x86 kernel image"),
        (bzimage_head(), 0x4FFF, "is truncated: it has 20479 of 20480 bytes"),
        (bzimage_head(syssize=1), 0x5000, "is truncated: it has 20480 of 20496 bytes"),
        (bzimage_head(setup_sects=0), 2559, "is truncated: it has 2559 of 2560 bytes"),  # 0 means 4
    ],
)
def test_file_that_is_no_whole_kernel_is_refused(head: bytes, size: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_bzimage(head, size, "vmlinuz")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"version": 0x20B}, r"boot protocol \(2.11\) is older"),
        ({"boot_flag": 0}, "is older"),
        ({"loadflags": 0}, "zImage"),
        ({"xloadflags": 0}, "no 64-bit entry point"),
        ({"xloadflags": 1}, "no 64-bit entry point"),
        ({"xloadflags": 2}, "no 64-bit entry point"),
        ({"loadflags": 2}, "zImage"),
    ],
)
def test_why_no_file_load_names_what_kexec_file_load_refuses(changed: dict[str, int], words: str) -> None:
    reason = why_no_file_load(bzimage_head(**changed))
    assert reason is not None
    assert re.search(words, reason)


@pytest.mark.parametrize("changed", [{"version": 0x20C}, {"xloadflags": 3}, {"loadflags": 0x81}])
def test_oldest_kernel_that_kexec_file_load_accepts(changed: dict[str, int]) -> None:
    assert why_no_file_load(bzimage_head(**changed)) is None


def test_capture_kernel_that_fits_is_accepted() -> None:
    check_capture_kernel_fits(INIT_SIZE, 4 << 20, ROOM, MACHINE)
    check_capture_kernel_fits(INIT_SIZE, 4 << 20, MAX_ROOM, MACHINE)


def test_largest_room_is_that_of_65534_entries() -> None:
    assert 895 * PAGE < 64 + 56 * 65534 <= MAX_ROOM == 896 * PAGE


def test_room_out_of_bounds_is_refused() -> None:
    for room, words in ((0x100, "is too small: the elfcorehdr needs 4096"), (MAX_ROOM + 1, "more than an elfcorehdr")):
        with pytest.raises(InputError, match=words):
            check_capture_kernel_fits(INIT_SIZE, 0, room, MACHINE)


def test_room_for_the_machine_as_it_is_now_is_enough() -> None:
    """The backup region takes one entry more than the ranges of RAM."""
    ram = RangeList((at << 30, (at << 30) + PAGE) for at in range(1, 71 - len(MACHINE.cpus)))
    now = MACHINE._replace(ram=ram)
    assert room_for(len(now.cpus), len(now.dumpable_ram)) == PAGE
    check_capture_kernel_fits(INIT_SIZE, 0, 2 * PAGE, now)
    with pytest.raises(InputError, match="needs 8192 for this machine"):
        check_capture_kernel_fits(INIT_SIZE, 0, 2 * PAGE - 1, now)
    fewer = now._replace(ram=RangeList(list(ram)[:-1]))
    check_capture_kernel_fits(INIT_SIZE, 0, PAGE, fewer)


def test_largest_reservation_counts_and_none_is_none() -> None:
    two = MACHINE._replace(crashkernel=RangeList([(16 << 20, 32 << 20), *MACHINE.crashkernel]))
    check_capture_kernel_fits(INIT_SIZE, 0, ROOM, two)
    with pytest.raises(NoRoomError, match=r"the reserved region \(0 bytes\) is too small"):
        check_capture_kernel_fits(INIT_SIZE, 0, ROOM, MACHINE._replace(crashkernel=RangeList()))


def test_capture_kernel_one_byte_too_large_is_refused() -> None:
    reserved = max(r.size for r in MACHINE.crashkernel)
    fits = reserved - INIT_SIZE - ROOM - X86_64.control_bytes(MACHINE.ram)
    check_capture_kernel_fits(INIT_SIZE, fits, ROOM, MACHINE)
    with pytest.raises(NoRoomError, match=r"the reserved region \(192 MiB\) is too small: .* nothing was changed"):
        check_capture_kernel_fits(INIT_SIZE, fits + 1, ROOM, MACHINE)


@pytest.mark.parametrize(
    ("cmdline", "addresses"),
    [
        ("quiet elfcorehdr=949620K", [949620 << 10]),
        ("elfcorehdr=0x2b000000 quiet", [0x2B00_0000]),
        ("elfcorehdr=64K@0x2b000000", [0x2B00_0000]),
        ("elfcorehdr=0x10M", [16 << 20]),
        ("elfcorehdr=010", [8]),
        ("elfcorehdr=", [0]),
        ("elfcorehdr=here", [0]),
        ('"elfcorehdr=4K" quiet', [4096]),
        ("elfcorehdr=4K elfcorehdr=8K", [4096, 8192]),
        ("quiet", []),
        ("xelfcorehdr=4K elfcorehdr", []),
        ('dyndbg="file elfcorehdr=4K +p"', []),
        ("quiet -- elfcorehdr=4K", []),
        (f"{'x' * 2047} elfcorehdr=4K", []),
        ("elfcorehdr elfcorehdr=4K", [4096]),
        (f"{'x' * 2032} elfcorehdr=4K", [4096]),  # 2046 bytes
        (f"{'x' * 2033} elfcorehdr=4K", [4096]),  # 2047 bytes, the last that the kernel keeps
        (f"{'x' * 2034} elfcorehdr=4K", [4]),
        ("elfcorehdr=4K@8K", [8192]),
        ("elfcorehdr=1e", [1 << 60]),
        ("elfcorehdr=16E", [0]),
        ("elfcorehdr=0X1fffffffffffffffff", [0xFFFF_FFFF_FFFF_FFFF]),
    ],
)
def test_elfcorehdr_addresses_are_those_that_the_kernel_parses(cmdline: str, addresses: list[int]) -> None:
    assert elfcorehdr_addresses(cmdline) == addresses


def test_why_elfcorehdr_not_found_names_none_two_and_another_place() -> None:
    assert why_elfcorehdr_not_found("quiet elfcorehdr=4K", 4096) is None
    assert why_elfcorehdr_not_found("quiet elfcorehdr=4K", None) is None
    for cmdline, sentence in (
        ("quiet", "has no elfcorehdr="),
        ("elfcorehdr=8K elfcorehdr=4K", "has elfcorehdr= 2 times (0x2000, 0x1000), not once"),
        ("elfcorehdr=8K", "would look for its elfcorehdr at 0x2000, but the image has it at 0x1000"),
    ):
        assert sentence in str(why_elfcorehdr_not_found(cmdline, 4096))


# The zero page, with the numbers of Documentation/arch/x86/zero-page.rst


def zero_page(*entries: tuple[int, int, int], magic: bytes = b"HdrS", count: int | None = None) -> bytearray:
    """Return a zero page with E820 entries (start, size, type)."""
    page = bytearray(4096)
    page[0x202:0x206] = magic
    page[0x1E8] = len(entries) if count is None else count
    for number, entry in enumerate(entries):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * number, *entry)
    struct.pack_into("<I", page, 0x238, 2047)
    return page


def test_zero_page_has_its_magic_and_a_whole_page() -> None:
    assert is_boot_params(bytes(zero_page()))
    assert not is_boot_params(bytes(zero_page(magic=b"HdrT")))
    assert not is_boot_params(bytes(zero_page())[:-1])
    assert not is_boot_params(bytes(4096))


def test_cmdline_phys_has_32_lower_and_32_upper_bits() -> None:
    page = zero_page()
    page[0x228:0x22C] = b"\x78\x56\x34\x12"
    page[0xC8:0xCC] = b"\x02\0\0\0"
    assert cmdline_phys(bytes(page)) == 0x2_1234_5678


def test_e820_table_has_as_many_entries_as_the_zero_page_counts() -> None:
    page = zero_page((0x1000, 0x9000, 1), (0x10_0000, 0x100, 2), (1 << 40, 1, 7))
    ranges = [(Range(0x1000, 0xA000), 1), (Range(0x10_0000, 0x10_0100), 2), (Range(1 << 40, (1 << 40) + 1), 7)]
    assert e820_table(bytes(page)) == ranges
    page[0x1E8] = 2
    assert e820_table(bytes(page)) == ranges[:2]
    page[0x1E8] = 255
    assert len(e820_table(bytes(page))) == 128
    assert e820_table(bytes(zero_page((0, 1, 1), magic=b"none"))) == []


def test_e820_entry_that_wraps_is_left_out() -> None:
    last, wraps = ((1 << 64) - 16, 16, 1), ((1 << 64) - 16, 17, 1)
    assert e820_table(bytes(zero_page(last, wraps))) == [(Range((1 << 64) - 16, 1 << 64), 1)]


PLACE = Range(0x2000, 0x3000)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([(0, 0x9000, 1)], [(0, 0x2000, 1), (0x2000, 0x1000, 2), (0x3000, 0x6000, 1)]),
        ([(0x2000, 0x1000, 1)], [(0x2000, 0x1000, 2)]),
        ([(0x2000, 0x3000, 1)], [(0x2000, 0x1000, 2), (0x3000, 0x2000, 1)]),
        ([(0, 0x3000, 1)], [(0, 0x2000, 1), (0x2000, 0x1000, 2)]),
        ([(0, 0x2000, 1), (0x3000, 0x1000, 1)], [(0, 0x2000, 1), (0x3000, 0x1000, 1)]),
        ([(0, 0x9000, 2)], [(0, 0x9000, 2)]),
        ([(0x2800, 0x1800, 1)], [(0x2000, 0x1000, 2), (0x3000, 0x1000, 1)]),
        ([(0x1000, 0x1800, 1)], [(0x1000, 0x1000, 1), (0x2000, 0x1000, 2)]),
        ([(0, 16, 2), (0x1000, 0x2001, 1), (0x5000, 7, 3)],
         [(0, 16, 2), (0x1000, 0x1000, 1), (0x2000, 0x1000, 2), (0x3000, 1, 1), (0x5000, 7, 3)]),
    ],
)  # fmt: skip
def test_reserve_splits_the_ram_that_holds_the_place(
    before: list[tuple[int, int, int]], after: list[tuple[int, int, int]]
) -> None:
    """The zero page starts in the middle of its segment; what stands around it stays."""
    parameters = bytearray(b"x" * 64) + zero_page(*before) + bytearray(b"y" * 64)
    reserve(parameters, 64, PLACE)
    page = bytes(parameters[64:-64])
    assert e820_table(page) == [(Range(start, start + size), kind) for start, size, kind in after]
    assert page[0x1E8] == len(after)
    assert bytes(parameters[:64] + parameters[-64:]) == b"x" * 64 + b"y" * 64


def test_reserve_needs_room_for_two_entries_more() -> None:
    many = [(0x10_0000 + at * 16, 8, 2) for at in range(127)]
    fits = zero_page((0, 0x9000, 1), *many[:125])
    reserve(fits, 0, PLACE)
    assert fits[0x1E8] == 128
    with pytest.raises(CannotTellError, match="no room: 129 entries of 128"):
        reserve(zero_page((0, 0x9000, 1), *many[:126]), 0, PLACE)


def changed(cmdline: str, place: int = 0x3A0_0000, space: int = 64, longest: int = 2047, at: int = 4096) -> bytes:
    """Return the segment behind the zero page after the change."""
    parameters = bytearray(b"x" * 32) + zero_page() + cmdline.encode() + bytes(space) + b"behind"
    struct.pack_into("<I", parameters, 32 + 0x238, longest)
    change_elfcorehdr_argument(parameters, 32 + at, 32, cmdline, place)
    assert parameters[: 32 + 0x238] == bytearray(b"x" * 32) + zero_page()[:0x238]
    return bytes(parameters[32 + 4096 :])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("quiet elfcorehdr=0x10 ro", "quiet elfcorehdr=0x3a00000 ro"),
        ("elfcorehdr=1024K", "elfcorehdr=59392K"),
        ("elfcorehdr=64K@0x100000 quiet", "elfcorehdr=0x3a00000 quiet"),
        ("elfcorehdr=0x123456789abc ro", "elfcorehdr=0x3a00000 ro"),
        ("notelfcorehdr=0x9 elfcorehdr=0x10 elfcorehdr=0x20",
         "notelfcorehdr=0x9 elfcorehdr=0x3a00000 elfcorehdr=0x3a00000"),
    ],
)  # fmt: skip
def test_change_of_elfcorehdr_keeps_the_form_and_the_other_arguments(before: str, after: str) -> None:
    segment = changed(before)
    assert segment.split(b"\0")[0].decode() == after
    assert len(segment) == len(before) + 64 + len(b"behind")
    assert segment.endswith(b"\0behind")


def test_change_of_elfcorehdr_needs_room_and_a_known_place() -> None:
    grows = len("elfcorehdr=0x3a00000") - len("elfcorehdr=0x1")
    assert changed("elfcorehdr=0x1", space=grows + 1).endswith(b"=0x3a00000\0behind")
    refused = "has no room for the new place"
    for space, at, words in ((grows, 4096, refused), (64, 4097, refused), (64, -33, refused)):
        with pytest.raises(CannotTellError, match=words):
            changed("elfcorehdr=0x1", space=space, at=at)
    with pytest.raises(CannotTellError, match="has no elfcorehdr="):
        changed("quiet")


def test_change_of_elfcorehdr_at_the_end_of_its_segment_needs_a_zero_behind_it() -> None:
    parameters = zero_page() + bytearray(b"elfcorehdr=0x3b00000\0")
    change_elfcorehdr_argument(parameters, 4096, 0, "elfcorehdr=0x3b00000", 0x3A0_0000)
    assert parameters[4096:] == b"elfcorehdr=0x3a00000\0"
    with pytest.raises(CannotTellError, match="has no room"):
        change_elfcorehdr_argument(parameters[:-1], 4096, 0, "elfcorehdr=0x3a00000", 0x3A0_0000)


def test_change_of_elfcorehdr_in_front_of_the_zero_page() -> None:
    cmdline = "elfcorehdr=0x3b00000"
    parameters = bytearray(cmdline.encode() + bytes(44)) + zero_page() + bytearray(cmdline.encode() + bytes(44))
    change_elfcorehdr_argument(parameters, 0, 64, cmdline, 0x3A0_0000)
    assert parameters.startswith(b"elfcorehdr=0x3a00000\0")
    with pytest.raises(CannotTellError, match="has no room"):  # in front of the segment: not its last bytes
        change_elfcorehdr_argument(parameters, -64, 64, cmdline, 0x3A0_0000)


def test_change_of_elfcorehdr_stays_within_the_kernels_command_line() -> None:
    length = len("elfcorehdr=0x3a00000")
    assert changed("elfcorehdr=0x1", longest=length).startswith(b"elfcorehdr=0x3a00000\0")
    with pytest.raises(CannotTellError, match=f"would have {length} bytes; its limit is {length - 1}"):
        changed("elfcorehdr=0x1", longest=length - 1)


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("elfcorehdr=949620K", (949620 << 10, Loader.KEXEC_TOOLS)),
        ("elfcorehdr=4K elfcorehdr=0x2000", (0x2000, Loader.KERNEL)),
        ("quiet", None),
    ],
)
def test_elfcorehdr_argument_is_the_last_one(cmdline: str, expected: tuple[int, Loader] | None) -> None:
    assert elfcorehdr_argument(cmdline) == expected


@pytest.mark.parametrize(
    ("cmdline", "has"),
    [("quiet memmap=1G", True), ("memmap=1G quiet", True), ("xmemmap=1G memmap", False), ("", False), (None, False)],
)
def test_has_argument_wants_the_whole_name_and_a_value(cmdline: str | None, has: bool) -> None:
    assert has_argument(cmdline, "memmap") is has


def test_luks_keys_are_those_of_the_command_line() -> None:
    assert ZeroPage(cmdline="quiet dmcryptkeys=0x39f00000").luks_keys == "dmcryptkeys="
    assert ZeroPage(cmdline="quiet xdmcryptkeys=0x39f00000").luks_keys is None
    assert ZeroPage().luks_keys is None
