# SPDX-License-Identifier: MIT
"""The output and the exit codes of ``crash-hotplug update``, on a machine of files."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from crash_hotplug.cli import update
from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.sizes import human_size
from crash_hotplug.linux.loading.capture_kernel import CaptureKernel, Strategy
from crash_hotplug.linux.loading.kdump_lock import LockBusyError
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.loading.load import LoadRecord
from crash_hotplug.linux.loading.reload import ReloadParts, update_by_reload
from crash_hotplug.linux.sysroot import SMALL
from tests.cli.running import run
from tests.linux.fake_kexec import HEADER, INITRD, KERNEL, PURGATORY, ZERO_PAGE, FakeKexec
from tests.trees import LiveTree


class Tool:
    """The distribution's tool that reloads the image; it changes the image only if *unloads* is set."""

    def __init__(self, fake: FakeKexec, user: int = 0) -> None:
        self.fake, self.ran = fake, 0
        self.code = 0
        self.unloads = False
        self.before = {at: fake.read(at, 0x1000) for at in (KERNEL, INITRD, ZERO_PAGE, PURGATORY, HEADER)}
        self.parts = ReloadParts(lambda _loaded: ["kdumpctl", "reload"], lambda: None, self.run, user=lambda: user)

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.ran += 1
        if self.unloads:
            for at in self.before:
                self.fake.write(at, b"overwritten")
            self.fake.unload()
        return subprocess.CompletedProcess(command, self.code, "", "no" if self.code else "")

    def reload(self, reason: str) -> Report:
        return run_patiently(update_by_reload(self.fake.machine(), reason, parts=self.parts), 0.1)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKexec:
    fake = FakeKexec(tmp_path)
    monkeypatch.setattr(update, "LiveMachine", fake.machine)
    return fake


