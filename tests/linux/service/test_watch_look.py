"""One look of the watch service, over a machine of files: what it corrects, what it leaves, when it reloads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from crash_hotplug.core.compare import Verdict
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.update import Outcome, Report
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.linux import crash_image
from crash_hotplug.linux.loading import live_machine
from crash_hotplug.linux.loading.kdump_lock import LockBusyError
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug_lab.model.user_space import LOOK
from crash_hotplug.linux.service import watch_look
from crash_hotplug.linux.service.watch_look import Looker
from tests.linux.fake_kexec import KERNEL, FakeKexec, cannot_move, connect, make_possible

LOCKDOWN = "sys/kernel/security/lockdown"
IOMEM = "proc/iomem"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKexec:
    fake = FakeKexec(tmp_path)
    connect(fake, monkeypatch)
    monkeypatch.setattr(watch_look, "can_reload", lambda: False)
    return fake


@pytest.fixture
def reloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count reloads, which do nothing here and succeed."""
    done: list[str] = []

    def reload(reason: str, while_waiting: Callable[[], None]) -> Report:
        done.append(reason)
        return Report(LOOK, Outcome.RELOADED, f"kdumpctl reload: {reason}")

    monkeypatch.setattr(watch_look, "reload_outside", reload)
    monkeypatch.setattr(watch_look, "can_reload", lambda: True)
    return done


def looker(fake: FakeKexec, strategy: str = "auto", now: Callable[[], float] = lambda: 0.0) -> Looker:
    return Looker(LiveMachine(fake.sysroot), fake.sysroot, strategy, now)


def without_last_dimm(fake: FakeKexec) -> None:
    lines = (fake.root / IOMEM).read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if "System RAM" in line)
    fake.write_file(IOMEM, "".join(lines[:last] + lines[last + 1 :]))


def test_what_is_stale_is_corrected_and_then_left_alone(fake: FakeKexec) -> None:
    looks = looker(fake)
    first = looks.look(is_quiet=True)
    assert (first.verdict, first.strategy, first.outcome) == (Verdict.ACCURATE, "in-place", Outcome.UPDATED)
    assert first.kexec_seconds > 0
    assert first.room_left is not None
    second = looks.look(is_quiet=True)
    assert (second.verdict, second.strategy, second.was_cheap) == (Verdict.ACCURATE, "none", True)
    assert second.room_left == first.room_left
    assert len(fake.loads) == 1


def test_a_change_of_memory_is_seen(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=False)
    without_last_dimm(fake)
    seen = looks.look(is_quiet=False)
    assert (seen.outcome, seen.foreign) == (Outcome.UPDATED, "")
    assert len(fake.loads) == 2


