# SPDX-License-Identifier: MIT
"""The decision of an update: leave the header, write it, move it, or refuse."""

from __future__ import annotations

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.decision import Outcome, Wants, decide, make_plan, why_not_updatable
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.image import elfcorehdr_room
from crash_hotplug.core.machine import Cpu, Machine
from crash_hotplug.core.plan import room_for
from crash_hotplug.core.ranges import RangeList
from tests.core.image_in_memory import (
    GROWN,
    HEADER,
    MACHINE,
    MANY,
    RESERVED,
    ZERO_PAGE,
    FakeMachine,
    boot_params,
    changed_image,
    is_accurate,
    patiently,
    with_zero_page,
)
from tests.machines import GIB, MIB, crash_notes, machine


@pytest.fixture
def grown() -> FakeMachine:
    """Return a machine whose loaded header lacks a range of RAM."""
    fake = FakeMachine()
    fake.now = GROWN
    return fake


def decided(fake: FakeMachine, wants: Wants = Wants(), **changed: object) -> tuple[Outcome, str]:
    image = changed_image(fake.image(), **changed)
    decision = decide(image, fake.now, fake.read_phys, wants)
    return decision.outcome, decision.sentence


def test_torn_image_and_header_that_is_not_found_are_for_a_reload_only(grown: FakeMachine) -> None:
    assert decided(grown, torn="torn before") == (Outcome.TORN, "torn before")
    outcome, sentence = decided(grown, cmdline="quiet")
    assert outcome is Outcome.REFUSED
    assert sentence.endswith("; only a reload corrects that")


@pytest.mark.parametrize(
    ("now", "cmdline", "sentence"),
    [
        (GROWN._replace(memory_encryption="AMD SME"), "", "memory is encrypted (AMD SME)"),
        (GROWN, " dmcryptkeys=0x1000", "LUKS keys"),
        (GROWN._replace(crashkernel=RangeList([(0, MIB)])), "", "does not lie in the memory reserved"),
    ],
)
def test_image_that_cannot_be_updated_is_refused_with_the_reason(now: Machine, cmdline: str, sentence: str) -> None:
    fake = FakeMachine(cmdline=f"elfcorehdr={HEADER:#x}{cmdline}")
    image = fake.image()
    decision = decide(image, now, fake.read_phys)
    assert (decision.outcome, sentence in decision.sentence) == (Outcome.REFUSED, True)
    assert decision.header == b""
    assert why_not_updatable(fake.image(), MACHINE) == (None if not cmdline else decision.sentence)


def test_refusal_does_not_hide_that_the_header_is_right() -> None:
    fake = FakeMachine()
    fake.now = MACHINE._replace(memory_encryption="AMD SME")
    assert decided(fake) == (Outcome.UNCHANGED, "the header is right as it is")
    assert decided(fake, Wants(always_writes=True))[0] is Outcome.REFUSED
    assert decided(fake, Wants(gives_room=True))[0] is Outcome.REFUSED


def test_decision_tells_the_room_whatever_comes_of_it() -> None:
    fake = FakeMachine()
    assert decide(fake.image(), MACHINE, fake.read_phys).room == PAGE
    encrypted = GROWN._replace(memory_encryption="AMD SME")
    assert decide(fake.image(), encrypted, fake.read_phys).room == PAGE


def test_present_cpus_that_fill_the_room_to_its_last_byte_are_written(grown: FakeMachine) -> None:
    more = (PAGE - 64) // 56 - 6
    ranges = (*MACHINE.ram, *((at * GIB, at * GIB + MIB) for at in range(4, 4 + more)))
    grown.now = possible(100)._replace(ram=RangeList(ranges))
    without_place(grown)
    decision = decide(grown.image(), grown.now, grown.read_phys)
    assert (decision.outcome, len(decision.header), decision.room) == (Outcome.UPDATED, PAGE, PAGE)


def test_decision_to_write_has_header_and_room(grown: FakeMachine) -> None:
    decision = decide(grown.image(), GROWN, grown.read_phys)
    assert (decision.outcome, decision.sentence) == (Outcome.UPDATED, "7 entries written")
    assert (decision.room, decision.move, decision.why_stays) == (PAGE, None, None)
    assert parse_elfcorehdr(decision.header).ram.covers(RangeList([(4 * GIB, 4 * GIB + 128 * MIB)]))


def test_header_moves_where_its_room_ends_and_not_before() -> None:
    fake = FakeMachine()
    fitting = (PAGE - 64) // 56 - 6  # beside two CPUs, vmcoreinfo, kernel text, and the two ranges above 1 MiB
    for more, moves in ((fitting, False), (fitting + 1, True)):
        fake.now = machine(ram=(*MACHINE.ram, *((at * GIB, at * GIB + MIB) for at in range(4, 4 + more))))
        decision = decide(fake.image(), fake.now, fake.read_phys)
        assert decision.outcome is Outcome.UPDATED
        assert (decision.move is not None) is moves