@pytest.fixture
def tool(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> Tool:
    tool = Tool(fake)
    monkeypatch.setattr(update, "RELOAD_PARTS", tool.parts)
    return tool


def test_update_changes_the_header_once_and_then_nothing(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(capsys, "update", "--json")
    assert (first.code, first.json["outcome"]) == (0, "updated")
    assert first.json["kexec_load_seconds"] > 0
    second = run(capsys, "update")
    assert (second.code, second.out.split(" (")[0]) == (0, "unchanged: the header is right as it is")
    assert len(fake.loads) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_during_a_reload_puts_the_previous_image_back(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def unload_and_be_ended(command: list[str]) -> subprocess.CompletedProcess[str]:
        fake.unload()
        os.kill(os.getpid(), number)
        time.sleep(5)
        return subprocess.CompletedProcess(command, 0, "", "")

    before = signal.getsignal(signal.SIGTERM)
    parts = ReloadParts(lambda _loaded: ["kdumpctl", "reload"], lambda: None, unload_and_be_ended, user=lambda: 0)
    monkeypatch.setattr(update, "RELOAD_PARTS", parts)
    try:
        ended = run(capsys, "update", "--strategy", "reload")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (ended.code, "the previous image was put back" in ended.err) == (1, True)
    assert fake.digest_fits()


def test_dry_run_shows_the_plan_and_changes_nothing(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "update", "--dry-run")
    assert shown.code == 0
    assert shown.out.startswith("would list 3 segments and copy ")
    assert "0x39f5d000 568 of 16384 bytes: the new elfcorehdr" in shown.out
    plan = run(capsys, "update", "--dry-run", "--json").json["plan"]
    assert [s["phys"] for s in plan["segments"]] == ["0x2e000000", "0x39f54000", "0x39f5d000"]
    assert len(plan["kept"]) == 4
    below = f"below {plan['control_pages_end']}, {human_size(plan['control_pages_size'])} at most"
    assert f"Control pages {below}" in shown.out
    assert fake.loads == []
    run(capsys, "update")
    assert run(capsys, "update", "--dry-run").out == "nothing to do: the header is right as it is\n"


def test_dry_run_estimates_the_time_without_an_image(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(capsys, "update", "--dry-run", "--json").json
    estimated = report["plan"]["time_without_image"]
    assert 0 < estimated["seconds"] < 10
    assert "pages written and the protection of 49152 changed twice" in estimated["basis"]
    assert "No image for  about " in run(capsys, "update", "--dry-run").out


def test_dry_run_of_a_move_shows_the_whole_plan(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    fake.add_ranges(400)
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


def test_dry_run_says_whether_the_header_moves(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    fake.make_possible(300)
    assert run(capsys, "update", "--dry-run").out.startswith("the header outgrew its 16384 bytes and would move to ")


def test_dry_run_says_that_a_header_without_a_free_place_describes_the_present_cpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeKexec(tmp_path, has_free_place=False)
    monkeypatch.setattr(update, "LiveMachine", fake.machine)
    fake.make_possible(300)
    shown = run(capsys, "update", "--dry-run").out
    assert shown.startswith("present CPUs only, because the header cannot move: the reserved region has no free place")
    assert "; would list 3 segments" in shown
    assert fake.loads == []
    assert run(capsys, "update", "--strategy", "in-place").code == 0
    done = run(capsys, "update", "--dry-run")
    assert done.code == 0
    assert done.out.startswith("nothing to do: the header is right as it is; present CPUs only, because it cannot move")
    fake.add_ranges(400)
    assert run(capsys, "update", "--dry-run").code == 5
    assert run(capsys, "update", "--dry-run", "--json").json["outcome"] == "no room"


def test_update_without_an_image_has_its_exit_code(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    fake.unload()
    assert run(capsys, "update").code == 3
    assert run(capsys, "update", "--dry-run").code == 3


def test_refused_update_reloads_unless_in_place_is_requested(
    fake: FakeKexec, tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.write_file("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    stays = run(capsys, "update", "--strategy", "in-place")
    assert (stays.code, stays.err.split(" (")[0]) == (1, "refused: lockdown")
    assert run(capsys, "update", "--dry-run").code == 1
    assert tool.ran == 0
    reloaded = run(capsys, "update", "--json")
    assert (reloaded.code, reloaded.json["outcome"]) == (0, "reloaded")
    assert reloaded.json["reason"] == "kdumpctl reload: lockdown (integrity) forbids kexec_load"
    assert tool.ran == 1


def test_cannot_tell_has_its_own_exit_code(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    (fake.root / "proc" / "kcore").unlink()
    assert run(capsys, "update", "--strategy", "in-place").code == 5


def test_reload_does_not_need_the_image(fake: FakeKexec, tool: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    (fake.root / "proc" / "kcore").unlink()
    ran = run(capsys, "update", "--strategy", "reload", "--json")
    assert (ran.code, ran.json["reason"], tool.ran) == (0, "kdumpctl reload", 1)


def test_full_verification_detects_a_broken_image(fake: FakeKexec, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "update")
    fake.flip_bit(KERNEL)
    assert run(capsys, "update").code == 0
    noticed = run(capsys, "update", "--strategy", "in-place", "--verify", "full")
    assert (noticed.code, "does not fit the loaded image" in noticed.err) == (1, True)


def test_failed_reload_names_its_reason(tool: Tool) -> None:
    assert tool.reload("no kcore") == (Outcome.RELOADED, "kdumpctl reload: no kcore")
    tool.code = 1
    sentence = "no kcore; kdumpctl reload failed: no; the previous image is still loaded"
    assert tool.reload("no kcore") == (Outcome.FAILED, sentence)


@pytest.mark.parametrize("code", [0, 1])
def test_reload_that_leaves_no_image_puts_the_previous_one_back(fake: FakeKexec, tool: Tool, code: int) -> None:
    tool.unloads, tool.code = True, code
    why = "kdumpctl reload failed: no" if code else "kdumpctl reload left no crash image"
    assert tool.reload("no kcore") == (Outcome.FAILED, f"no kcore; {why}; the previous image was put back")
    assert {at: fake.read(at, 0x1000) for at in tool.before} == tool.before
    assert fake.digest_fits()


@pytest.mark.parametrize("code", [0, 1])
def test_broken_image_is_not_put_back(fake: FakeKexec, tool: Tool, code: int) -> None:
    fake.flip_bit(KERNEL)
    tool.unloads, tool.code = True, code
    report = tool.reload("")
    assert (report.outcome, report.sentence.endswith("; no crash image is loaded now")) == (Outcome.FAILED, True)
    assert fake.loads == []


def test_lock_taken_after_a_failed_reload_is_reported(fake: FakeKexec, tool: Tool) -> None:
    def busy() -> AbstractContextManager[None]:
        raise LockBusyError("the lock is taken: another process is loading a crash image")

    tool.unloads, tool.code = True, 1
    fake.locks = busy
    sentence = tool.reload("").sentence
    assert sentence.endswith("is loading a crash image; is a crash image loaded now? (crash-hotplug status)")


def test_reload_without_an_image_is_not_loaded(fake: FakeKexec, tool: Tool) -> None:
    fake.unload()
    assert tool.reload("").outcome is Outcome.NOT_LOADED


def test_recorded_load_is_repeated_without_a_tool(fake: FakeKexec) -> None:
    loaded: list[tuple[object, ...]] = []

    def load_again(*arguments: object) -> str:
        loaded.append(arguments)
        return "kexec_file_load"

    def reload(record: LoadRecord | None) -> Report:
        parts = ReloadParts(lambda _loaded: None, lambda: record, load=load_again, user=lambda: 0)
        return run_patiently(update_by_reload(fake.machine(), "no kcore", parts=parts))

    nothing = reload(None)
    assert (nothing.outcome, loaded) == (Outcome.FAILED, [])
    assert nothing.sentence == (
        "no kcore; neither kdumpctl nor kdump-config is installed, nor openSUSE's load-once.sh, and crash-hotplug load "
        "has loaded no image since boot"
    )
    files = CaptureKernel("/boot/k", None, "nr_cpus=1")
    again = reload(LoadRecord(files, Strategy.AUTO, 8192, 0x8000))
    assert again == (Outcome.RELOADED, "loaded /boot/k again by kexec_file_load: no kcore")
    assert loaded == [(files, Strategy.AUTO, 0x8000)]
    assert len(fake.loads) == 1  # made ready for hot-plug


def test_reload_requires_root(fake: FakeKexec) -> None:
    tool = Tool(fake, user=1000)
    assert tool.reload("run as root").outcome is Outcome.CANNOT_TELL
    assert tool.reload("").sentence == "only root can reload the crash image"
    assert tool.ran == 0


FAULTS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "iomem masked": ("proc/iomem", lambda _: b"00000000-00000000 : System RAM\n"),
    "iomem truncated": ("proc/iomem", lambda data: data[: data.rindex(b" : ")]),
    "iomem empty": ("proc/iomem", lambda _: b""),
    "kcore empty": ("proc/kcore", lambda _: b""),
    "kcore truncated": ("proc/kcore", lambda data: data[:100]),
    "kcore of another kind": ("proc/kcore", lambda _: b"no ELF file" * 20),
    "kallsyms masked": ("proc/kallsyms", lambda _: b"0000000000000000 B kexec_crash_image\n"),
    "kallsyms truncated": ("proc/kallsyms", lambda data: data[:10]),
    "CPUs truncated": ("sys/devices/system/cpu/present", lambda _: b"0-"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_update_and_status_have_the_same_exit_code_where_a_kernel_file_is_broken(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(update, "RELOAD_PARTS", ReloadParts(lambda _loaded: None, lambda: None, user=lambda: 0))
    monkeypatch.setattr("crash_hotplug.cli.status.open_sysroot", lambda _directory: LiveTree(str(fake.root)))
    monkeypatch.setattr("crash_hotplug.linux.kallsyms._live", {})
    commands = (["status"], ["update"], ["update", "--strategy", "in-place"], ["update", "--dry-run"])
    name, change = FAULTS[fault]
    path = fake.root / name
    path.write_bytes(change(path.read_bytes()))
    assert [(command, run(capsys, *command).code) for command in commands] == [(command, 5) for command in commands]
    assert fake.loads == []


def test_status_reads_each_file_of_the_live_machine_once_for_verdict_and_in_place(
    fake: FakeKexec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_paths = []

    class Counted(LiveTree):
        def read(self, path: str, limit: int = SMALL) -> bytes | None:
            read_paths.append(path)
            return super().read(path, limit)

    monkeypatch.setattr("crash_hotplug.cli.status.open_sysroot", lambda _directory: Counted(str(fake.root)))
    monkeypatch.setattr("crash_hotplug.linux.kallsyms._live", {})
    monkeypatch.setattr("crash_hotplug.linux.loading.live_machine.machine_name", lambda: "x86_64")
    ran = run(capsys, "status", "--json")
    assert ran.json["in_place"]["possible"]
    assert read_paths.count("/sys/devices/system/cpu/present") == 1
    assert read_paths.count("/sys/devices/system/cpu/possible") == 1


def test_update_that_cannot_be_told_and_whose_reload_fails_has_failed(
    fake: FakeKexec, tool: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake.root / "proc" / "kcore").unlink()
    tool.code = 1
    assert (run(capsys, "update").code, tool.ran) == (1, 1)
