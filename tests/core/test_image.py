# SPDX-License-Identifier: MIT
"""struct kimage, the capture kernel's command line and memory map."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.boot_params import (
    E820_RAM,
    E820_RESERVED,
    ZeroPage,
    cmdline_phys,
    e820_table,
    elfcorehdr_argument,
)
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import (
    KIMAGE_BYTES_NEEDED,
    KNOWN_LAYOUTS,
    CrashImage,
    Kimage,
    KimageLayout,
    Segment,
    elfcorehdr_room,
    layout_from_members,
    parse_kimage,
)
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range, RangeList
from tests.core.image_in_memory import boot_params, with_zero_page
from tests.trees import tree

RESERVED = RangeList([(0x2E00_0000, 0x3A00_0000)])
CONTROL_PAGE = 0x2E00_7FFF
SEGMENTS = (Segment(0x2E00_0000, 0x1000, 0x30), Segment(0x39F5_4000, 0x9000, 0x70E0))


def kimage_bytes(
    count_word: int = 7,
    entry: int = 0x39F5_4760,
    segments: tuple[Segment, ...] = SEGMENTS,
    control_page: int | None = None,
    cma: bool = False,
) -> bytes:
    """Return a struct kimage with nr_segments at one of the words where kernels have it; with segment_cma[] or not."""
    words = [0xFFFF_8880_1234_5678] * (KIMAGE_BYTES_NEEDED // 8)
    words[3] = entry
    behind = count_word + 1 + 4 * 16
    if cma:
        words[behind : behind + 16] = [0] * 16  # no segment of a crash image is in CMA
        behind += 16
    words[behind + 6] = CONTROL_PAGE if control_page is None else control_page  # behind three list heads
    words[count_word] = len(segments)
    for number, s in enumerate(segments):
        words[count_word + 1 + 4 * number : count_word + 5 + 4 * number] = [0x7F00_0000_0000, s.bufsz, s.phys, s.memsz]
    return struct.pack(f"<{len(words)}Q", *words)


@pytest.mark.parametrize("count_word", [5, 6, 7, 8])
def test_kimage_is_recognised_wherever_its_table_is(count_word: int) -> None:
    assert parse_kimage(kimage_bytes(count_word), RESERVED) == Kimage(0x39F5_4760, SEGMENTS, CONTROL_PAGE)


def test_control_page_is_found_behind_segment_cma() -> None:
    assert parse_kimage(kimage_bytes(cma=True), RESERVED) == Kimage(0x39F5_4760, SEGMENTS, CONTROL_PAGE)


def test_kimage_without_a_plausible_control_page_is_that_of_the_first_layout() -> None:
    kimage = parse_kimage(kimage_bytes(control_page=0x1000), RESERVED)
    assert kimage == Kimage(0x39F5_4760, SEGMENTS, 0x1000)


@pytest.mark.parametrize(
    "data",
    [
        bytes(KIMAGE_BYTES_NEEDED),
        kimage_bytes(entry=0x1000),
        kimage_bytes(segments=(Segment(0x4000_0000, 0x1000, 0), *SEGMENTS)),
        kimage_bytes(segments=(Segment(0x2E00_1800, 0x1000, 0), *SEGMENTS)),
        kimage_bytes(segments=(Segment(0x2E00_0000, 0x1000, 0x30), *SEGMENTS)),
        kimage_bytes(segments=(Segment(0x2E00_1000, 0x1000, 0x2000), *SEGMENTS)),
        kimage_bytes(segments=(Segment(0x2E00_1000, (1 << 64) - 0x1000, 0), *SEGMENTS)),
        kimage_bytes(segments=(Segment(0x2E00_1000, 0x0800, 0), *SEGMENTS)),
        kimage_bytes(segments=(Segment(0x2E00_1000, 0, 0), *SEGMENTS)),
        kimage_bytes(segments=(Segment((1 << 64) - 0x1000, 0x2000, 0), *SEGMENTS)),
        kimage_bytes(
            entry=0x2E00_0000, segments=tuple(Segment(0x2E00_0000 + at * 0x1000, 0x1000, 0) for at in range(17))
        ),
        kimage_bytes(entry=0x2E00_1000),
        kimage_bytes()[:-8],
    ],
    ids=[
        "zeros",
        "entry",
        "outside",
        "unaligned",
        "overlap",
        "bufsz",
        "wraps",
        "memsz",
        "empty",
        "2^64",
        "17 segments",
        "entry behind",
        "short",
    ],
)
def test_implausible_kimage_is_refused(data: bytes) -> None:
    for crashkernel in (RESERVED, RangeList([*RESERVED, ((1 << 64) - 0x1000, 1 << 64)])):
        with pytest.raises(CannotTellError):
            parse_kimage(data, crashkernel)


def test_largest_kimage_is_accepted() -> None:
    """Sixteen segments, one of them up to its last byte, in the last page of the address space."""
    last = Segment((1 << 64) - 0x1000, 0x1000, 0x1000)
    segments = (*(Segment(0x2E00_0000 + at * 0x1000, 0x1000, 0) for at in range(15)), last)
    reserved = RangeList([*RESERVED, last.range])
    data = kimage_bytes(entry=0x2E00_0000, segments=segments)
    assert parse_kimage(data, reserved) == Kimage(0x2E00_0000, segments, CONTROL_PAGE)
    one = kimage_bytes(entry=0x2E00_0FFF, segments=segments[:1])
    assert parse_kimage(one, reserved).segments == segments[:1]


def test_layout_of_known_kernels_is_in_words_of_eight_bytes() -> None:
    """``start`` is the fourth word; behind ``nr_segments`` come 16 segments of 4 words and 3 list heads of 2."""
    assert KNOWN_LAYOUTS[0] == KimageLayout(24, 56, 64, 8 * 78)
    assert [layout.nr_segments for layout in KNOWN_LAYOUTS] == [56, 56, 48, 64, 40]
    assert KNOWN_LAYOUTS[0].end == 8 * 79
    assert KimageLayout(24, 56, 8 * 78, 40).end == 8 * 78 + 16 * 32 + 8
    assert max(layout.end for layout in KNOWN_LAYOUTS) == KIMAGE_BYTES_NEEDED


def test_layout_from_members_wants_each_of_them_aligned_and_near() -> None:
    members = {"start": 24, "nr_segments": 56, "segment": 64, "control_page": 4088, "head": 3}
    assert layout_from_members(members) == KimageLayout(24, 56, 64, 4088)
    assert layout_from_members({**members, "control_page": 4096}) is None
    assert layout_from_members({**members, "start": 25}) is None
    assert layout_from_members({**members, "start": 0}) == KimageLayout(0, 56, 64, 4088)
    assert layout_from_members({name: at for name, at in members.items() if name != "segment"}) is None


@given(st.binary(max_size=KIMAGE_BYTES_NEEDED + 64))
def test_parse_kimage_accepts_or_refuses_any_bytes(data: bytes) -> None:
    try:
        assert parse_kimage(data, RESERVED).segments
    except CannotTellError as error:
        assert "struct kimage" in str(error)


@pytest.mark.parametrize(
    ("cmdline", "expected"),
    [
        ("console=ttyS0 elfcorehdr=949620K", (0x39F5_D000, Loader.KEXEC_TOOLS)),
        ("elfcorehdr=0x2b000000 quiet", (0x2B00_0000, Loader.KERNEL)),
        ("elfcorehdr=0x10 elfcorehdr=0x20", (0x20, Loader.KERNEL)),
        ("elfcorehdr=64K@0x30", (0x30, Loader.KERNEL)),
        ("quiet", None),
        ("notelfcorehdr=0x10", None),
        ("elfcorehdr=", None),
    ],
)
def test_elfcorehdr_argument_names_address_and_loader(cmdline: str, expected: tuple[int, Loader] | None) -> None:
    assert elfcorehdr_argument(cmdline) == expected


def saved_image(name: str, elfcorehdr_phys: int) -> CrashImage:
    saved = tree(name, 0) / "crash-image"
    return CrashImage(
        (saved / "elfcorehdr").read_bytes(),
        elfcorehdr_phys,
        ZeroPage((saved / "boot_params").read_bytes(), cmdline=(saved / "cmdline").read_text()),
    )


@pytest.mark.parametrize(
    ("name", "elfcorehdr_phys", "reserved_end", "backup", "room"),
    [
        # Segment sizes as `kexec -d` printed them: 0x4000, one page, 0xe1000 (of which 0xe0400 are left out of RAM).
        ("6.1-c", 0x39F5_D000, 0x3A00_0000, 0x39F6_1000, 0x4000),
        ("6.1-s", 0x2B00_0000, 0x3700_0000, None, 0x1000),
        ("6.12-ch", 0x3EE8_0000, 0x3F00_0000, 0x3EF6_1000, 0xE0400),
        ("6.12-s", 0x3300_0000, 0x3F00_0000, None, 0xE00B0),
    ],
)
def test_elfcorehdr_room_is_the_memory_that_the_capture_kernel_does_not_use(
    name: str, elfcorehdr_phys: int, reserved_end: int, backup: int | None, room: int
) -> None:
    reserved = RangeList([(reserved_end - 0xC00_0000, reserved_end)])
    image = saved_image(name, elfcorehdr_phys)
    assert elfcorehdr_room(image, reserved, backup) == room
    assert elfcorehdr_room(CrashImage(image.elfcorehdr, elfcorehdr_phys), reserved, backup) is None
    kimage = Kimage(0, (Segment(elfcorehdr_phys, 0x2000, 0),))
    assert elfcorehdr_room(CrashImage(b"", elfcorehdr_phys, kimage=kimage), reserved, None) == 0x2000


START = 0x39F5_D000


def with_map(*ram: tuple[int, int], **more: object) -> CrashImage:
    """Return an image whose capture kernel uses these ranges of RAM."""
    page = boot_params([(Range(start, end), E820_RAM) for start, end in ram])
    return CrashImage(b"", START, ZeroPage(page))._replace(**more)  # type: ignore[arg-type]


def test_elfcorehdr_room_ends_where_anything_else_begins() -> None:
    below, above = (RESERVED[0].start, START), (START + 0x9000, RESERVED[0].end)
    assert elfcorehdr_room(with_map(below, above), RESERVED) == 0x9000
    assert elfcorehdr_room(with_map(below), RESERVED) == RESERVED[0].end - START
    assert elfcorehdr_room(with_map(below, above, backup_region_phys=START + 0x5000), RESERVED) == 0x5000
    assert elfcorehdr_room(with_map(below, above), RESERVED, START + 0x4000) == 0x4000
    segments = (Segment(START - 0x1000, 0x1000, 0), Segment(START, 0x2000, 0), Segment(START + 0x3000, 0x1000, 0))
    assert elfcorehdr_room(with_map(below, above, kimage=Kimage(0, segments)), RESERVED) == 0x3000
    listed = Kimage(0, (Segment(START - 0x1000, 0x3000, 0),))
    assert elfcorehdr_room(with_map(below, above, kimage=listed), RESERVED) == 0x9000
    assert elfcorehdr_room(CrashImage(b"", START, kimage=listed), RESERVED) == 0x2000
    boot = with_map(below, above).boot
    assert boot is not None
    assert boot.elfcorehdr_room(START, None, [START - 1, START, START + 0x4000]) == 0x4000


def test_elfcorehdr_room_is_unknown_in_the_capture_kernels_ram_and_outside_of_the_reservation() -> None:
    assert elfcorehdr_room(with_map((START - 0x1000, START + 1), (START + 0x9000, START + 0xA000)), RESERVED) is None
    assert elfcorehdr_room(with_map((START, START + 0x1000)), RESERVED) is None
    outside = RangeList([(0x1000, 0x9000), (START + 0x1000, START + 0x2000)])
    assert elfcorehdr_room(with_map((0x1000, START)), outside) is None
    reserved = boot_params([(Range(START + 0x9000, START + 0xA000), E820_RESERVED)])
    assert elfcorehdr_room(CrashImage(b"", START, ZeroPage(reserved)), RESERVED) is None


def test_elfcorehdr_room_starts_at_the_argument_where_no_segment_is_known() -> None:
    image = with_map((RESERVED[0].start, START), elfcorehdr_phys=None)
    image = with_zero_page(image, cmdline=f"elfcorehdr={START:#x}")
    assert elfcorehdr_room(image, RESERVED) == RESERVED[0].end - START
    assert elfcorehdr_room(with_zero_page(image, cmdline="quiet"), RESERVED) is None
    assert elfcorehdr_room(with_zero_page(image, cmdline=None), RESERVED) is None


def test_crash_image_of_an_unknown_command_line_hides_no_header() -> None:
    assert CrashImage(b"", START).why_header_not_found is None
    assert CrashImage(b"", START).loader is None
    assert not CrashImage(b"", START).updated_by_kernel
    assert CrashImage(b"", START, ZeroPage(cmdline="quiet")).why_header_not_found is not None
    assert CrashImage(b"", START, ZeroPage(cmdline=f"elfcorehdr={START:#x}")).why_header_not_found is None


def test_boot_params_tell_memory_map_and_command_line() -> None:
    page = (tree("6.1-s", 0) / "crash-image" / "boot_params").read_bytes()
    assert len(e820_table(page)) == 9
    assert cmdline_phys(page) == 0x36FF_9000
    assert e820_table(bytes(4096)) == []
    assert e820_table(page[:100]) == []


@given(st.binary(max_size=5000))
def test_e820_table_survives_any_bytes(page: bytes) -> None:
    for r, _kind in e820_table(page):
        assert 0 <= r.start <= r.end <= 1 << 64