def test_a_header_that_somebody_overwrote_is_seen_without_any_event(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    fake.write(0x39F5_D000, fake.header)
    seen = looks.look(is_quiet=True)
    assert seen.foreign == "another crash image was loaded by somebody else"
    assert (seen.outcome, seen.verdict) == (Outcome.UPDATED, Verdict.ACCURATE)


def test_an_image_that_goes_and_comes_back_is_taken_over(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    identity = crash_image.read_identity
    monkeypatch.setattr(watch_look, "read_identity", lambda _sysroot, _kcore: b"")
    fake.unload()
    gone = looks.look(is_quiet=True)
    assert (gone.verdict, gone.foreign) == (Verdict.NO_IMAGE, "the crash image was unloaded by somebody else")
    assert looks.look(is_quiet=True).foreign == ""
    monkeypatch.setattr(watch_look, "read_identity", identity)
    fake.write_file("sys/kernel/kexec_crash_loaded", "1\n")
    fake.write(0x39F5_D000, fake.header)
    back = looks.look(is_quiet=True)
    assert back.foreign == "another crash image was loaded by somebody else"
    assert (back.verdict, back.outcome) == (Verdict.ACCURATE, Outcome.UPDATED)


def test_a_lock_that_is_held_is_no_reason_to_reload(
    fake: FakeKexec, reloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_seconds: float) -> AbstractContextManager[None]:
        raise LockBusyError("locked")

    monkeypatch.setattr(live_machine, "kdump_locks", busy)
    looks = looker(fake)
    for _ in range(3):
        seen = looks.look(is_quiet=True)
        assert (seen.verdict, seen.outcome) == (Verdict.NOT_ACCURATE, Outcome.LOCK_BUSY)
    assert reloads == []


def test_what_a_lock_kept_from_being_done_is_done_later(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    # Accurate, but not what an update would write: such as kexec-tools' header, without the possible CPUs.
    monkeypatch.setattr(Looker, "_is_expected", lambda _looker, _machine, _image: False)

    def busy(_seconds: float) -> AbstractContextManager[None]:
        raise LockBusyError("locked")

    def free(_seconds: float) -> AbstractContextManager[None]:
        return nullcontext()

    monkeypatch.setattr(live_machine, "kdump_locks", busy)
    looks.forget()
    assert looks.look(is_quiet=True).outcome is Outcome.LOCK_BUSY
    assert looks.look(is_quiet=True).outcome is Outcome.LOCK_BUSY
    monkeypatch.setattr(live_machine, "kdump_locks", free)
    assert looks.look(is_quiet=True).outcome is Outcome.UNCHANGED
    assert looks.look(is_quiet=True).was_cheap


def test_a_header_that_cannot_get_room_for_every_possible_cpu_is_left_alone(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_possible(monkeypatch, 300)
    tried = cannot_move(monkeypatch)
    looks = looker(fake)
    first = looks.look(is_quiet=True)
    assert (first.verdict, first.outcome) == (Verdict.ACCURATE, Outcome.UPDATED)
    assert "present CPUs only" in first.deed
    assert looks.look(is_quiet=True).was_cheap
    looks.forget()
    assert looks.look(is_quiet=True).outcome is Outcome.UNCHANGED
    assert tried == ["move"]


def test_a_header_without_room_for_every_possible_cpu_moves(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    make_possible(monkeypatch, 300)
    looks = looker(fake)
    assert "at a new place" in looks.look(is_quiet=True).deed
    assert looks.look(is_quiet=True).was_cheap
    assert len(fake.loads) == 1


def test_a_lock_that_cannot_be_opened_is_said(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_seconds: float) -> AbstractContextManager[None]:
        raise CrashHotplugError("the lock /var/crash/kdump_lock cannot be opened: Read-only file system")

    monkeypatch.setattr(live_machine, "kdump_locks", broken)
    seen = looker(fake).look(is_quiet=True)
    assert (seen.outcome, "Read-only" in seen.deed) == (Outcome.FAILED, True)


def test_the_last_resort_comes_once_when_it_is_quiet(fake: FakeKexec, reloads: list[str]) -> None:
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    looks = looker(fake)
    first = looks.look(is_quiet=True)
    assert (first.verdict, first.outcome) == (Verdict.NOT_ACCURATE, Outcome.REFUSED)
    assert first.deed.endswith("no reload: it is tried in place once more first")
    assert looks.look(is_quiet=False).deed.endswith("no reload: events still come")
    assert reloads == []
    third = looks.look(is_quiet=True)
    assert (third.strategy, third.outcome) == ("reload", Outcome.RELOADED)
    assert "lockdown" in third.deed
    # It changed nothing here; it is not tried again until the machine changes.
    assert looks.look(is_quiet=True).deed.endswith("no reload: nothing changed since the image was loaded")
    without_last_dimm(fake)
    looks.look(is_quiet=True)
    assert len(reloads) == (2 if looks.look(is_quiet=True).verdict is Verdict.NOT_ACCURATE else 1)


def test_a_mix_of_two_images_is_reloaded_at_once(
    fake: FakeKexec, reloads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header is right: what is not healed now would not be seen later."""

    def load(entry_phys: int, segments: tuple[NewSegment, ...], flags: int) -> None:
        fake.write(KERNEL, b"somebody else's kernel")
        fake.kexec_load(entry_phys, segments, flags)

    monkeypatch.setattr(live_machine, "load_crash_image", load)
    look = looker(fake).look(is_quiet=False)
    assert (look.strategy, look.outcome) == ("reload", Outcome.RELOADED)
    assert "at the very moment of the update" in reloads[0]


def test_strategy_in_place_never_reloads(fake: FakeKexec, reloads: list[str]) -> None:
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    looks = looker(fake, "in-place")
    assert {looks.look(is_quiet=True).outcome for _ in range(4)} == {Outcome.REFUSED}
    assert reloads == []


def test_strategy_reload_never_updates_in_place(fake: FakeKexec, reloads: list[str]) -> None:
    assert looker(fake, "reload").look(is_quiet=True).outcome is Outcome.RELOADED
    assert (len(reloads), fake.loads) == (1, [])


def test_where_nothing_can_be_told_a_reload_needs_something_that_happened(fake: FakeKexec, reloads: list[str]) -> None:
    (fake.root / "proc" / "kcore").unlink()
    looks = looker(fake)
    for _ in range(3):
        seen = looks.look(is_quiet=True)
        assert (seen.verdict, seen.deed) == (Verdict.CANNOT_TELL, "")
    without_last_dimm(fake)
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert looks.look(is_quiet=True).strategy == "none"
    assert len(reloads) == 1


def test_a_reload_that_fails_waits_before_the_next(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, reloads: list[str]
) -> None:
    def failing(reason: str, while_waiting: Callable[[], None]) -> Report:
        reloads.append(reason)
        return Report(LOOK, Outcome.FAILED, f"{reason}; kdumpctl reload failed: no")

    monkeypatch.setattr(watch_look, "reload_outside", failing)
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    now = [0.0]
    looks = looker(fake, now=lambda: now[0])
    looks.look(is_quiet=True)
    seen = looks.look(is_quiet=True)
    assert (seen.outcome, seen.strategy) == (Outcome.FAILED, "reload")
    assert seen.deed.endswith("kdumpctl reload failed: no")
    looks.look(is_quiet=True)
    assert len(reloads) == 1
    now[0] = 31.0
    looks.look(is_quiet=True)
    assert len(reloads) == 2


def test_why_blind(fake: FakeKexec, reloads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert looker(fake).why_blind() is None
    assert looker(fake).what_lacks() is None
    (fake.root / "proc" / "kcore").unlink()
    assert looker(fake).why_blind() is None
    assert "kcore does not exist" in (looker(fake).what_lacks() or "")
    assert "no reload is possible either" in (looker(fake, "in-place").why_blind() or "")
    monkeypatch.setattr(watch_look, "can_reload", lambda: False)
    assert "no reload is possible either" in (looker(fake).why_blind() or "")
    (fake.root / IOMEM).write_text("00000000-00000000 : System RAM\n")
    assert "CAP_SYS_ADMIN" in (looker(fake).why_blind() or "")
    (fake.root / "sys/kernel/kexec_crash_loaded").unlink()
    assert "built without kexec" in (looker(fake).why_blind() or "")


def test_memory_that_cannot_be_read_for_once_is_said_and_forgotten(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    (fake.root / IOMEM).rename(fake.root / "away")
    (fake.root / IOMEM).mkdir()
    assert looks.look(is_quiet=True).verdict is Verdict.CANNOT_TELL
    (fake.root / IOMEM).rmdir()
    (fake.root / "away").rename(fake.root / IOMEM)
    assert looks.look(is_quiet=True).verdict is Verdict.ACCURATE


def test_an_image_mixed_of_two_is_reloaded_until_that_succeeds(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, reloads: list[str]
) -> None:
    outcomes = [Outcome.FAILED, Outcome.RELOADED]

    def reload(reason: str, while_waiting: Callable[[], None]) -> Report:
        reloads.append(reason)
        return Report(LOOK, outcomes.pop(0), reason)

    looks = looker(fake, now=lambda: now[0])
    looks.look(is_quiet=True)  # its header is right from here on
    monkeypatch.setattr(watch_look, "reload_outside", reload)
    monkeypatch.setattr(watch_look, "update_in_place", lambda _live: Report(LOOK, Outcome.MIXED, "two images mixed"))
    now = [0.0]
    without_last_dimm(fake)
    first = looks.look(is_quiet=False)
    assert (first.verdict, first.outcome) == (Verdict.NOT_ACCURATE, Outcome.FAILED)
    monkeypatch.undo()
    monkeypatch.setattr(watch_look, "reload_outside", reload)
    waiting = looks.look(is_quiet=True)
    assert (waiting.verdict, waiting.outcome, waiting.sentence) == (
        Verdict.NOT_ACCURATE, Outcome.MIXED, "two images mixed"
    )  # fmt: skip
    now[0] = 31.0
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert reloads == ["two images mixed", "two images mixed"]
