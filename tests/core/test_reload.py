# SPDX-License-Identifier: MIT
"""Around the update, on an image in memory: load, make ready, reload, and put back the previous image."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.crash_machine import ImageChangedError
from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, InputError
from crash_hotplug.core.image import Segment, elfcorehdr_room
from crash_hotplug.core.kept_image import KeptImage, keep_image, put_back
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.reload import Loaded, LoadImage, load, make_ready, reload, update_or_reload
from crash_hotplug.core.steps import Steps, run
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
)

ROOM = Wants(hotplug_size=16 * PAGE)


@pytest.fixture
def fake() -> FakeMachine:
    return FakeMachine()


def no_wait() -> bool:
    return False


def other_image(fake: FakeMachine, fails: BaseException | None = None, locked: bool = False) -> LoadImage:
    """Return a load by other means, which drops the loaded image first, and fails then or loads another."""

    def load_image() -> Steps[str]:
        yield from ()
        assert fake.locked is locked
        if isinstance(fails, InputError):
            raise fails
        before, fake.kimage = fake.kimage, None
        if fails is not None:
            raise fails
        fake.kimage = before
        fake.serial += 1
        return "kdump-config"

    return load_image


def dropping(fake: FakeMachine) -> Steps[None]:
    yield from ()
    fake.kimage = None


# The image that is kept


def kept_of(fake: FakeMachine) -> KeptImage:
    kept = keep_image(fake)
    assert kept is not None
    return kept


def kept_with_zeros(fake: FakeMachine, zeros_at: int | None, zeros: int = 0) -> tuple[KeptImage | None, int]:
    """Keep the image while one read begins with so many zeros; return also how many reads there were."""
    reads = 0

    def read_phys(phys: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        data = fake.memory.read(phys, length)
        return bytes(min(length, zeros)) + data[zeros:] if reads - 1 == zeros_at else data

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fake, "read_phys", read_phys)
        return keep_image(fake), reads


def test_kept_image_is_the_whole_image(fake: FakeMachine) -> None:
    fake.updated_by_kernel = True
    kept = kept_of(fake)
    assert (kept.entry_phys, kept.updated_by_kernel) == (ENTRY, True)
    assert [(s.phys, s.memsz) for s in kept.segments] == [(s.phys, s.memsz) for s in SEGMENTS]
    assert all(s.data == fake.memory.read(s.phys, s.memsz) for s in kept.segments)
    assert fake.opened == fake.closed


def test_kept_image_reads_as_the_memory_that_it_was() -> None:
    kept = KeptImage(0, (NewSegment(0x1000, b"abcdef", 6, ""), NewSegment(0x3000, b"ghi", 3, "")), False)
    assert kept.read_phys(0x1000, 6) == b"abcdef"
    assert kept.read_phys(0x1002, 3) == b"cde"
    assert kept.read_phys(0x3000, 3) == b"ghi"
    for phys, length in ((0x1000, 7), (0x1001, 6), (0xFFF, 2), (0x2000, 1), (0x3003, 1)):
        with pytest.raises(CannotTellError, match=f"no segment of the image has {length} bytes at {phys:#x}"):
            kept.read_phys(phys, length)


@pytest.mark.parametrize("phys", [SMALL, KERNEL + 5, INITRD, ZERO_PAGE, HEADER + PAGE - 1, PURGATORY + 0x600])
def test_damaged_image_is_not_kept(fake: FakeMachine, phys: int) -> None:
    fake.memory.flip(phys)
    assert keep_image(fake) is None


@pytest.mark.parametrize("zeros", [0x100, PAGE])
def test_image_is_kept_as_it_is_whichever_read_gives_zeros(zeros: int) -> None:
    """/proc/kcore may show zeros for a page once; header and purgatory are not part of the digest."""
    fake = FakeMachine(header_in_digest=False)
    reads = kept_with_zeros(fake, None)[1]
    kept = [kept_with_zeros(fake, number, zeros)[0] for number in range(reads)]
    whole = kept_of(fake)
    assert {image for image in kept if image is not None} == {whole}
    assert kept.count(None) > len(SEGMENTS)


def test_image_that_was_not_read_as_it_is_is_not_kept(fake: FakeMachine) -> None:
    """/proc/kcore shows zeros for a page that it cannot read at the moment; the digest is of what would be put back."""
    read, hidden = fake.read_phys, iter([True])

    def once_zeros(phys: int, length: int) -> bytes:
        return bytes(length) if phys == KERNEL and length > PAGE and next(hidden, False) else read(phys, length)

    fake.read_phys = once_zeros  # type: ignore[method-assign]
    assert keep_image(fake) is None
    assert keep_image(fake) is not None


@pytest.mark.parametrize(("segments", "is_kept"), [(16, True), (17, False)])
def test_image_of_more_segments_than_a_call_takes_is_not_kept(segments: int, is_kept: bool) -> None:
    more = [Segment(SMALL + at * 2 * PAGE, PAGE, 0) for at in range(1, segments - len(SEGMENTS) + 1)]
    assert (keep_image(FakeMachine(segments=sorted([*SEGMENTS, *more]))) is not None) is is_kept


def test_image_whose_segments_are_not_known_is_not_kept(fake: FakeMachine) -> None:
    image = fake.image()
    fake.image = lambda: image._replace(kimage=None)  # type: ignore[method-assign]
    assert keep_image(fake) is None


def test_no_image_is_kept_where_none_is_loaded_or_the_observation_is_void(fake: FakeMachine) -> None:
    def changed() -> None:
        raise ImageChangedError("kcore changed")

    fake.on_confirm = changed
    assert keep_image(fake) is None
    fake.on_confirm = lambda: None
    fake.kimage = None
    opened = fake.opened
    assert keep_image(fake) is None
    assert fake.opened == opened
    fake.image_loaded = lambda: None  # type: ignore[method-assign]
    assert keep_image(fake) is None
    assert fake.opened == fake.closed == opened + 1


# Putting it back


def test_put_back_loads_the_whole_image_once_none_is_loaded(fake: FakeMachine) -> None:
    fake.updated_by_kernel = True
    kept = kept_of(fake)
    assert run(put_back(fake, kept)) == "the previous image is still loaded"
    assert run(put_back(fake, None)) == "an image is loaded"
    assert fake.calls == []
    fake.kimage = None
    fake.memory.flip(KERNEL)
    assert run(put_back(fake, None)) == "no crash image is loaded now"
    assert run(put_back(fake, kept)) == "the previous image was put back"
    assert fake.calls == [(ENTRY, kept.segments, True)]
    assert fake.digest_fits()


def test_put_back_says_what_cannot_be_told_and_what_failed(fake: FakeMachine) -> None:
    kept = kept_of(fake)

    def refuse() -> None:
        raise CrashHotplugError("no memory")

    fake.kimage, fake.before_load = None, refuse
    assert run(put_back(fake, kept)) == (
        "no crash image is loaded now, and the previous one could not be put back: no memory"
    )
    fake.image_loaded = lambda: None  # type: ignore[method-assign]
    assert run(put_back(fake, kept)) == "whether a crash image is loaded now cannot be told"


# A load


def loaded(fake: FakeMachine, by: LoadImage, wants: Wants = ROOM, must: bool = False) -> Loaded:
    said: list[str] = []
    try:
        return run(load(fake, by, lambda: dropping(fake), wants, must, said.append), no_wait)
    finally:
        assert not fake.locked
        assert said[:1] == ["the loaded image is read and hashed, to be put back if the load fails"]


def test_load_makes_the_image_ready_for_hotplug(fake: FakeMachine) -> None:
    assert loaded(fake, other_image(fake, locked=True)) == Loaded("kdump-config", None)
    assert elfcorehdr_room(fake.image(), MACHINE.crashkernel) == 16 * PAGE
    assert fake.digest_fits()


def test_load_keeps_the_previous_image_before_it_loads(fake: FakeMachine) -> None:
    steps = load(fake, other_image(fake, locked=True), lambda: dropping(fake), ROOM, False)
    assert [step.name for step in steps][:2] == ["update: lock taken", "load: previous image kept"]


@pytest.mark.parametrize(
    ("error", "words"), [(CrashHotplugError("refused"), "refused"), (KeyboardInterrupt(), "the load was interrupted")]
)
def test_load_that_fails_puts_the_previous_image_back(fake: FakeMachine, error: BaseException, words: str) -> None:
    with pytest.raises(CrashHotplugError, match=f"^{words}; the previous image was put back$"):
        loaded(fake, other_image(fake, error, locked=True))
    assert fake.digest_fits()


def test_load_of_a_bad_file_changes_nothing(fake: FakeMachine) -> None:
    with pytest.raises(InputError, match=r"^no kernel$"):
        loaded(fake, other_image(fake, InputError("no kernel"), locked=True))
    assert fake.calls == []


def refusing(fake: FakeMachine, number: int) -> Callable[[], None]:
    """Return a kexec_load that refuses the call of this number, and drops nothing."""

    def refuse() -> None:
        made.append(1)
        if len(made) == number:
            raise CrashHotplugError("no room")

    made: list[int] = []
    return refuse


def test_image_that_does_not_get_its_room_stays_unless_the_room_is_a_must(fake: FakeMachine) -> None:
    fake.before_load = refusing(fake, 1)
    assert loaded(fake, other_image(fake, locked=True)) == Loaded("kdump-config", "no room")
    assert fake.calls == []
    fake.before_load = refusing(fake, 1)
    with pytest.raises(CrashHotplugError, match=r"^no room; the previous image was put back$"):
        loaded(fake, other_image(fake, locked=True), must=True)
    assert len(fake.calls) == 1


def test_image_that_gets_its_room_stays_where_the_room_is_a_must(fake: FakeMachine) -> None:
    assert loaded(fake, other_image(fake, locked=True), must=True) == Loaded("kdump-config", None)


def test_image_without_a_previous_one_stays_although_the_room_is_a_must(fake: FakeMachine) -> None:
    fake.memory.flip(KERNEL)  # so nothing is kept
    assert loaded(fake, other_image(fake, locked=True), must=True).not_ready is not None
    assert fake.kimage is not None


def test_make_ready_is_content_with_an_image_that_is_ready(fake: FakeMachine) -> None:
    assert run(make_ready(fake, ROOM)) is None
    assert run(make_ready(fake, ROOM)) is None
    assert len(fake.calls) == 1
    fake.refused = "lockdown"
    assert run(make_ready(fake, ROOM)) == "lockdown"


# A reload


def reloaded(fake: FakeMachine, by: LoadImage, reason: str = "no room") -> Report:
    said: list[str] = []
    report = run(reload(fake, by, reason, said.append), no_wait)
    assert not fake.locked
    assert said == ["the loaded image is read and hashed, to be put back if the reload fails",
                    "the crash image is reloaded"]  # fmt: skip
    return report


def test_reload_names_its_means_and_the_reason(fake: FakeMachine) -> None:
    assert reloaded(fake, other_image(fake)) == (Outcome.RELOADED, "kdump-config: no room")
    assert reloaded(fake, other_image(fake), "") == (Outcome.RELOADED, "kdump-config")
    fake.image_loaded = lambda: None  # type: ignore[method-assign]
    assert reloaded(fake, other_image(fake)).outcome is Outcome.RELOADED


def test_reload_keeps_the_previous_image_first(fake: FakeMachine) -> None:
    assert next(reload(fake, other_image(fake), "")).name == "reload: previous image kept"


@pytest.mark.parametrize(
    ("error", "words"),
    [(CrashHotplugError("exit code 1"), "exit code 1"), (KeyboardInterrupt(), "the load was interrupted")],
)
def test_reload_that_fails_puts_the_previous_image_back(fake: FakeMachine, error: BaseException, words: str) -> None:
    report = reloaded(fake, other_image(fake, error))
    assert report == (Outcome.FAILED, f"no room; {words}; the previous image was put back")
    assert fake.digest_fits()
    assert reloaded(fake, other_image(fake, error), "").sentence == f"{words}; the previous image was put back"


def unloading(fake: FakeMachine) -> Steps[str]:
    yield from dropping(fake)
    return "kdump-config"


def test_reload_that_leaves_no_image_has_failed_unless_none_was_loaded(fake: FakeMachine) -> None:
    report = reloaded(fake, lambda: unloading(fake))
    assert report == (Outcome.FAILED, "no room; kdump-config left no crash image; the previous image was put back")
    fake.kimage = None
    report = reloaded(fake, lambda: unloading(fake))
    assert report == (Outcome.NOT_LOADED, "no crash image is loaded (kdump-config loads none then)")


def test_reload_that_fails_puts_nothing_back_without_the_lock(fake: FakeMachine) -> None:
    fake.taken_for = 1000
    report = reloaded(fake, other_image(fake, CrashHotplugError("exit code 1")))
    assert report == (
        Outcome.FAILED,
        "no room; exit code 1; kdumpctl has the lock; is a crash image loaded now? (crash-hotplug status)",
    )
    assert fake.calls == []


def test_reload_that_fails_puts_back_under_the_lock(fake: FakeMachine) -> None:
    locks: list[bool] = []
    fake.after_load = lambda: locks.append(fake.locked)
    reloaded(fake, other_image(fake, CrashHotplugError("exit code 1")))
    assert locks == [True]


# An update, else a reload


def answered(outcome: Outcome) -> Callable[[str], Steps[Report]]:
    def by_reload(reason: str) -> Steps[Report]:
        yield from ()
        return Report(outcome, f"reload after: {reason}")

    return by_reload


def test_update_that_answers_is_not_followed_by_a_reload(fake: FakeMachine) -> None:
    never = answered(Outcome.FAILED)
    assert run(update_or_reload(fake, Wants(), never)).outcome is Outcome.UNCHANGED
    fake.now = GROWN
    assert run(update_or_reload(fake, Wants(), never)).outcome is Outcome.UPDATED
    fake.taken_for = 1000
    assert run(update_or_reload(fake, Wants(), never), no_wait).outcome is Outcome.LOCK_BUSY
    fake.taken_for = 0
    fake.kimage = None
    assert run(update_or_reload(fake, Wants(), never)).outcome is Outcome.NOT_LOADED


@pytest.mark.parametrize(
    ("reload_outcome", "can_reload", "outcome"),
    [
        (Outcome.RELOADED, True, Outcome.RELOADED),
        (Outcome.FAILED, True, Outcome.FAILED),
        (Outcome.FAILED, False, Outcome.CANNOT_TELL),
        (Outcome.NOT_LOADED, False, Outcome.NOT_LOADED),
    ],
)
def test_update_that_cannot_tell_is_followed_by_a_reload(
    fake: FakeMachine, reload_outcome: Outcome, can_reload: bool, outcome: Outcome
) -> None:
    fake.now = MACHINE._replace(cpus=(MACHINE.cpus[0]._replace(crash_notes=None),))
    report = run(update_or_reload(fake, Wants(), answered(reload_outcome), can_reload=lambda: can_reload))
    assert report.outcome is outcome
    assert report.sentence.startswith("reload after: the address of CPU 0's crash_notes")
    if can_reload:  # as by default
        assert run(update_or_reload(fake, Wants(), answered(reload_outcome))) == report


def test_update_that_is_refused_and_a_failing_reload_have_failed(fake: FakeMachine) -> None:
    fake.refused = "lockdown"
    report = run(update_or_reload(fake, Wants(), answered(Outcome.FAILED), can_reload=lambda: False))
    assert report == (Outcome.FAILED, "reload after: lockdown")
    report = run(update_or_reload(fake, Wants(), answered(Outcome.FAILED)))
    assert report.outcome is Outcome.FAILED
