"""``crash-hotplug update`` as a person runs it, on a machine of files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from crash_hotplug.cli import update
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.update import Outcome, Report
from crash_hotplug.linux.loading import former_image, update_once
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy
from crash_hotplug.linux.loading.kdump_lock import LockBusyError
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.loading.load import LoadRecord
from crash_hotplug.linux.loading.reload import NoReloadToolError
from crash_hotplug_lab.model.user_space import LOOK
from tests.cli.running import run
from tests.linux.fake_kexec import (
    HEADER,
    INITRD,
    KERNEL,
    PURGATORY,
    ZERO_PAGE,
    FakeKexec,
    cannot_move,
    connect,
    make_possible,
)
from tests.linux.loading.test_live_machine import add_ranges


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKexec:
    fake = FakeKexec(tmp_path)

    def live(**options: bool) -> LiveMachine:
        return LiveMachine(fake.sysroot, verify_full=options["verify_full"])

    connect(fake, monkeypatch)
    monkeypatch.setattr(update, "LiveMachine", live)
    return fake


def reloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reasons: list[str] = []

    def reload(reason: str, _say: Callable[[str], None]) -> Report:
        reasons.append(reason)
        return Report(LOOK, Outcome.RELOADED, f"kdumpctl reload: {reason}")

    monkeypatch.setattr(update, "update_by_reload", reload)
    return reasons


def test_it_updates_once_and_then_has_nothing_to_do(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(capsys, "update", "--json")
    assert (first.code, first.json["outcome"]) == (0, "updated")
    assert first.json["kexec_load_seconds"] > 0
    second = run(capsys, "update")
    assert (second.code, second.out.split(" (")[0]) == (0, "unchanged: the header is right as it is")
    assert len(fake.loads) == 1


def test_a_dry_run_shows_the_plan_and_changes_nothing(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "update", "--dry-run")
    assert shown.code == 0
    assert shown.out.startswith("would list 3 segments and copy ")
    assert "0x39f5d000 568 of 16384 bytes: the new elfcorehdr" in shown.out
    plan = run(capsys, "update", "--dry-run", "--json").json["plan"]
    assert [s["phys"] for s in plan["segments"]] == ["0x2e000000", "0x39f54000", "0x39f5d000"]
    assert len(plan["kept"]) == 4
    assert fake.loads == []
    run(capsys, "update")
    assert run(capsys, "update", "--dry-run").out == "nothing to do: the header is right as it is\n"


def test_a_dry_run_says_about_how_long_there_would_be_no_image(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(capsys, "update", "--dry-run", "--json").json
    estimated = report["plan"]["time_without_image"]
    assert 0 < estimated["seconds"] < 10
    assert "pages written and the protection of 49152 changed twice" in estimated["basis"]
    assert "No image for  about " in run(capsys, "update", "--dry-run").out


def test_a_dry_run_of_a_header_that_has_to_move_shows_the_whole_plan(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str]
) -> None:
    add_ranges(fake, 400)
    shown = run(capsys, "update", "--dry-run", "--max-memory-ranges", "1000")
    assert shown.code == 0
    assert shown.out.startswith("the header outgrew its 16384 bytes and would move to a place of 57344; would list ")
    assert "the zero page, with the new place in command line and E820 table" in shown.out
    planned = run(capsys, "update", "--dry-run", "--max-memory-ranges", "1000", "--json").json["plan"]
    assert fake.loads == []
    assert run(capsys, "update", "--max-memory-ranges", "1000").out.startswith("updated: written at a new place, with")
    done = [{"phys": hex(s.phys), "bufsz": len(s.data), "memsz": s.memsz, "why": s.why} for s in fake.loads[0]]
    assert planned["segments"] == done
    assert run(capsys, "update", "--max-memory-ranges", "none").code == 2


def test_a_dry_run_says_what_becomes_of_possible_cpus_without_room(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_possible(monkeypatch, 300)
    assert run(capsys, "update", "--dry-run").out.startswith("the header outgrew its 16384 bytes and would move to ")

    cannot_move(monkeypatch)
    short = "present CPUs only, for the header cannot move: there is no free place; would list 3 segments"
    assert run(capsys, "update", "--dry-run").out.startswith(short)
    assert fake.loads == []
    assert run(capsys, "update", "--strategy", "in-place").code == 0
    done = run(capsys, "update", "--dry-run")
    assert (done.code, done.out.startswith("nothing to do: the header describes the present CPUs, and cannot")) == (
        0,
        True,
    )
    add_ranges(fake, 400)
    assert run(capsys, "update", "--dry-run").code == 5


def test_no_image_is_loaded(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    fake.unload()
    assert run(capsys, "update").code == 3
    assert run(capsys, "update", "--dry-run").code == 3


def test_a_refusal_reloads_where_that_may_be(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.write_file("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    reasons = reloads(monkeypatch)
    stays = run(capsys, "update", "--strategy", "in-place")
    assert (stays.code, stays.err.split(" (")[0]) == (1, "refused: lockdown")
    assert run(capsys, "update", "--dry-run").code == 1
    assert reasons == []
    assert run(capsys, "update").code == 0
    assert reasons == ["lockdown (integrity) forbids kexec_load"]


def test_cannot_tell_has_its_own_exit_code(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    (fake.root / "proc" / "kcore").unlink()
    assert run(capsys, "update", "--strategy", "in-place").code == 5


def test_reload_does_not_look_at_the_image(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = reloads(monkeypatch)
    (fake.root / "proc" / "kcore").unlink()
    assert run(capsys, "update", "--strategy", "reload").code == 0
    assert reasons == [""]


def test_a_broken_image_is_noticed_by_a_full_verification(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "update")
    fake.flip_bit(KERNEL)
    assert run(capsys, "update").code == 0
    noticed = run(capsys, "update", "--strategy", "in-place", "--verify", "full")
    assert (noticed.code, "does not fit the loaded image" in noticed.err) == (1, True)


def test_a_reload_that_fails_says_why_it_was_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_once, "is_root", lambda: True)
    monkeypatch.setattr(update_once, "reload_crash_image", lambda: "kdumpctl reload")
    monkeypatch.setattr(update_once, "is_loaded", lambda: True)
    assert update_once.update_by_reload("no kcore").sentence == "kdumpctl reload: no kcore"

    def failing() -> str:
        raise CrashHotplugError("kdumpctl reload failed: no")

    monkeypatch.setattr(update_once, "reload_crash_image", failing)
    monkeypatch.setattr(update_once, "kdump_locks", lambda _seconds: nullcontext())
    monkeypatch.setattr(update_once, "put_back", lambda _former, _sysroot: "an image is loaded")
    failed = Report(LOOK, Outcome.FAILED, "no kcore; kdumpctl reload failed: no; an image is loaded")
    assert update_once.update_by_reload("no kcore") == failed


@pytest.mark.parametrize("code", [0, 1])
def test_a_reload_that_leaves_no_image_is_taken_back(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    before = reload_that_unloads(fake, monkeypatch, code)
    report = update_once.update_by_reload("no kcore")
    why = "kdumpctl reload failed: no" if code else "kdumpctl reload left no crash image"
    assert report == Report(LOOK, Outcome.FAILED, f"no kcore; {why}; the former image was put back")
    assert {at: fake.read(at, 0x1000) for at in before} == before
    assert fake.digest_fits()


@pytest.mark.parametrize("code", [0, 1])
def test_a_broken_image_is_not_put_back(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fake.flip_bit(KERNEL)
    reload_that_unloads(fake, monkeypatch, code)
    report = update_once.update_by_reload("")
    assert (report.outcome, report.sentence.endswith("; no crash image is loaded now")) == (Outcome.FAILED, True)
    assert fake.loads == []


def test_a_lock_that_is_taken_after_a_failed_reload_is_said(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_seconds: float) -> AbstractContextManager[None]:
        raise LockBusyError("somebody else holds the lock")

    reload_that_unloads(fake, monkeypatch, 1)
    monkeypatch.setattr(update_once, "kdump_locks", busy)
    sentence = update_once.update_by_reload("").sentence
    assert sentence.endswith("somebody else holds the lock; is a crash image loaded now? (crash-hotplug status)")


def reload_that_unloads(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, code: int) -> dict[int, bytes]:
    """Let the distribution's tool unload the image and load none, and return what the image was."""

    def unload_and_fail() -> str:
        for at in before:
            fake.write(at, b"overwritten")
        fake.unload()
        if code:
            raise CrashHotplugError("kdumpctl reload failed: no")
        return "kdumpctl reload"

    before = {at: fake.read(at, 0x1000) for at in (KERNEL, INITRD, ZERO_PAGE, PURGATORY, HEADER)}
    monkeypatch.setattr(update_once, "Sysroot", lambda _directory=None: fake.sysroot)
    monkeypatch.setattr(update_once, "is_root", lambda: True)
    monkeypatch.setattr(update_once, "kdump_locks", lambda _seconds: nullcontext())
    monkeypatch.setattr(update_once, "can_reload", lambda: True)
    monkeypatch.setattr(update_once, "reload_crash_image", unload_and_fail)
    monkeypatch.setattr(former_image, "load_crash_image", fake.kexec_load)
    return before


