# SPDX-License-Identifier: MIT
"""One look of the watch service, over a machine of files: what it corrects, what it leaves, when it reloads."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Callable

import pytest

from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.watch_record import Look
from crash_hotplug.linux.loading.kdump_lock import LockBusyError
from crash_hotplug.linux.loading.live_machine import LiveObservation
from crash_hotplug.linux.loading.system_calls import KexecError
from crash_hotplug.linux.service.reconciler import Reconciler, Reloading
from tests.core.test_image import kimage_bytes
from tests.linux.fake_kexec import ENTRY, KERNEL, KIMAGE_PHYS, PURGATORY, SEGMENTS, FakeKexec

LOCKDOWN = "sys/kernel/security/lockdown"
IOMEM = "proc/iomem"
NO_RELOAD = Reloading(can=lambda: False)


class Reloads:
    """Counts reloads, which do nothing here and come to what they are told."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.outcomes = [Outcome.RELOADED]
        self.possible = True

    def run(self, reason: str, _while_waiting: Callable[[], None]) -> Report:
        self.reasons.append(reason)
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        failed = outcome is Outcome.FAILED
        return Report(outcome, f"{reason}; kdumpctl reload failed: no" if failed else f"kdumpctl reload: {reason}")

    def __len__(self) -> int:
        return len(self.reasons)


@pytest.fixture
def reloads() -> Reloads:
    return Reloads()


def looker(
    fake: FakeKexec, strategy: str = "auto", now: Callable[[], float] = lambda: 0.0, reloads: Reloads | None = None
) -> Reconciler:
    reloading = NO_RELOAD if reloads is None else Reloading(lambda: reloads.possible, reloads.run)
    return Reconciler(fake.machine(), fake.sysroot, strategy, now, reloading=reloading, patience=0.1)


def busy() -> AbstractContextManager[None]:
    raise LockBusyError("locked")


def without_last_dimm(fake: FakeKexec) -> None:
    lines = (fake.root / IOMEM).read_text().splitlines(keepends=True)
    last = max(n for n, line in enumerate(lines) if "System RAM" in line)
    fake.write_file(IOMEM, "".join(lines[:last] + lines[last + 1 :]))


def test_stale_header_is_corrected_and_then_left_alone(fake: FakeKexec) -> None:
    looks = looker(fake)
    first = looks.look(is_quiet=True)
    assert (first.verdict, first.strategy, first.outcome) == (Verdict.ACCURATE, "in-place", Outcome.UPDATED)
    assert first.kexec_seconds > 0
    assert first.room_left is not None
    second = looks.look(is_quiet=True)
    assert (second.verdict, second.strategy, second.was_cheap) == (Verdict.ACCURATE, "none", True)
    assert second.room_left == first.room_left
    assert len(fake.loads) == 1


def test_change_of_memory_is_seen(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=False)
    without_last_dimm(fake)
    seen = looks.look(is_quiet=False)
    assert (seen.outcome, seen.external_change) == (Outcome.UPDATED, "")
    assert len(fake.loads) == 2


