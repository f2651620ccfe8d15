# SPDX-License-Identifier: MIT
"""Which segments an update lists: the numbers of two real images, and invented ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import E820_RAM, E820_RESERVED, e820_table
from crash_hotplug.core.arch.x86_64 import X86_64
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.expected import header_to_write
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import (
    NewSegment,
    TornImageError,
    UpdatePlan,
    check_result,
    overlaid,
    plan_update,
    prepare_move,
    room_for,
    why_no_plan,
)
from crash_hotplug.core.purgatory import digest_covers, digest_regions
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.reserved_region import find_place, lowest_hole, reservation_of, segments_to_list
from tests.core.image_in_memory import (
    ENTRY,
    GROWN,
    HEADER,
    INITRD,
    KERNEL,
    MACHINE,
    PURGATORY,
    SEGMENTS,
    SMALL,
    ZERO_PAGE,
    FakeMachine,
    boot_params,
    changed_image,
    with_zero_page,
)
from tests.core.image_in_memory import RESERVED as FAKE_RESERVED
from tests.machines import GIB, MIB

RESERVED = Range(0x3300_0000, 0x3F00_0000)
# 6.12 -ch, as `kexec -d` printed it: one page at the bottom, all else at the top.
TOOLS = (
    Segment(0x3300_0000, 0x1000, 0x30),
    Segment(0x3B4E_D000, 0x11_3000, 0x11_2B8D),
    Segment(0x3B60_0000, 0x37D_D000, 0xB2_57C0),
    Segment(0x3EE7_1000, 0x6000, 0x509A),
    Segment(0x3EE7_7000, 0x9000, 0x70E0),
    Segment(0x3EE8_0000, 0xE_1000, 0x800),
    Segment(0x3EF6_1000, 0x9_F000, 0x9_EC00),
)
KIMAGE = Kimage(0x3EE7_7730, TOOLS)


def listed(kimage: Kimage, size: int, *changed: int) -> list[int]:
    return [s.phys for s in segments_to_list(kimage, changed, RESERVED, size)]


def test_segments_below_the_hole_are_listed() -> None:
    assert listed(KIMAGE, 31 * PAGE, 0x3EE7_7000, 0x3EE8_0000) == [0x3300_0000, 0x3EE7_7000, 0x3EE8_0000]


def test_segments_are_listed_until_a_hole_is_large_enough() -> None:
    between = Kimage(0x3EE7_7730, (*TOOLS, Segment(0x3300_9000, PAGE, PAGE)))
    assert 0x3300_9000 not in listed(between, 8 * PAGE, 0x3EE8_0000)
    assert 0x3300_9000 in listed(between, 9 * PAGE, 0x3EE8_0000)
    assert 0x3300_9000 in listed(between, 31 * PAGE, 0x3EE8_0000)


def test_plan_without_a_hole_is_cannot_tell() -> None:
    with pytest.raises(CannotTellError, match="no hole of"):
        listed(KIMAGE, RESERVED.size, 0x3EE8_0000)


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)), min_size=1, max_size=10),
    st.integers(1, 60),
    st.data(),
)
def test_control_pages_never_meet_a_segment_that_is_not_listed(
    drawn: list[tuple[int, int]], pages: int, data: st.DataObject
) -> None:
    """Whatever single pages the kernel takes from the lowest holes, up to the bound."""
    segments: list[Segment] = []
    for start, length in sorted(drawn):
        at = max(start * PAGE, segments[-1].range.end if segments else 0)
        segments.append(Segment(at, length * PAGE, length * PAGE))
    reserved = Range(0, segments[-1].range.end + 300 * PAGE)
    changed = data.draw(st.sampled_from(segments)).phys
    chosen = segments_to_list(Kimage(0, tuple(segments)), [changed], reserved, pages * PAGE)
    taken = RangeList(s.range for s in chosen)
    free = [page for page in range(0, reserved.end, PAGE) if not taken.contains(page)][:pages]
    unlisted = RangeList(s.range for s in segments if s not in chosen)
    assert not any(unlisted.contains(page) for page in free)


def test_lowest_hole_is_the_first_that_is_large_enough() -> None:
    assert lowest_hole(Range(0, 100), [Range(0, 10), Range(15, 50)], 5) == Range(10, 15)
    assert lowest_hole(Range(0, 100), [Range(0, 10), Range(15, 50)], 6) == Range(50, 56)
    assert lowest_hole(Range(0, 100), [Range(0, 99)], 2) is None
    assert lowest_hole(Range(0, 100), [Range(0, 98)], 2) == Range(98, 100)


def test_control_pages_bound_grows_with_memory_and_covers_measured_use() -> None:
    """6 to 8 pages were in use with 1 GiB of RAM."""
    assert X86_64.control_bytes(RangeList([(0, 1 << 30)])) >= 8 * PAGE
    assert X86_64.control_bytes(RangeList([(0, 1 << 40)])) > 1024 * PAGE
    assert X86_64.control_bytes(RangeList()) == 28 * PAGE


@pytest.mark.parametrize(
    ("ram_bytes", "pages"),
    [(1 << 30, 30), ((1 << 30) + PAGE, 31), (512 << 30, 28 + 512 + 1), ((512 << 30) + PAGE, 28 + 513 + 2)],
)
def test_control_pages_bound_counts_a_page_for_each_started_gib_and_512_gib(ram_bytes: int, pages: int) -> None:
    """The map covers holes too, up to the end of RAM."""
    assert X86_64.control_bytes(RangeList([(0, ram_bytes)])) == pages * PAGE
    assert X86_64.control_bytes(RangeList([(0, 16), (ram_bytes - 16, ram_bytes)])) == pages * PAGE


KEPT = Range(0x3300_9000, 0x3301_0000)
PLAN = UpdatePlan(ENTRY, (), (KEPT,), Range(0x3300_0000, 0x3300_9000), False)


def loaded(control_page: int | None, entry: int = ENTRY) -> Kimage:
    return Kimage(entry, (), control_page)


@pytest.mark.parametrize("control_page", [0x3300_0001, 0x3300_9000])
def test_result_with_control_pages_below_what_was_kept_is_right(control_page: int) -> None:
    check_result(PLAN, loaded(control_page))


@pytest.mark.parametrize("control_page", [None, 0, 0x3300_9001, 0x3300_A000, 1 << 60])
def test_result_with_control_pages_elsewhere_is_torn(control_page: int | None) -> None:
    with pytest.raises(TornImageError, match="control pages may have overwritten"):
        check_result(PLAN, loaded(control_page))


def test_result_with_control_pages_behind_their_hole_is_torn_even_if_nothing_was_kept() -> None:
    with pytest.raises(TornImageError):
        check_result(PLAN._replace(kept=()), loaded(0x3300_9001))


def test_result_with_another_entry_point_is_not_what_was_meant() -> None:
    with pytest.raises(CrashHotplugError, match="is not the one that is there"):
        check_result(PLAN, loaded(0x3300_1000, ENTRY + 1))


def test_result_with_control_pages_above_what_was_kept_is_torn() -> None:
    with pytest.raises(TornImageError):
        check_result(PLAN._replace(kept=(Range(0x3300_1000, 0x3300_2000), KEPT)), loaded(0x3300_2000))


# The plan of an image in memory


@pytest.fixture
def fake() -> FakeMachine:
    """Return a machine whose loaded header lacks a range of RAM."""
    made = FakeMachine()
    made.now = GROWN
    return made


def replacement(fake: FakeMachine) -> UpdatePlan:
    header = header_to_write(fake.now, fake.image()).to_bytes()
    return plan_update(fake.image(), fake.now, header, None, fake.read_phys)


def read_again(plan: UpdatePlan) -> list[int]:
    """Return the places of the segments that are read once more before the call."""
    sources = [(s.phys, s.source_phys) for s in plan.segments if s.source_phys is not None]
    assert all(phys == source for phys, source in sources)
    return [phys for phys, _source in sources]


def kimage_of(fake: FakeMachine) -> Kimage:
    image = fake.image()
    assert image.kimage is not None
    return image.kimage


def test_replacement_lists_what_changes_and_what_keeps_the_control_pages_away(fake: FakeMachine) -> None:
    plan = replacement(fake)
    assert [(s.phys, s.memsz, s.why) for s in plan.segments] == [
        (SMALL, PAGE, "as it is, to keep its place"),
        (PURGATORY, 3 * PAGE, "purgatory, with a digest without the elfcorehdr"),
        (HEADER, PAGE, "the new elfcorehdr"),
    ]
    assert plan.kept == tuple(s.range for s in SEGMENTS if s.phys in (KERNEL, INITRD, ZERO_PAGE))
    assert (plan.entry_phys, plan.excludes_elfcorehdr, read_again(plan)) == (ENTRY, True, [SMALL])
    assert plan.control_pages == Range(SMALL + PAGE, SMALL + PAGE + X86_64.control_bytes(GROWN.ram))
    assert plan.segments[0].data == fake.memory.read(SMALL, PAGE)
    assert plan.bytes_copied == sum(len(s.data) for s in plan.segments)


def test_replacement_of_a_header_that_the_digest_lacks_reads_purgatory_unchanged() -> None:
    fake = FakeMachine(header_in_digest=False)
    fake.now = GROWN
    said: list[str] = []
    plan = plan_update(fake.image(), GROWN, b"header", None, fake.read_phys, said.append)
    assert (plan.excludes_elfcorehdr, read_again(plan), said) == (False, [SMALL, PURGATORY], [])
    assert plan.segments[1].why == "purgatory"
    assert plan.segments[1].data == fake.memory.read(PURGATORY, 3 * PAGE)


@pytest.mark.parametrize(
    ("room", "header_size", "memsz"),
    [
        (PAGE, 400, PAGE),
        (64 * PAGE, PAGE - 448 * 56 % PAGE, 7 * PAGE),  # 448 entries more: to the end of a page
        (64 * PAGE, PAGE - 448 * 56 % PAGE + 1, 8 * PAGE),
        (5 * PAGE + 16, 400, 5 * PAGE),
        (2 * PAGE + 16, 2 * PAGE + 8, 3 * PAGE),  # the last page is the header's in part: it is listed whole
    ],
)
def test_header_is_listed_with_spare_entries_within_its_room(
    fake: FakeMachine, room: int, header_size: int, memsz: int
) -> None:
    ram = [Range(FAKE_RESERVED.start, HEADER), Range(HEADER + room, FAKE_RESERVED.end)]
    image = with_zero_page(fake.image(), page=boot_params([(part, E820_RAM) for part in ram]))
    plan = plan_update(image, GROWN, b"h" * header_size, None, fake.read_phys)
    assert plan.segments[-1] == NewSegment(HEADER, b"h" * header_size, memsz, "the new elfcorehdr")


def test_header_of_unknown_room_is_listed_in_its_own_pages() -> None:
    fake = FakeMachine(header_in_digest=False)
    others = tuple(s for s in kimage_of(fake).segments if s.phys != HEADER)
    image = fake.image()._replace(kimage=kimage_of(fake)._replace(segments=others))
    for unknown in (with_zero_page(image, page=None), image._replace(boot=None)):
        plan = plan_update(unknown, GROWN, b"h" * (PAGE + 1), None, fake.read_phys)
        assert plan.segments[-1].memsz == 2 * PAGE


def moved(fake: FakeMachine, room: int = 16 * PAGE) -> tuple[UpdatePlan, int]:
    image = fake.image()
    move = prepare_move(image, fake.now, room, fake.read_phys)
    said: list[str] = []
    plan = plan_update(image, fake.now, b"new header", move, fake.read_phys, said.append)
    assert len(said) == 1
    return plan, move.place


def test_move_lists_header_purgatory_and_zero_page_and_keeps_the_rest(fake: FakeMachine) -> None:
    plan, place = moved(fake)
    assert place == FAKE_RESERVED.end - 16 * PAGE
    assert [(s.phys, s.memsz, s.why) for s in plan.segments] == [
        (SMALL, PAGE, "as it is, to keep its place"),
        (ZERO_PAGE, 3 * PAGE, "the zero page, with the new place in command line and E820 table"),
        (PURGATORY, 3 * PAGE, "purgatory, with a new digest"),
        (place, 7 * PAGE, f"the elfcorehdr, moved from {HEADER:#x}"),
    ]
    assert plan.excludes_elfcorehdr
    assert read_again(plan) == [SMALL]
    assert [kept.start for kept in plan.kept] == [KERNEL, INITRD]


def test_move_changes_command_line_memory_map_and_digest(fake: FakeMachine) -> None:
    plan, place = moved(fake)
    for s in plan.segments:
        fake.memory.write(s.phys, s.data.ljust(s.memsz, b"\0"))
    zero_page = fake.memory.read(ZERO_PAGE, PAGE)
    assert (Range(place, FAKE_RESERVED.end), E820_RESERVED) in e820_table(zero_page)
    assert fake.memory.read(ZERO_PAGE + PAGE, 64).split(b"\0")[0] == b"quiet elfcorehdr=0x%x" % place
    assert fake.digest_fits()
    regions = digest_regions(plan.segments[2].data, kimage_of(fake), MACHINE.crashkernel)
    assert regions is not None
    assert not digest_covers(regions, HEADER)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"phys": None}, "the capture kernel's boot description or purgatory was not found"),
        ({"cmdline_phys": None}, "the zero page and command line of the capture kernel were not found"),
        ({"cmdline": None}, "the zero page and command line of the capture kernel were not found"),
        ({"cmdline": f"memmap=1G elfcorehdr={HEADER:#x}"}, "has memmap="),
        ({"phys": HEADER + PAGE}, "the capture kernel's boot description or purgatory was not found"),
        ({"boot": None}, "the capture kernel's boot description or purgatory was not found"),
        ({"kimage": None}, "struct kimage of the loaded image could not be read"),
        ({"elfcorehdr_phys": None}, "struct kimage of the loaded image could not be read"),
        ({"cmdline": "quiet"}, "has no elfcorehdr="),
    ],
)
def test_move_is_not_prepared_without_knowing_what_points_to_the_header(
    fake: FakeMachine, changed: dict[str, object], sentence: str
) -> None:
    image = changed_image(fake.image(), **changed)
    with pytest.raises(CannotTellError, match=sentence):
        prepare_move(image, GROWN, PAGE, fake.read_phys)


def test_move_is_not_prepared_without_purgatory_and_not_planned_without_the_zero_page(fake: FakeMachine) -> None:
    image = fake.image()
    move = prepare_move(image, GROWN, PAGE, fake.read_phys)
    nowhere = image._replace(kimage=kimage_of(fake)._replace(entry_phys=FAKE_RESERVED.start + 100 * PAGE))
    with pytest.raises(CannotTellError, match="boot description or purgatory was not found"):
        prepare_move(nowhere, GROWN, PAGE, fake.read_phys)
    for lost in (with_zero_page(image, phys=None), image._replace(boot=None)):
        with pytest.raises(CannotTellError, match="boot description was not found"):
            plan_update(lost, GROWN, b"", move, fake.read_phys)
    with pytest.raises(CannotTellError, match="no segment of the loaded image holds its entry point"):
        plan_update(nowhere, GROWN, b"", None, fake.read_phys)


def test_replacement_needs_a_digest_table(fake: FakeMachine) -> None:
    image = fake.image()
    fake.memory.write(PURGATORY, bytes(3 * PAGE))
    with pytest.raises(CannotTellError, match="digest table was not found"):
        plan_update(image, GROWN, b"", None, fake.read_phys)


def test_plan_lists_sixteen_segments_at_most() -> None:
    """Small segments below the lowest hole: each has to be listed."""
    for more, fits in ((13, True), (14, False)):
        small = [Segment(SMALL + number * 2 * PAGE, PAGE, PAGE) for number in range(1, more + 1)]
        others = [s for s in SEGMENTS if s.phys not in (KERNEL, INITRD)]
        fake = FakeMachine(header_in_digest=False, segments=sorted([*others, *small]))
        if fits:
            assert len(plan_update(fake.image(), GROWN, b"h", None, fake.read_phys).segments) == 16
        else:
            with pytest.raises(CannotTellError, match="17 segments would have to be listed; kexec_load takes 16"):
                plan_update(fake.image(), GROWN, b"h", None, fake.read_phys)


@pytest.mark.parametrize(
    ("control_page", "sentence"),
    [
        (SMALL + 9 * PAGE, None),
        (FAKE_RESERVED.end, None),
        (FAKE_RESERVED.end + 1, "the control pages of the loaded image were not found"),
        (0, "the control pages of the loaded image were not found"),
        (None, "the control pages of the loaded image were not found"),
    ],
)
def test_why_no_plan_wants_control_pages_in_the_reserved_region(
    fake: FakeMachine, control_page: int | None, sentence: str | None
) -> None:
    assert fake.kimage is not None
    fake.kimage = fake.kimage._replace(control_page_phys=control_page)
    reason = why_no_plan(fake.image(), GROWN)
    assert reason == sentence if sentence is None else sentence in str(reason)


def test_why_no_plan_names_a_missing_hole_and_a_foreign_place(fake: FakeMachine) -> None:
    image = fake.image()
    full = kimage_of(fake)._replace(segments=(Segment(SMALL, FAKE_RESERVED.size - PAGE, 1),))
    assert "no hole of" in str(why_no_plan(image._replace(kimage=full), GROWN))
    outside = image._replace(elfcorehdr_phys=FAKE_RESERVED.end)
    assert "0x30000000 does not lie in the memory reserved" in str(why_no_plan(outside, GROWN))
    below = image._replace(elfcorehdr_phys=FAKE_RESERVED.start - 1)
    assert "0x1fffffff does not lie in the memory reserved" in str(why_no_plan(below, GROWN))


def test_reservation_is_the_one_that_holds_the_image(fake: FakeMachine) -> None:
    """A second reserved range, as crashkernel=SIZE,high makes below 4 GiB."""
    now = GROWN._replace(crashkernel=RangeList([(16 * MIB, 32 * MIB), FAKE_RESERVED, (3 * GIB, 3 * GIB + MIB)]))
    plan = plan_update(fake.image(), now, b"h", None, fake.read_phys)
    assert plan.control_pages.start == SMALL + PAGE
    assert place_of(fake.image(), now, PAGE) == FAKE_RESERVED.end - PAGE


def test_overlaid_memory_reads_what_was_written_where_all_of_it_was() -> None:
    read = overlaid({0x1000: b"abcd", 0x3000: b"ef"}, lambda phys, length: b"." * length)
    places = ((0x1000, 4), (0x1001, 2), (0x3000, 2), (0x3001, 1), (0x2000, 1))
    assert [read(phys, length) for phys, length in places] == [b"abcd", b"bc", b"ef", b"f", b"."]
    assert [read(phys, length) for phys, length in ((0xFFF, 2), (0x1001, 4), (0x1004, 1))] == [b"..", b"....", b"."]


# The place of a header that moves

HOLE = X86_64.control_bytes(GROWN.ram) + PAGE
"""Bytes that a place needs besides the room."""


def with_free(fake: FakeMachine, *free: Range, kind: int = E820_RAM) -> CrashImage:
    """Return the image with a memory map that has these ranges, and no other."""
    return with_zero_page(fake.image(), page=boot_params([(part, kind) for part in free]))


def place_in(image: CrashImage, machine: Machine, size: int, reserved: Range) -> int:
    """Return the place of *size* bytes that the image has in a reserved range."""
    assert image.kimage is not None
    return find_place(image.kimage, image.capture_ram, machine, reserved, size)


def place_of(image: CrashImage, machine: Machine, size: int) -> int:
    """Return the place that the header of the image would move to."""
    assert image.elfcorehdr_phys is not None
    return place_in(image, machine, size, reservation_of(machine, image.elfcorehdr_phys))


def test_place_is_the_highest_whole_page_that_no_segment_has(fake: FakeMachine) -> None:
    top = Range(HEADER + MIB, HEADER + 2 * MIB + 0x123)
    assert place_of(with_free(fake, top), GROWN, 5 * PAGE) == HEADER + 2 * MIB - 5 * PAGE
    across = Range(KERNEL - 2 * MIB, KERNEL + 0x1000)
    assert place_of(with_free(fake, across), GROWN, PAGE) == KERNEL - PAGE


def test_place_leaves_room_for_the_control_pages(fake: FakeMachine) -> None:
    start = HEADER + MIB
    large = Range(start, start + 3 * PAGE + HOLE)
    assert place_of(with_free(fake, large), GROWN, 3 * PAGE) == large.end - 3 * PAGE
    with pytest.raises(CannotTellError, match="no free place of 12288 bytes"):
        place_of(with_free(fake, Range(start, large.end - 1)), GROWN, 3 * PAGE)


def test_place_in_a_lower_hole_is_taken_where_the_upper_is_too_small(fake: FakeMachine) -> None:
    upper, lower = Range(HEADER + MIB, HEADER + MIB + HOLE), Range(INITRD + MIB, INITRD + 2 * MIB)
    assert place_of(with_free(fake, lower, upper), GROWN, PAGE) == lower.end - PAGE


@pytest.mark.parametrize("now", [GROWN, GROWN._replace(crashkernel=RangeList([(0, MIB)]))], ids=["map", "reservation"])
def test_place_is_ram_of_the_capture_kernel_in_the_reserved_region(fake: FakeMachine, now: Machine) -> None:
    elsewhere = Range(FAKE_RESERVED.end, FAKE_RESERVED.end + 16 * MIB)
    kinds = [(with_free(fake, elsewhere), now), (with_free(fake, FAKE_RESERVED, kind=E820_RESERVED), now)]
    kinds += [(with_zero_page(fake.image(), page=None), now), (fake.image()._replace(boot=None), now)]
    for image, at in kinds:
        with pytest.raises(CannotTellError, match="no free place"):
            place_in(image, at, PAGE, at.crashkernel[0])


def test_place_is_not_sought_where_the_header_lies_in_no_reservation(fake: FakeMachine) -> None:
    now = GROWN._replace(crashkernel=RangeList([(FAKE_RESERVED.start, HEADER)]))
    with pytest.raises(CannotTellError, match="0x2f200000 does not lie in the memory reserved"):
        place_of(fake.image(), now, PAGE)
    with pytest.raises(CannotTellError, match="0x2f200000 does not lie in the memory reserved"):
        prepare_move(fake.image(), now, PAGE, fake.read_phys)


@pytest.mark.parametrize(
    ("cpus", "ranges", "room"), [(1, 69, PAGE), (0, 70, PAGE), (1, 70, 2 * PAGE), (1, 8192, 113 * PAGE)]
)
def test_room_counts_two_more_entries_and_whole_pages(cpus: int, ranges: int, room: int) -> None:
    """64 bytes and 56 for each entry: 72 entries are 4096 bytes."""
    assert room_for(cpus, ranges) == room
    assert room_for(5) == room_for(5, 8192)
