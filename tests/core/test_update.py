# SPDX-License-Identifier: MIT
"""The update, step by step, on an image in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.crash_machine import ImageChangedError, KexecBusyError
from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError, NoRoomError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Cpu
from crash_hotplug.core.plan import TornImageError
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug.core.update import update
from tests.core.image_in_memory import (
    COMMAND_LINE,
    ENTRY,
    GROWN,
    HEADER,
    INITRD,
    KERNEL,
    MACHINE,
    MANY,
    PURGATORY,
    RESERVED,
    SMALL,
    ZERO_PAGE,
    FakeMachine,
    is_accurate,
    patiently,
)

FULL = Wants(verify_full=True)


@pytest.fixture
def grown() -> FakeMachine:
    """Return a machine whose loaded header lacks a range of RAM."""
    fake = FakeMachine()
    fake.now = GROWN
    return fake


def once(action: Callable[[], None], number: int = 1) -> Callable[[], None]:
    """Return a call that acts the first *number* times."""
    left = iter(range(number))
    return lambda: action() if next(left, None) is not None else None


def raising(error: Exception) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def failing_after_drop(fake: FakeMachine, error: Exception) -> Callable[[], None]:
    """Return a kexec_load that drops the loaded image and fails then."""

    def call() -> None:
        fake.kimage = None
        raise error

    return call


# The lock, and the answers without a call


def test_update_takes_its_steps_in_order(grown: FakeMachine) -> None:
    steps: Steps[Report] = update(grown)
    assert [step.name for step in steps] == [
        "update: lock taken",
        "update: identity read",
        "update: image read",
        "update: machine read",
        "update: planned",
        "update: kept segments sampled",
        "update: identity compared",
        "update: read back",
    ]


def test_update_shows_its_plan_to_an_observer(grown: FakeMachine) -> None:
    seen = {step.name: step.seen for step in update(grown)}
    assert getattr(seen["update: planned"], "entry_phys", None) == ENTRY


def test_refused_update_takes_no_lock_and_looks_at_nothing(grown: FakeMachine) -> None:
    grown.refused = "kernel.kexec_load_disabled forbids it"
    grown.taken_for = 1000
    assert patiently(grown) == (Outcome.REFUSED, grown.refused)
    assert grown.opened == 0


def test_update_waits_for_the_lock_and_names_its_holder(grown: FakeMachine) -> None:
    grown.taken_for = 3
    assert patiently(grown, waits=2) == (Outcome.LOCK_BUSY, "kdumpctl has the lock")
    assert grown.calls == []
    grown.taken_for = 3
    assert patiently(grown, waits=3).outcome is Outcome.UPDATED
    grown.taken_for = 1
    assert next(update(grown)) == Step("update: waits for the lock", waits=True)


def test_update_without_an_image_has_nothing_to_do(grown: FakeMachine) -> None:
    grown.kimage = None
    assert patiently(grown) == (Outcome.NOT_LOADED, "no crash image is loaded")
    assert grown.opened == 0
    grown.image_loaded = lambda: None  # type: ignore[method-assign]
    assert patiently(grown) == (Outcome.NOT_LOADED, "no crash image is loaded")
    assert grown.opened == 1


def test_right_header_is_left_alone_unless_it_is_to_be_written() -> None:
    fake = FakeMachine()
    assert patiently(fake) == (Outcome.UNCHANGED, "the header is right as it is")
    assert fake.calls == []
    assert patiently(fake, Wants(always_writes=True)).outcome is Outcome.UPDATED
    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (CannotTellError("x"), Outcome.CANNOT_TELL),
        (InputError("x"), Outcome.CANNOT_TELL),
        (NoRoomError("x"), Outcome.NO_ROOM),
        (TornImageError("x"), Outcome.TORN),
        (KexecBusyError("x", is_limited=True), Outcome.LOCK_BUSY),
        (KexecBusyError("x"), Outcome.FAILED),
        (CrashHotplugError("x"), Outcome.FAILED),
    ],
)
def test_outcome_follows_the_error(grown: FakeMachine, error: CrashHotplugError, outcome: Outcome) -> None:
    grown.before_load = raising(error)
    assert patiently(grown) == (outcome, "x")


# The call


@pytest.mark.parametrize("by_kernel", [False, True])
def test_call_gets_entry_segments_and_the_loaders_flag(grown: FakeMachine, by_kernel: bool) -> None:
    grown.updated_by_kernel = by_kernel
    assert patiently(grown).outcome is Outcome.UPDATED
    ((entry, segments, flag),) = grown.calls
    assert (entry, flag) == (ENTRY, by_kernel)
    assert [s.phys for s in segments] == [SMALL, PURGATORY, HEADER]
    assert is_accurate(grown)


def test_header_moves_with_command_line_and_memory_map() -> None:
    fake = FakeMachine()
    fake.now = MANY
    assert patiently(fake).outcome is Outcome.UPDATED
    ((_entry, segments, _flag),) = fake.calls
    assert [s.phys for s in segments[:3]] == [SMALL, ZERO_PAGE, PURGATORY]
    assert is_accurate(fake)


def test_image_is_hashed_only_where_the_digest_changes_or_is_verified(grown: FakeMachine) -> None:
    said: list[str] = []
    patiently(grown, say=said.append)
    assert said == ["the image is hashed once, to exclude its elfcorehdr from purgatory's digest",
                    "the whole image is hashed"]  # fmt: skip
    grown.now = MACHINE
    assert patiently(grown, say=said.append).outcome is Outcome.UPDATED
    assert len(said) == 2
    assert patiently(grown, FULL, say=said.append).outcome is Outcome.UNCHANGED
    assert len(said) == 3
    grown.now = GROWN
    assert patiently(grown, FULL, say=said.append).outcome is Outcome.UPDATED
    assert len(said) == 5


def test_verified_image_is_no_longer_torn() -> None:
    fake = FakeMachine()
    fake.torn = "torn before"
    assert patiently(fake) == (Outcome.TORN, "torn before")
    assert patiently(fake, FULL).outcome is Outcome.UNCHANGED
    assert fake.marks == [None]


def test_full_verification_finds_a_broken_image_before_and_after_the_call(grown: FakeMachine) -> None:
    grown.memory.flip(KERNEL + 7)
    report = patiently(grown, FULL)
    assert (report.outcome, grown.calls, grown.marks) == (Outcome.FAILED, [], [])
    grown.memory.flip(KERNEL + 7)
    assert patiently(grown).outcome is Outcome.UPDATED
    grown.now = MACHINE
    # between the 64 pages that are sampled of its 72
    grown.after_load = lambda: grown.memory.flip(unsampled_byte())
    report = patiently(grown, FULL)
    assert (report.outcome, "digest does not fit" in report.sentence) == (Outcome.TORN, True)
    assert grown.marks == [None, report.sentence]


def unsampled_byte() -> int:
    """Return an address in the kernel's segment that no sample covers."""
    sampled = {number * 71 // 63 for number in range(64)}
    return KERNEL + PAGE * min(set(range(72)) - sampled)


def test_digest_that_the_update_wrote_is_verified_after_the_call(grown: FakeMachine) -> None:
    grown.after_load = lambda: grown.memory.flip(unsampled_byte())
    report = patiently(grown)
    assert (report.outcome, grown.marks) == (Outcome.TORN, [report.sentence])


@pytest.mark.parametrize("refuses", [1, 3])
def test_busy_kernel_is_asked_again_while_the_caller_waits(grown: FakeMachine, refuses: int) -> None:
    grown.before_load = once(raising(KexecBusyError("the kernel is loading")), refuses)
    assert patiently(grown, waits=refuses).outcome is Outcome.UPDATED


def test_busy_kernel_is_reported_when_the_caller_waits_no_longer(grown: FakeMachine) -> None:
    grown.before_load = raising(KexecBusyError("the kernel is loading"))
    assert patiently(grown, waits=2) == (Outcome.FAILED, "the kernel is loading")


def test_busy_kernel_with_a_limit_is_asked_once(grown: FakeMachine) -> None:
    asked: list[int] = []

    def refuse() -> None:
        asked.append(1)
        raise KexecBusyError("the limit", is_limited=True)

    grown.before_load = refuse
    assert patiently(grown, waits=5) == (Outcome.LOCK_BUSY, "the limit")
    assert asked == [1]


@pytest.mark.parametrize("failures", [1, 2])
def test_call_that_dropped_the_image_is_made_again(grown: FakeMachine, failures: int) -> None:
    grown.before_load = once(failing_after_drop(grown, CrashHotplugError("no memory")), failures)
    assert patiently(grown).outcome is Outcome.UPDATED
    assert is_accurate(grown)


def test_call_that_drops_the_image_is_made_three_times(grown: FakeMachine) -> None:
    made: list[int] = []
    fail = failing_after_drop(grown, CrashHotplugError("no memory"))

    def count_and_fail() -> None:
        made.append(1)
        fail()

    grown.before_load = count_and_fail
    assert patiently(grown) == (Outcome.FAILED, "no memory; no crash image is loaded now: load one")
    assert len(made) == 3


@pytest.mark.parametrize("loaded", [True, None])
def test_call_that_failed_is_not_repeated_unless_the_image_is_gone(grown: FakeMachine, loaded: bool | None) -> None:
    made: list[int] = []
    grown.before_load = lambda: made.append(1) or raising(CrashHotplugError("no memory"))()  # type: ignore[func-returns-value]
    answers = iter([True, loaded])
    grown.image_loaded = lambda: next(answers)  # type: ignore[method-assign]
    assert patiently(grown) == (Outcome.FAILED, "no memory")
    assert made == [1]


def test_image_that_another_loaded_after_a_drop_is_not_overwritten(grown: FakeMachine) -> None:
    old, asked = grown.kimage, iter(range(100))

    def is_loaded() -> bool:
        if next(asked) == 2:  # after the failure was seen, before the call is made again
            grown.kimage, grown.serial = old, 1
        return grown.kimage is not None

    grown.image_loaded = is_loaded  # type: ignore[method-assign]
    grown.before_load = once(failing_after_drop(grown, CrashHotplugError("no memory")))
    assert patiently(grown).outcome is Outcome.UPDATED
    assert (grown.opened, len(grown.calls)) == (3, 1)


# What changes meanwhile


def run_with(fake: FakeMachine, name: str, action: Callable[[], None]) -> Report:
    """Update, and act the first time that the step *name* was taken."""
    steps, acts = update(fake), once(action)
    try:
        while True:
            if next(steps).name == name:
                acts()
    except StopIteration as stop:
        report: Report = stop.value
        return report


@pytest.mark.parametrize(
    "step", ["update: identity read", "update: image read", "update: machine read", "update: planned",
             "update: kept segments sampled"],
)  # fmt: skip
def test_image_that_changed_before_the_call_is_looked_at_again(grown: FakeMachine, step: str) -> None:
    def another_loads() -> None:
        grown.serial += 1

    report = run_with(grown, step, another_loads)
    assert report.outcome is Outcome.UPDATED
    assert (grown.opened, len(grown.calls)) == (3, 1)


def test_image_that_changes_again_and_again_fails_the_update(grown: FakeMachine) -> None:
    names: list[str] = []
    for step in update(grown):
        names.append(step.name)
        if step.name == "update: planned":
            grown.serial += 1
    assert names.count("update: image changed, looks again") == 8
    assert grown.calls == []


@pytest.mark.parametrize("phys", [SMALL, PURGATORY])
def test_listed_segment_that_does_not_read_the_same_twice_is_not_written(phys: int) -> None:
    fake = FakeMachine(header_in_digest=False)
    fake.now = GROWN
    report = run_with(fake, "update: planned", lambda: fake.memory.flip(phys + 5))
    assert report.outcome is Outcome.UPDATED
    assert fake.opened == 3
    read = {s.phys: s.data for s in fake.calls[0][1]}
    assert read[phys] == fake.memory.read(phys, len(read[phys]))


def test_later_update_of_an_image_whose_purgatory_read_as_zeros_is_not_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without purgatory's table, kernel and initrd are not known as parts of the image."""
    fake = FakeMachine()
    fake.now = GROWN
    assert patiently(fake).outcome is Outcome.UPDATED
    zeros, again = iter([True]), Wants(always_writes=True)

    def read_phys(phys: int, length: int) -> bytes:
        return bytes(length) if phys == PURGATORY and next(zeros, False) else fake.memory.read(phys, length)

    monkeypatch.setattr(fake, "read_phys", read_phys)
    assert patiently(fake, again) == (Outcome.CANNOT_TELL, "purgatory does not read the same twice")
    assert len(fake.calls) == 1
    assert patiently(fake, again).outcome is Outcome.UPDATED


def test_changed_layout_of_memory_voids_the_plan_before_the_call(grown: FakeMachine) -> None:
    grown.on_confirm = raising(ImageChangedError("kcore changed"))
    assert patiently(grown) == (Outcome.FAILED, "kcore changed")
    assert (grown.opened, grown.calls) == (8, [])


def test_error_of_the_plan_is_believed_only_if_the_layout_and_the_image_stayed(grown: FakeMachine) -> None:
    grown.now = GROWN._replace(vmcoreinfo=None, cpus=(Cpu(0, True, True, None),))
    grown.on_confirm = once(raising(ImageChangedError("kcore changed")))
    assert patiently(grown).outcome is Outcome.CANNOT_TELL
    assert grown.opened == 2


def test_error_of_the_plan_may_be_of_two_images(grown: FakeMachine) -> None:
    right = grown.now
    grown.now = GROWN._replace(cpus=(Cpu(0, True, True, None),))

    def another_loads() -> None:
        grown.serial += 1
        grown.on_confirm = lambda: setattr(grown, "now", right)

    assert run_with(grown, "update: machine read", another_loads).outcome is Outcome.UPDATED


# Reading back


def test_image_unloaded_at_the_moment_of_the_call_fails_the_update(grown: FakeMachine) -> None:
    grown.after_load = lambda: setattr(grown, "kimage", None)
    report = patiently(grown)
    assert report == (Outcome.FAILED, "the crash image was unloaded at the very moment of the update: load one")


@pytest.mark.parametrize("phys", [KERNEL, INITRD, KERNEL + 0x4_7FFF, ZERO_PAGE + 0x2000])
def test_kept_segment_that_changed_at_the_moment_of_the_call_is_torn(phys: int) -> None:
    fake = FakeMachine(header_in_digest=False)
    fake.now = GROWN
    fake.before_load = lambda: fake.memory.flip(phys)
    report = patiently(fake)
    assert report.outcome is Outcome.TORN
    assert "another crash image was loaded at the very moment of the update" in report.sentence
    assert fake.marks == [report.sentence]


def test_samples_are_those_of_the_image_whose_identity_is_compared(grown: FakeMachine) -> None:
    def change() -> None:
        grown.memory.flip(INITRD)

    assert run_with(grown, "update: kept segments sampled", change).outcome is Outcome.TORN


@pytest.mark.parametrize("control_page", [0, RESERVED.start + 40 * PAGE])
def test_control_pages_out_of_their_bound_are_torn(grown: FakeMachine, control_page: int) -> None:
    grown.control_page = control_page
    report = patiently(grown)
    assert (report.outcome, grown.marks) == (Outcome.TORN, [report.sentence])


def test_header_that_is_not_the_one_that_was_written_fails_the_update(grown: FakeMachine) -> None:
    grown.after_load = lambda: grown.memory.flip(HEADER + 100)
    report = patiently(grown)
    assert (report.outcome, "is not the one that is there" in report.sentence) == (Outcome.FAILED, True)
    assert grown.marks == []


def test_header_that_the_loaded_command_line_does_not_find_is_torn() -> None:
    fake = FakeMachine(header_in_digest=False)
    fake.now = MANY  # the header moves: the zero page is listed, not sampled
    fake.after_load = lambda: fake.memory.write(COMMAND_LINE, b"quiet elfcorehdr=0x1000\0".ljust(64, b"\0"))
    report = patiently(fake)
    assert (report.outcome, "would look for its elfcorehdr at 0x1000" in report.sentence) == (Outcome.TORN, True)


def test_struct_kimage_that_cannot_be_read_after_the_call_is_a_failure(grown: FakeMachine) -> None:
    image = grown.image

    def without_kimage() -> CrashImage:
        return image()._replace(kimage=None if grown.calls else image().kimage)

    grown.image = without_kimage  # type: ignore[method-assign]
    report = patiently(grown)
    unread = "struct kimage of the loaded image could not be read"
    assert report == (Outcome.FAILED, f"what was loaded cannot be verified: {unread}; reload the crash image")
    assert grown.opened == 9


def test_digest_that_cannot_be_computed_after_the_call_is_a_failure() -> None:
    fake = FakeMachine(header_in_digest=False)
    fake.now = GROWN
    fake.after_load = lambda: fake.memory.write(PURGATORY, bytes(3 * PAGE))
    report = patiently(fake, FULL)
    assert report.outcome is Outcome.FAILED
    assert report.sentence.startswith("what was loaded cannot be verified: purgatory's digest table was not found")
    assert fake.marks == [None]


@pytest.mark.parametrize("error", [CannotTellError("unreadable"), ImageChangedError("kcore changed")])
def test_reading_back_is_tried_eight_times(grown: FakeMachine, error: CrashHotplugError) -> None:
    def after_the_call() -> None:
        if grown.calls:
            fails()

    for failures, outcome in ((7, Outcome.UPDATED), (8, Outcome.FAILED)):
        fails = once(raising(error), failures)
        grown.on_confirm = after_the_call
        grown.calls.clear()
        report = patiently(grown, Wants(always_writes=True))
        assert report.outcome is outcome
    assert report.sentence == f"what was loaded cannot be verified: {error}; reload the crash image"


def test_digest_read_at_wrong_places_is_no_torn_image(grown: FakeMachine) -> None:
    """The layout of memory changed while the digest was computed: it is computed again."""
    read, moved = grown.read_phys, [0]

    def shifted(phys: int, length: int) -> bytes:
        if grown.calls and phys == unsampled_byte() // (1 << 20) * (1 << 20) and length == 0x4_8000 and not moved[0]:
            moved[0] = 1
            grown.on_confirm = once(raising(ImageChangedError("kcore changed")))
            return bytes(length)
        return read(phys, length)

    grown.read_phys = shifted  # type: ignore[method-assign]
    assert patiently(grown).outcome is Outcome.UPDATED
    assert moved == [1]
    assert grown.marks == []