def test_a_reload_where_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_once, "is_root", lambda: True)
    monkeypatch.setattr(update_once, "reload_crash_image", lambda: "kdump-config try-reload")
    monkeypatch.setattr(update_once, "is_loaded", lambda: False)
    assert update_once.update_by_reload("").outcome is Outcome.NOT_LOADED


def test_without_a_tool_our_own_load_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[object, ...]] = []

    def no_tool() -> str:
        raise NoReloadToolError("neither is installed")

    def load_again(*arguments: object) -> str:
        loaded.append(arguments)
        return "kexec_file_load"

    def unlocked(_seconds: float) -> AbstractContextManager[None]:
        return nullcontext()

    record: list[LoadRecord | None] = [None]
    monkeypatch.setattr(update_once, "is_root", lambda: True)
    monkeypatch.setattr(update_once, "reload_crash_image", no_tool)
    monkeypatch.setattr(update_once, "read_record", lambda: record[0])
    monkeypatch.setattr(update_once, "load_capture_kernel", load_again)
    monkeypatch.setattr(update_once, "make_ready", lambda *_: None)
    monkeypatch.setattr(update_once, "kdump_locks", unlocked)
    nothing = update_once.update_by_reload("no kcore")
    assert (nothing.outcome, loaded) == (Outcome.FAILED, [])
    assert nothing.sentence.startswith("no kcore; neither is installed, and crash-hotplug load loaded none since the b")
    files = CaptureKernel("/boot/k", None, "nr_cpus=1")
    record[0] = LoadRecord(files, Strategy.AUTO, 8192, 4096)
    again = update_once.update_by_reload("no kcore")
    assert again.outcome is Outcome.RELOADED
    assert again.sentence == "loaded /boot/k again by kexec_file_load: no kcore"
    assert loaded == [(files, Strategy.AUTO, 4096)]


def test_who_is_not_root_reloads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_once, "is_root", lambda: False)
    monkeypatch.setattr(update_once, "reload_crash_image", lambda: pytest.fail("it was tried"))
    assert update_once.update_by_reload("run as root").outcome is Outcome.CANNOT_TELL
    assert update_once.update_by_reload("").sentence == "only root can reload the crash image"
