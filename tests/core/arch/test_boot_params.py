# SPDX-License-Identifier: MIT
"""A capture kernel's file, looked at before the loaded image is dropped."""

from __future__ import annotations

import re
import struct

import pytest

from crash_hotplug.core.arch.boot_params import (
    check_bzimage,
    elfcorehdr_addresses,
    init_size,
    why_elfcorehdr_not_found,
    why_no_file_load,
)
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import InputError, NoRoomError
from crash_hotplug.core.plan import MAX_ROOM, check_capture_kernel_fits
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
    ],
)
def test_why_no_file_load_names_what_kexec_file_load_refuses(changed: dict[str, int], words: str) -> None:
    reason = why_no_file_load(bzimage_head(**changed))
    assert reason is not None
    assert re.search(words, reason)


def test_capture_kernel_that_fits_is_accepted() -> None:
    check_capture_kernel_fits(INIT_SIZE, 4 << 20, ROOM, MACHINE)
    check_capture_kernel_fits(INIT_SIZE, 4 << 20, MAX_ROOM, MACHINE)


def test_room_out_of_bounds_is_refused() -> None:
    for room, words in ((0x100, "is too small: the elfcorehdr needs 4096"), (MAX_ROOM + 1, "more than an elfcorehdr")):
        with pytest.raises(InputError, match=words):
            check_capture_kernel_fits(INIT_SIZE, 0, room, MACHINE)


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