def test_room_that_is_wanted_is_given_once() -> None:
    fake = FakeMachine()
    wants = Wants(hotplug_size=0x2_1001, gives_room=True)
    assert patiently(fake, wants) == (Outcome.UPDATED, "written at a new place, with room for 2485 entries")
    assert elfcorehdr_room(fake.image(), MACHINE.crashkernel) == 0x2_2000
    assert is_accurate(fake)
    assert patiently(fake, wants).outcome is Outcome.UNCHANGED
    assert patiently(fake, wants._replace(hotplug_size=0x2_2001)).outcome is Outcome.UPDATED


def test_wanted_room_follows_cpus_and_ranges_and_never_is_less_than_the_header() -> None:
    header = parse_elfcorehdr(FakeMachine().image().elfcorehdr)
    assert Wants(memory_ranges=100).room(MACHINE, header) == room_for(8, 100)
    assert Wants(hotplug_size=PAGE + 1).room(MACHINE, header) == 2 * PAGE
    many = header._replace(elf_header=header.elf_header._replace(e_phnum=400))
    assert many.size > 5 * PAGE
    assert Wants(memory_ranges=1).room(MACHINE, many) == Wants(hotplug_size=1).room(MACHINE, many) == 6 * PAGE


def without_place(fake: FakeMachine) -> None:
    """Let the capture kernel's memory map leave no place for another header."""
    fake.memory.write(ZERO_PAGE, boot_params([]))


def possible(number: int) -> Machine:
    """Return the grown machine with so many possible CPUs, of which two are present."""
    return GROWN._replace(cpus=tuple(Cpu(n, n < 2, n < 2, crash_notes(n)) for n in range(number)))


def test_every_possible_cpu_is_described_where_the_header_can_move() -> None:
    fake = FakeMachine()
    fake.now = possible(100)
    assert patiently(fake).outcome is Outcome.UPDATED
    assert len(parse_elfcorehdr(fake.image().elfcorehdr).cpu_notes) == 100
    assert is_accurate(fake)


def test_present_cpus_are_described_where_the_header_cannot_move(grown: FakeMachine) -> None:
    grown.now = possible(100)
    without_place(grown)
    image = grown.image()
    room = elfcorehdr_room(image, grown.now.crashkernel)
    assert room == PAGE
    decision = decide(image, grown.now, grown.read_phys)
    assert decision.outcome is Outcome.UPDATED
    assert decision.sentence.startswith("7 entries written; present CPUs only, because it cannot move: the reserved")
    assert decision.sentence.endswith(f"cannot move: {decision.why_stays}")
    assert (decision.move, decision.room) == (None, PAGE)
    assert len(parse_elfcorehdr(decision.header).cpu_notes) == 2
    there = image._replace(elfcorehdr=decision.header)
    right = decide(there, grown.now, grown.read_phys)
    assert (right.outcome, right.room, right.why_stays) == (Outcome.UNCHANGED, PAGE, decision.why_stays)
    assert right.sentence.startswith("the header is right as it is; present CPUs")
    assert decide(there, grown.now, grown.read_phys, Wants(always_writes=True)).outcome is Outcome.UPDATED
    with pytest.raises(CannotTellError, match="no free place"):
        decide(image, grown.now, grown.read_phys, Wants(gives_room=True))


def test_header_that_neither_fits_nor_moves_has_no_room(grown: FakeMachine) -> None:
    grown.now = MANY
    without_place(grown)
    decision = decide(grown.image(), MANY, grown.read_phys)
    assert (decision.outcome, decision.header, decision.room) == (Outcome.NO_ROOM, b"", PAGE)
    assert ", its room 4096: the old one stays, and it cannot move: the reserved region" in decision.sentence


def test_unknown_room_is_cannot_tell(grown: FakeMachine) -> None:
    image = grown.image()
    assert image.kimage is not None
    others = tuple(s for s in image.kimage.segments if s.phys != HEADER)
    unknown = with_zero_page(image._replace(kimage=image.kimage._replace(segments=others)), page=None)
    with pytest.raises(CannotTellError, match="how much room the loaded elfcorehdr has"):
        decide(unknown, GROWN, grown.read_phys)
    grown.memory.write(ZERO_PAGE, boot_params([(RESERVED, 1)]))  # the header lies in the capture kernel's RAM
    unknown = with_zero_page(unknown, page=grown.memory.read(ZERO_PAGE, PAGE))
    decision = decide(unknown, GROWN, grown.read_phys, Wants(gives_room=True))
    assert (decision.outcome, decision.room, decision.move is None) == (Outcome.UPDATED, None, False)


def test_plan_follows_the_decision_to_stay_or_to_move(grown: FakeMachine) -> None:
    image = grown.image()
    for wants, place in ((Wants(), HEADER), (Wants(gives_room=True), None)):
        decision = decide(image, GROWN, grown.read_phys, wants)
        plan = make_plan(decision, image, GROWN, grown.read_phys)
        written = [s.phys for s in plan.segments if s.data == decision.header]
        assert written == [decision.move.place if decision.move else place]
