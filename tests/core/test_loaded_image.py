# SPDX-License-Identifier: MIT
"""The loaded image, read out of memory: header, zero page, command line, and the segments an update did not list."""

from __future__ import annotations

import struct

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import CMD_LINE_PTR, MAGIC
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import Kimage, Segment
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range
from tests.core.image_in_memory import (
    COMMAND_LINE,
    ENTRY,
    HEADER,
    INITRD,
    KERNEL,
    MACHINE,
    PURGATORY,
    RESERVED,
    SEGMENTS,
    SMALL,
    TABLE_AT,
    ZERO_PAGE,
    FakeMachine,
    zero_page,
)


def test_loaded_image_has_header_zero_page_and_command_line() -> None:
    fake = FakeMachine()
    for by_kernel in (False, True):
        fake.updated_by_kernel = by_kernel
        image = fake.image()
        assert image.elfcorehdr == fake.memory.read(HEADER, PAGE)
        boot = zero_page(image)
        assert (image.elfcorehdr_phys, boot.phys, boot.cmdline_phys) == (HEADER, ZERO_PAGE, COMMAND_LINE)
        assert boot.page == fake.memory.read(ZERO_PAGE, PAGE)
        assert (image.cmdline, image.loader) == (f"quiet elfcorehdr={HEADER:#x}", Loader.KERNEL)
        assert image.kimage == fake.kimage
        assert (image.updated_by_kernel, image.backup_region_phys, image.torn) == (by_kernel, None, None)


def test_update_by_the_kernel_is_off_unless_it_is_said() -> None:
    fake = FakeMachine()
    assert fake.kimage is not None
    assert not read_loaded_image(X86_64, fake.kimage, MACHINE.crashkernel, None, fake.read_phys).updated_by_kernel


def test_segments_that_an_update_did_not_list_come_from_the_digest_table() -> None:
    fake = FakeMachine()
    listed = tuple(s for s in SEGMENTS if s.phys in (PURGATORY, HEADER))
    fake.kimage = Kimage(ENTRY, listed)
    found = fake.image().kimage
    assert found is not None
    assert [(s.phys, s.memsz) for s in found.segments] == [(s.phys, s.memsz) for s in SEGMENTS]
    assert found.segments[-1] == SEGMENTS[-1]  # a listed one keeps its bufsz
    assert zero_page(fake.image()).phys == ZERO_PAGE


def test_region_of_no_length_in_the_digest_table_is_no_segment() -> None:
    fake = FakeMachine()
    fake.memory.write(PURGATORY + TABLE_AT + 8, bytes(8))
    others = tuple(s for s in SEGMENTS if s.phys != SMALL)
    fake.kimage = Kimage(ENTRY, others)
    assert fake.image().kimage == Kimage(ENTRY, others)


def test_image_without_a_digest_table_has_the_listed_segments() -> None:
    fake = FakeMachine()
    fake.memory.write(PURGATORY, bytes(3 * PAGE))
    assert fake.image().kimage == fake.kimage


def test_backup_region_is_the_one_in_purgatorys_variables() -> None:
    fake = FakeMachine()
    source = Range(0x1000, 0x3000)  # as large as the initrd's segment
    fake.memory.write(PURGATORY + 0x800, struct.pack("<QQQ", INITRD, source.start, source.size))
    assert fake.kimage is not None
    for given, found in ((source, INITRD), (None, None)):
        image = read_loaded_image(X86_64, fake.kimage, MACHINE.crashkernel, given, fake.read_phys)
        assert image.backup_region_phys == found


@pytest.mark.parametrize(
    ("at", "data"), [(0, b"\x7fELG"), (16, b"\x02\0"), (16, b"\x04\x01")], ids=["magic", "executable", "type"]
)
def test_elfcorehdr_is_the_segment_with_a_core_files_header(at: int, data: bytes) -> None:
    fake = FakeMachine()
    fake.memory.write(HEADER + at, data)
    with pytest.raises(CannotTellError, match="none of the loaded crash image's segments is an elfcorehdr"):
        fake.image()
    fake.memory.write(KERNEL, fake.memory.read(HEADER, PAGE))
    fake.memory.write(KERNEL, b"\x7fELF")
    fake.memory.write(KERNEL + 16, b"\x04\0")
    assert fake.image().elfcorehdr_phys == KERNEL


def test_elfcorehdr_is_read_in_whole_pages_within_its_segment() -> None:
    fake = FakeMachine(segments=(*SEGMENTS[:-1], Segment(HEADER, 4 * PAGE, PAGE)))
    for entries, pages in ((72, 1), (73, 2), (145, 2), (300, 4)):
        fake.memory.write(HEADER + 56, struct.pack("<H", entries))
        assert len(fake.image().elfcorehdr) == pages * PAGE
    fake.memory.write(HEADER + 4, b"\x01")  # a 32-bit file: the header's parser names the error
    assert len(fake.image().elfcorehdr) == PAGE


def test_image_without_a_zero_page_has_no_command_line() -> None:
    fake = FakeMachine()
    fake.memory.write(ZERO_PAGE + MAGIC, b"none")
    image = fake.image()
    assert (image.boot, image.cmdline) == (None, None)


def test_zero_page_is_the_one_whose_command_line_lies_in_the_image() -> None:
    fake = FakeMachine()
    copy = fake.memory.read(ZERO_PAGE, PAGE)
    fake.memory.write(KERNEL, copy)  # a lower segment
    fake.memory.write(KERNEL + CMD_LINE_PTR, struct.pack("<I", RESERVED.end - PAGE))
    assert zero_page(fake.image()).phys == ZERO_PAGE
    fake.memory.write(ZERO_PAGE + CMD_LINE_PTR, struct.pack("<I", RESERVED.end - PAGE))
    assert fake.image().boot is None


def test_command_line_ends_at_its_zero_at_4096_bytes_and_at_its_segment() -> None:
    fake = FakeMachine()
    long = b"quiet " * 1000
    fake.memory.write(COMMAND_LINE, long)
    assert fake.image().cmdline == long[:4096].decode()
    at_the_end = ZERO_PAGE + 3 * PAGE - 5
    fake.memory.write(ZERO_PAGE + CMD_LINE_PTR, struct.pack("<I", at_the_end))
    fake.memory.write(at_the_end, b"quiet behind")
    assert fake.image().cmdline == "quiet"
    fake.memory.write(at_the_end, b"\xe9\0iet")
    assert fake.image().cmdline == "\ufffd"