def test_header_that_another_process_overwrote_is_seen_without_an_event(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    fake.write(0x39F5_D000, fake.header)
    seen = looks.look(is_quiet=True)
    assert seen.external_change == "another process loaded a crash image"
    assert (seen.outcome, seen.verdict) == (Outcome.UPDATED, Verdict.ACCURATE)


def test_image_that_goes_and_comes_back_is_updated(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    fake.unload()
    gone = looks.look(is_quiet=True)
    assert (gone.verdict, gone.external_change) == (Verdict.NO_IMAGE, "another process unloaded the crash image")
    assert looks.look(is_quiet=True).external_change == ""
    fake.load_again()
    fake.write(0x39F5_D000, fake.header)
    back = looks.look(is_quiet=True)
    assert back.external_change == "another process loaded a crash image"
    assert (back.verdict, back.outcome) == (Verdict.ACCURATE, Outcome.UPDATED)


def test_lock_that_is_held_is_no_reason_to_reload(fake: FakeKexec, reloads: Reloads) -> None:
    fake.locks = busy
    looks = looker(fake, reloads=reloads)
    for _ in range(3):
        seen = looks.look(is_quiet=True)
        assert (seen.verdict, seen.outcome) == (Verdict.NOT_ACCURATE, Outcome.LOCK_BUSY)
    assert reloads.reasons == []


def test_update_that_a_lock_prevented_is_made_later(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    # Accurate, but not what an update would write: the possible CPUs are not described.
    fake.make_possible(20)
    fake.locks = busy
    looks.forget()
    assert looks.look(is_quiet=True).outcome is Outcome.LOCK_BUSY
    assert looks.look(is_quiet=True).outcome is Outcome.LOCK_BUSY
    fake.locks = nullcontext
    assert looks.look(is_quiet=True).outcome is Outcome.UPDATED
    assert looks.look(is_quiet=True).was_cheap


def test_header_that_cannot_get_room_for_every_possible_cpu_is_left_alone(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path, has_free_place=False)
    fake.make_possible(300)
    looks = looker(fake)
    first = looks.look(is_quiet=True)
    assert (first.verdict, first.outcome) == (Verdict.ACCURATE, Outcome.UPDATED)
    assert "present CPUs only" in first.action
    assert looks.look(is_quiet=True).was_cheap
    looks.forget()
    assert looks.look(is_quiet=True).outcome is Outcome.UNCHANGED
    assert len(fake.loads) == 1


def test_header_without_room_for_every_possible_cpu_moves(fake: FakeKexec) -> None:
    fake.make_possible(300)
    looks = looker(fake)
    assert "at a new place" in looks.look(is_quiet=True).action
    assert looks.look(is_quiet=True).was_cheap
    assert len(fake.loads) == 1


def test_lock_that_cannot_be_opened_is_reported(fake: FakeKexec) -> None:
    def broken() -> AbstractContextManager[None]:
        raise CrashHotplugError("the lock /var/crash/kdump_lock cannot be opened: Read-only file system")

    fake.locks = broken
    seen = looker(fake).look(is_quiet=True)
    assert (seen.outcome, "Read-only" in seen.action) == (Outcome.FAILED, True)


def test_reload_as_last_resort_comes_once_when_it_is_quiet(fake: FakeKexec, reloads: Reloads) -> None:
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    looks = looker(fake, reloads=reloads)
    first = looks.look(is_quiet=True)
    assert (first.verdict, first.outcome) == (Verdict.NOT_ACCURATE, Outcome.REFUSED)
    assert first.action.endswith("no reload: it is tried in place once more first")
    assert looks.look(is_quiet=False).action.endswith("no reload: events still come")
    assert reloads.reasons == []
    third = looks.look(is_quiet=True)
    assert (third.strategy, third.outcome) == ("reload", Outcome.RELOADED)
    assert "lockdown" in third.action
    # It changed nothing here; it is not tried again until the machine changes.
    assert looks.look(is_quiet=True).action.endswith("no reload: nothing changed since the image was loaded")
    without_last_dimm(fake)
    looks.look(is_quiet=True)
    assert len(reloads) == (2 if looks.look(is_quiet=True).verdict is Verdict.NOT_ACCURATE else 1)


def test_torn_image_is_reloaded_at_once(fake: FakeKexec, reloads: Reloads) -> None:
    """Its header is right: a later look would not find what is wrong with it."""
    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    look = looker(fake, reloads=reloads).look(is_quiet=False)
    assert (look.strategy, look.outcome) == ("reload", Outcome.RELOADED)
    assert "at the very moment of the update" in reloads.reasons[0]


def test_strategy_in_place_never_reloads(fake: FakeKexec, reloads: Reloads) -> None:
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    looks = looker(fake, "in-place", reloads=reloads)
    assert {looks.look(is_quiet=True).outcome for _ in range(4)} == {Outcome.REFUSED}
    assert reloads.reasons == []


def test_look_names_all_cpus_that_share_a_defect_in_one_sentence(fake: FakeKexec, reloads: Reloads) -> None:
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    for name in ("present", "online"):
        fake.write_file(f"sys/devices/system/cpu/{name}", "0-3\n")
    fake.write_file("sys/devices/system/cpu/cpu3/crash_notes", "3ecba400\n")
    fake.write_file("sys/devices/system/cpu/cpu3/crash_notes_size", "368\n")
    sentence = "CPUs 2-3 are not described: a dump would lack their registers and so their stacks (and 1 more)"
    assert looker(fake, "in-place", reloads=reloads).look(is_quiet=True).sentence == sentence


def test_strategy_reload_never_updates_in_place(fake: FakeKexec, reloads: Reloads) -> None:
    assert looker(fake, "reload", reloads=reloads).look(is_quiet=True).outcome is Outcome.RELOADED
    assert (len(reloads), fake.loads) == (1, [])


def test_reload_where_nothing_can_be_told_needs_an_event(fake: FakeKexec, reloads: Reloads) -> None:
    (fake.root / "proc" / "kcore").unlink()
    looks = looker(fake, reloads=reloads)
    for _ in range(3):
        seen = looks.look(is_quiet=True)
        assert (seen.verdict, seen.action) == (Verdict.CANNOT_TELL, "")
    without_last_dimm(fake)
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert looks.look(is_quiet=True).strategy == "none"
    assert len(reloads) == 1


def test_reload_that_fails_waits_before_the_next(fake: FakeKexec, reloads: Reloads) -> None:
    reloads.outcomes = [Outcome.FAILED]
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    now = [0.0]
    looks = looker(fake, now=lambda: now[0], reloads=reloads)
    looks.look(is_quiet=True)
    seen = looks.look(is_quiet=True)
    assert (seen.outcome, seen.strategy) == (Outcome.FAILED, "reload")
    assert seen.action.endswith("kdumpctl reload failed: no")
    looks.look(is_quiet=True)
    assert len(reloads) == 1
    now[0] = 31.0
    looks.look(is_quiet=True)
    assert len(reloads) == 2


def test_why_blind_names_the_file_that_cannot_be_read(fake: FakeKexec, reloads: Reloads) -> None:
    assert looker(fake, reloads=reloads).why_blind() is None
    assert looker(fake, reloads=reloads).what_lacks() is None
    (fake.root / "proc" / "kcore").unlink()
    assert looker(fake, reloads=reloads).why_blind() is None
    assert "kcore does not exist" in (looker(fake, reloads=reloads).what_lacks() or "")
    assert "no reload is possible either" in (looker(fake, "in-place", reloads=reloads).why_blind() or "")
    reloads.possible = False
    assert "no reload is possible either" in (looker(fake, reloads=reloads).why_blind() or "")
    (fake.root / IOMEM).write_text("00000000-00000000 : System RAM\n")
    assert "CAP_SYS_ADMIN" in (looker(fake).why_blind() or "")
    (fake.root / "sys/kernel/kexec_crash_loaded").unlink()
    assert "built without kexec" in (looker(fake).why_blind() or "")


def test_memory_that_cannot_be_read_once_is_reported_and_forgotten(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    (fake.root / IOMEM).rename(fake.root / "away")
    (fake.root / IOMEM).mkdir()
    assert looks.look(is_quiet=True).verdict is Verdict.CANNOT_TELL
    (fake.root / IOMEM).rmdir()
    (fake.root / "away").rename(fake.root / IOMEM)
    assert looks.look(is_quiet=True).verdict is Verdict.ACCURATE


def test_image_that_an_update_lost_is_reloaded_until_that_succeeds(fake: FakeKexec, reloads: Reloads) -> None:
    now = [0.0]
    looks = looker(fake, now=lambda: now[0], reloads=reloads)
    looks.look(is_quiet=True)
    reloads.outcomes = [Outcome.FAILED, Outcome.RELOADED]

    def drop_and_refuse() -> None:
        fake.unload()
        raise KexecError(12)

    without_last_dimm(fake)
    fake.before_load = drop_and_refuse
    first = looks.look(is_quiet=False)
    assert (first.verdict, first.outcome) == (Verdict.NO_IMAGE, Outcome.FAILED)
    assert looks.look(is_quiet=True).verdict is Verdict.NO_IMAGE
    now[0] = 31.0
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert len(reloads) == 2


def test_image_that_another_process_unloaded_is_not_reloaded(fake: FakeKexec, reloads: Reloads) -> None:
    looks = looker(fake, reloads=reloads)
    looks.look(is_quiet=True)
    fake.unload()
    assert {looks.look(is_quiet=True).verdict for _ in range(3)} == {Verdict.NO_IMAGE}
    assert reloads.reasons == []


def test_torn_image_is_reloaded_until_that_succeeds(fake: FakeKexec, reloads: Reloads) -> None:
    now = [0.0]
    looks = looker(fake, now=lambda: now[0], reloads=reloads)
    looks.look(is_quiet=True)  # its header is right from here on
    reloads.outcomes = [Outcome.FAILED, Outcome.RELOADED]
    without_last_dimm(fake)
    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    first = looks.look(is_quiet=False)
    assert (first.verdict, first.outcome) == (Verdict.NOT_ACCURATE, Outcome.FAILED)
    waiting = looks.look(is_quiet=True)
    assert (waiting.verdict, waiting.outcome) == (Verdict.NOT_ACCURATE, Outcome.TORN)
    assert "the loaded image is torn" in waiting.sentence
    now[0] = 31.0
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert len(reloads) == 2


HOUR, DAY = 3600.0, 86400.0


def test_whole_image_is_hashed_an_hour_after_the_start_and_then_once_a_day(fake: FakeKexec) -> None:
    now = [0.0]
    looks = looker(fake, now=lambda: now[0])
    times = [0.0, HOUR - 1, HOUR, HOUR + 60, HOUR + DAY - 1, HOUR + DAY]
    verified = []
    for at in times:
        now[0] = at
        look = looks.look(is_quiet=True)
        if look.verification is not None:
            verified.append(at)
            assert look.verification.outcome is Outcome.UNCHANGED
        assert look.verdict is Verdict.ACCURATE
    assert verified == [HOUR, HOUR + DAY]
    assert len(fake.loads) == 1


def test_image_is_not_hashed_while_events_come(fake: FakeKexec) -> None:
    now = [0.0]
    looks = looker(fake, now=lambda: now[0])
    now[0] = HOUR
    assert looks.look(is_quiet=False).verification is None
    assert looks.look(is_quiet=True).verification is not None


def test_image_with_a_flipped_bit_is_reloaded_once_it_is_hashed(fake: FakeKexec, reloads: Reloads) -> None:
    now = [0.0]
    looks = looker(fake, now=lambda: now[0], reloads=reloads)
    assert looks.look(is_quiet=True).verdict is Verdict.ACCURATE
    fake.flip_bit(KERNEL + 0x100)
    assert looks.look(is_quiet=True).verdict is Verdict.ACCURATE  # nothing else shows it
    now[0] = HOUR
    reloads.outcomes = [Outcome.FAILED, Outcome.RELOADED]
    seen = looks.look(is_quiet=True)
    assert (seen.verdict, seen.outcome) == (Verdict.NOT_ACCURATE, Outcome.FAILED)
    assert seen.verification is not None
    assert "digest does not fit" in seen.verification.sentence
    assert fake.verdict() is Verdict.NOT_ACCURATE  # and status knows of it
    now[0] = HOUR + 31
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert len(reloads) == 2


def test_broken_image_is_reloaded_also_where_its_mark_cannot_be_written(fake: FakeKexec, reloads: Reloads) -> None:
    fake.write_file("run/crash-hotplug", "in the way")
    now = [0.0]
    looks = looker(fake, now=lambda: now[0], reloads=reloads)
    looks.look(is_quiet=True)
    fake.flip_bit(KERNEL + 0x100)
    now[0] = HOUR
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED


def test_image_that_another_process_loads_meanwhile_is_not_called_broken(fake: FakeKexec) -> None:
    now = [0.0]
    looks = looker(fake, now=lambda: now[0])
    looks.look(is_quiet=True)
    now[0] = HOUR
    machine = looks._live
    observe = machine.observe

    def observe_a_change() -> LiveObservation:
        observation = observe()
        identity = observation.identity
        answers = iter([identity(), b"another"])
        observation.identity = lambda: next(answers, b"another")  # type: ignore[method-assign]
        machine.observe = observe  # type: ignore[method-assign]
        return observation

    fake.flip_bit(KERNEL + 0x100)
    machine.observe = observe_a_change  # type: ignore[method-assign]
    seen = looks.look(is_quiet=True)
    assert seen.verification is not None
    assert seen.verification.outcome is Outcome.CANNOT_TELL


def test_verification_waits_for_an_image(fake: FakeKexec) -> None:
    now = [0.0]
    fake.unload()
    looks = looker(fake, now=lambda: now[0])
    now[0] = HOUR
    assert looks.look(is_quiet=True).verification is None
    fake.load_again()
    now[0] = HOUR + 60
    assert looks.look(is_quiet=True).verification is not None


def test_image_that_another_process_loaded_is_not_taken_for_the_torn_one(fake: FakeKexec, reloads: Reloads) -> None:
    reloads.outcomes = [Outcome.FAILED]
    kernel = fake.read(KERNEL, 0x8000)
    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    looks = looker(fake, reloads=reloads)
    assert looks.look(is_quiet=True).verdict is Verdict.NOT_ACCURATE
    fake.before_load = lambda: None
    fake.write(KERNEL, kernel)
    fake.write(PURGATORY, fake.purgatory(True))
    fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS))  # another load
    seen = looks.look(is_quiet=True)
    assert (seen.verdict, seen.external_change) == (Verdict.ACCURATE, "another process loaded a crash image")
    assert len(reloads) == 1


def test_machine_whose_image_was_right_needs_no_reload_before_it_changes(fake: FakeKexec, reloads: Reloads) -> None:
    looks = looker(fake, reloads=reloads)
    assert looks.look(is_quiet=True).verdict is Verdict.ACCURATE
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    fake.write(0x39F5_D000, fake.header)
    actions = [looks.look(is_quiet=True).action for _ in range(3)]
    assert all(action.endswith("no reload: nothing changed since the image was loaded") for action in actions)
    assert reloads.reasons == []


def test_memory_that_comes_during_a_look_is_seen_by_the_next(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looker(fake)
    judge, ranges = looks._judge, [1]

    def judge_before_memory_comes() -> tuple[Look, bool]:
        judged = judge()
        if judged[0].verdict is Verdict.ACCURATE and ranges:
            fake.add_ranges(ranges.pop())
        return judged

    monkeypatch.setattr(looks, "_judge", judge_before_memory_comes)
    assert looks.look(is_quiet=True).verdict is Verdict.ACCURATE
    seen = looks.look(is_quiet=True)
    assert (seen.was_cheap, seen.outcome) == (False, Outcome.UPDATED)
    assert fake.verdict() is Verdict.ACCURATE


def test_look_reads_what_its_own_update_loaded(fake: FakeKexec) -> None:
    looks = looker(fake)
    assert looks.look(is_quiet=True).outcome is Outcome.UPDATED
    assert looks.look(is_quiet=True).external_change == ""


def test_header_that_the_kernel_changed_is_no_change_by_another_process(fake: FakeKexec) -> None:
    fake.write_file("sys/devices/system/cpu/crash_hotplug", "1\n")
    looks = looker(fake)
    assert looks.look(is_quiet=True).by_kernel
    fake.write(0x39F5_D000, fake.header)
    assert looks.look(is_quiet=True).external_change == ""
    fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS))
    assert looks.look(is_quiet=True).external_change == "another process loaded a crash image"


def test_failed_update_is_tried_at_the_next_look_although_nothing_changed(fake: FakeKexec) -> None:
    """The header of the present CPUs is accurate; the update that would add the others failed."""
    looks = looker(fake)
    looks.look(is_quiet=True)
    fake.make_possible(40)

    def refuse() -> None:
        raise KexecError(1)

    fake.before_load = refuse
    assert looks.look(is_quiet=True).outcome is Outcome.FAILED
    fake.before_load = lambda: None
    assert looks.look(is_quiet=True).outcome is Outcome.UPDATED


def test_strategy_in_place_leaves_a_torn_image(fake: FakeKexec, reloads: Reloads) -> None:
    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    looks = looker(fake, "in-place", reloads=reloads)
    assert {looks.look(is_quiet=True).outcome for _ in range(2)} == {Outcome.TORN}
    assert reloads.reasons == []


def test_time_of_a_kexec_load_is_that_of_the_last_update(fake: FakeKexec) -> None:
    looks = looker(fake)
    assert looks.look(is_quiet=True).kexec_seconds > 0
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    fake.add_ranges(1)
    refused = looks.look(is_quiet=True)
    assert (refused.outcome, refused.kexec_seconds) == (Outcome.REFUSED, 0)


def test_reload_keeps_the_service_awake(fake: FakeKexec) -> None:
    awake: list[int] = []

    def run(reason: str, while_waiting: Callable[[], None]) -> Report:
        while_waiting()
        return Report(Outcome.RELOADED, reason)

    looks = Reconciler(
        fake.machine(),
        fake.sysroot,
        "reload",
        while_waiting=lambda: awake.append(1),
        reloading=Reloading(lambda: True, run),
    )
    assert looks.look(is_quiet=True).outcome is Outcome.RELOADED
    assert awake == [1]


def test_look_tells_how_far_the_header_may_grow(fake: FakeKexec) -> None:
    seen = looker(fake).look(is_quiet=True)
    entries = len(parse_elfcorehdr(fake.image().elfcorehdr).program_headers)
    assert seen.room_left == (0x4000 - 64) // 56 - entries


def test_hangup_lets_a_failed_reload_be_tried_at_once(fake: FakeKexec, reloads: Reloads) -> None:
    reloads.outcomes = [Outcome.FAILED]
    fake.write_file(LOCKDOWN, "none [integrity] confidentiality\n")
    looks = looker(fake, reloads=reloads)
    for _ in range(3):
        looks.look(is_quiet=True)
    assert len(reloads) == 1
    looks.forget()
    looks.look(is_quiet=True)
    assert len(reloads) == 2


def test_hangup_reads_everything_at_the_next_look(fake: FakeKexec) -> None:
    looks = looker(fake)
    looks.look(is_quiet=True)
    looks.forget()
    assert not looks.look(is_quiet=True).was_cheap
    assert looks.look(is_quiet=True).was_cheap


def test_failed_update_that_lost_nothing_is_no_reason_to_reload_at_once(fake: FakeKexec, reloads: Reloads) -> None:
    def refuse() -> None:
        raise KexecError(1)

    fake.before_load = refuse
    looks = looker(fake, reloads=reloads)
    assert looks.look(is_quiet=True).outcome is Outcome.FAILED
    assert reloads.reasons == []


def test_torn_image_that_was_reloaded_is_updated_in_place_again(fake: FakeKexec) -> None:
    kernel = fake.read(KERNEL, 0x8000)
    reasons: list[str] = []

    def reload(reason: str, _while_waiting: Callable[[], None]) -> Report:
        reasons.append(reason)
        fake.before_load = lambda: None
        fake.write(KERNEL, kernel)
        fake.write(0x39F5_D000, fake.header.ljust(0x4000, b"\0"))
        fake.write(PURGATORY, fake.purgatory(True))
        fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS))
        return Report(Outcome.RELOADED, reason)

    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    looks = Reconciler(fake.machine(), fake.sysroot, reloading=Reloading(lambda: True, reload), patience=0.1)
    first = looks.look(is_quiet=True)
    assert (first.outcome, first.kexec_seconds) == (Outcome.RELOADED, 0)  # the time of an update in place only
    assert looks.look(is_quiet=True).outcome is Outcome.UPDATED
    assert len(reasons) == 1
    assert fake.digest_fits()


def test_image_that_a_reload_lost_is_loaded_again(fake: FakeKexec) -> None:
    now, reasons = [0.0], list[str]()

    def reload(reason: str, _while_waiting: Callable[[], None]) -> Report:
        reasons.append(reason)
        fake.unload()
        return Report(Outcome.FAILED, f"{reason}; kdumpctl reload failed: no")

    reloading = Reloading(lambda: True, reload)
    looks = Reconciler(fake.machine(), fake.sysroot, "reload", lambda: now[0], reloading=reloading, patience=0.1)
    assert looks.look(is_quiet=True).outcome is Outcome.FAILED
    assert looks.look(is_quiet=True).verdict is Verdict.NO_IMAGE
    assert len(reasons) == 1
    now[0] = 31.0
    looks.look(is_quiet=True)
    assert len(reasons) == 2


def test_image_is_missing_where_only_its_pointer_shows_it(fake: FakeKexec, reloads: Reloads) -> None:
    fake.unload()
    (fake.root / "sys/kernel/kexec_crash_loaded").unlink()
    assert looker(fake, reloads=reloads).look(is_quiet=True).verdict is Verdict.NO_IMAGE
