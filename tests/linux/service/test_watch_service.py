# SPDX-License-Identifier: MIT
"""The service's loop: events, signals, log lines, metrics file; looks are made up here."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.watch_record import Look, WatchRecord
from crash_hotplug.core.service.watch_schedule import Schedule
from crash_hotplug.linux.service.reconciler import Reconciler
from crash_hotplug.linux.service.sd_notify import Notifier
from crash_hotplug.linux.service.uevents import Drained, Uevent, UeventSocket
from crash_hotplug.linux.service.watch_service import INFO, WARNING, Service, write_metrics

RIGHT = Look(Verdict.ACCURATE, "a panic now would be dumped completely")
UPDATED = replace(RIGHT, strategy="in-place", outcome=Outcome.UPDATED, action="9 entries written", kexec_seconds=0.005)
REFUSED = Look(Verdict.NOT_ACCURATE, "256 MiB is not described", "in-place", Outcome.REFUSED, "lockdown")


class FakeReconciler:
    """Gives looks in order, then the last one again."""

    def __init__(self, *looks: Look) -> None:
        self.looks = list(looks)
        self.made: list[float] = []
        self.forgot = 0

    def look(self, is_quiet: bool) -> Look:
        self.made.append(time.monotonic())
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def forget(self) -> None:
        self.forgot += 1


class FakeUevents:
    """A socket to which the test sends events."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._waiting: list[Drained] = []

    def fileno(self) -> int:
        return self._reader.fileno()

    def send(self, *events: Uevent, ignored: int = 0, overrun: bool = False) -> None:
        self._waiting.append(Drained(list(events), ignored, overrun))
        self._writer.send(b"x")

    def drain(self) -> Drained:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._reader.recv(4096)
        events = [event for drained in waiting for event in drained.events]
        return Drained(events, sum(d.ignored for d in waiting), any(d.overrun for d in waiting))

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@pytest.fixture
def uevents() -> Iterator[FakeUevents]:
    fake = FakeUevents()
    yield fake
    fake.close()


def heard_by(systemd: socket.socket) -> list[str]:
    """Return the first key of each waiting notification."""
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(systemd.recv(4096).decode().partition("\n")[0].partition("=")[0])
    return heard


class Running:
    """A service in the main thread, and what a second thread does to it."""

    def __init__(
        self,
        looker: FakeReconciler,
        uevents: FakeUevents,
        notify: str = "",
        metrics: Path | None = None,
        watchdog: str = "",
    ) -> None:
        self.said: list[tuple[int, str]] = []
        self.record = WatchRecord("1.0", time.time())
        self.service = Service(
            cast(Reconciler, looker),
            cast(UeventSocket, uevents),
            Schedule(time.monotonic(), max_delay=0.05, heartbeat=30),
            self.record,
            lambda priority, line: self.said.append((priority, line)),
            Notifier({"NOTIFY_SOCKET": notify, "WATCHDOG_USEC": watchdog}),
            None if metrics is None else str(metrics),
        )

    def during(self, *actions: Callable[[], object]) -> list[str]:
        """Run the service; take an action every 0.2 s, then end it."""

        def stop() -> None:
            os.kill(os.getpid(), signal.SIGTERM)

        def act() -> None:
            every: tuple[Callable[[], object], ...] = (*actions, stop)
            for action in every:
                time.sleep(0.2)
                action()

        other = threading.Thread(target=act)
        other.start()
        self.service.run()
        other.join()
        return [line for _, line in self.said]


def test_events_are_answered_and_said_with_what_was_done(uevents: FakeUevents) -> None:
    looker = FakeReconciler(RIGHT, RIGHT, RIGHT, UPDATED, RIGHT)
    running = Running(looker, uevents)
    looker.looks = [RIGHT, *[RIGHT] * 2, RIGHT]
    burst = [Uevent("add", "memory", f"memory{n}") for n in range(40, 46)]

    def plug() -> None:
        looker.looks = [UPDATED, RIGHT]
        uevents.send(*burst)

    said = running.during(plug)
    assert said[0] == "accurate: a panic now would be dumped completely"
    assert said[1].startswith("memory40 add, memory41 add, memory42 add, memory43 add and 2 more events: in-place: upd")
    assert ", 5.0 ms of it without an image, at most)" in said[1]
    assert said[-1].startswith("stopped")
    assert running.record.events["memory"] == 6
    assert running.record.updates["in-place", "updated"] == 1


@pytest.mark.parametrize(("outcome", "priority"), [(Outcome.UNCHANGED, INFO), (Outcome.CANNOT_TELL, WARNING)])
def test_verification_is_said_with_its_priority(uevents: FakeUevents, outcome: Outcome, priority: int) -> None:
    running = Running(FakeReconciler(replace(RIGHT, verification=Report(outcome, "the sentence")), RIGHT), uevents)
    running.during()
    assert running.said.count((priority, "daily verification: the sentence")) == 1


def test_lost_and_forged_events(uevents: FakeUevents) -> None:
    looker = FakeReconciler(RIGHT)
    running = Running(looker, uevents)
    said = running.during(lambda: uevents.send(overrun=True), lambda: uevents.send(ignored=3), lambda: None)
    assert sum("lost" in line for line in said) == 1
    assert sum("does not come from the kernel" in line for line in said) == 1
    assert (running.record.overruns, running.record.ignored) == (1, 3)
    assert running.record.looks["event"] == 1


def test_the_same_failure_is_said_once(uevents: FakeUevents) -> None:
    running = Running(FakeReconciler(REFUSED), uevents)
    said = running.during(lambda: None, lambda: None)
    assert sum("lockdown" in line for line in said) == 1
    assert sum("not accurate" in line for line in said) == 1
    assert running.record.updates["in-place", "refused"] >= 3


def test_hangup_reads_everything_anew(uevents: FakeUevents, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        looker = FakeReconciler(RIGHT)
        said = Running(looker, uevents, str(tmp_path / "notify")).during(lambda: os.kill(os.getpid(), signal.SIGHUP))
        heard = heard_by(systemd)
    assert looker.forgot == 1
    assert said.count("accurate: a panic now would be dumped completely") == 2
    assert [word for word in heard if word != "STATUS"] == ["READY", "RELOADING", "READY", "STOPPING"]


def test_a_full_disk_is_said_once_and_passes(
    uevents: FakeUevents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "missing" / "crash-hotplug.prom"
    event = Uevent("add", "cpu", "cpu3")
    said = Running(FakeReconciler(RIGHT), uevents, metrics=path).during(
        lambda: uevents.send(event), path.parent.mkdir, lambda: uevents.send(event), lambda: None
    )
    assert sum("cannot be written: No such file or directory; tried again" in line for line in said) == 1
    assert f"{path} is written again" in said
    assert "crash_hotplug_accurate 1" in path.read_text()


def test_metrics_file_is_replaced_and_readable_by_the_collector(tmp_path: Path) -> None:
    path = tmp_path / "crash-hotplug.prom"
    record = WatchRecord("1.0", 0.0)
    umask = os.umask(0o077)
    try:
        write_metrics(str(path), record)
        record.overruns = 7
        write_metrics(str(path), record)
    finally:
        os.umask(umask)
    assert path.read_text() == record.metrics()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_signals_are_given_back(uevents: FakeUevents) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Running(FakeReconciler(RIGHT), uevents).during()
    assert signal.getsignal(signal.SIGTERM) is before


def test_watchdog_is_fed_while_nothing_happens(uevents: FakeUevents, tmp_path: Path) -> None:
    """Systemd would end the service after WATCHDOG_USEC without a word; here it is 0.4 s, and the heartbeat 30 s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        running = Running(FakeReconciler(RIGHT), uevents, str(tmp_path / "notify"), watchdog="400000")
        running.service._schedule = Schedule(time.monotonic(), max_delay=30, heartbeat=30)
        running.during(lambda: None, lambda: None, lambda: None, lambda: None)
        assert heard_by(systemd).count("WATCHDOG") >= 3


def test_sleep_ends_in_time_for_the_watchdog_and_the_next_look(uevents: FakeUevents) -> None:
    running = Running(FakeReconciler(RIGHT), uevents, "/run/nobody", watchdog="60000000")
    service = running.service
    service._schedule.due = time.monotonic() + 1000
    assert service._sleep_milliseconds() == pytest.approx(30_001, abs=1)
    service._schedule.due = time.monotonic() + 2
    assert service._sleep_milliseconds() == pytest.approx(2001, abs=500)
    service._schedule.due = time.monotonic() - 2
    assert service._sleep_milliseconds() == 0


def test_image_that_the_kernel_updates_is_looked_at_after_a_while(uevents: FakeUevents) -> None:
    """The kernel's handler acts at the same event: it is given half of the greatest delay."""
    by_kernel = Running(FakeReconciler(replace(RIGHT, by_kernel=True)), uevents)
    by_kernel.service._look()
    assert by_kernel.service._schedule.lead == by_kernel.service._schedule.max_delay / 2
    ours = Running(FakeReconciler(RIGHT), uevents)
    ours.service._schedule.lead = 1.0
    ours.service._look()
    assert ours.service._schedule.lead == 0


def test_ready_is_told_after_the_first_look(uevents: FakeUevents, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)

        class Looks(FakeReconciler):
            def look(self, is_quiet: bool) -> Look:
                assert self.made or "READY" not in heard_by(systemd)
                return super().look(is_quiet)

        Running(Looks(RIGHT), uevents, str(tmp_path / "notify")).during()
        assert "READY" in heard_by(systemd)


def test_wakeup_descriptor_of_signals_is_given_back(uevents: FakeUevents) -> None:
    before = signal.set_wakeup_fd(-1)
    try:
        Running(FakeReconciler(RIGHT), uevents).during()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.set_wakeup_fd(before)


def test_look_without_news_and_change_by_another_process_are_said(uevents: FakeUevents) -> None:
    changed = replace(RIGHT, external_change="another process loaded a crash image")
    running = Running(FakeReconciler(changed, RIGHT), uevents)
    said = running.during(lambda: None)
    assert said.count("another process loaded a crash image") == 1
    assert running.record.external_changes == 1


def test_burst_is_named_once(uevents: FakeUevents) -> None:
    running = Running(FakeReconciler(RIGHT), uevents)
    event = Uevent("add", "cpu", "cpu3")
    said = running.during(lambda: uevents.send(event), lambda: uevents.send(event))
    named = [line for line in said if line.startswith("cpu3 add")]
    assert len(named) == 2
    assert not any("more event" in line for line in named)


def test_service_sleeps_again_after_a_signal(uevents: FakeUevents, monkeypatch: pytest.MonkeyPatch) -> None:
    """The byte with which the signal ended the sleep is taken out of the socket."""
    drains: list[float] = []
    drain = uevents.drain

    def counted() -> Drained:
        drains.append(time.monotonic())
        return drain()

    monkeypatch.setattr(uevents, "drain", counted)
    Running(FakeReconciler(RIGHT), uevents).during(lambda: os.kill(os.getpid(), signal.SIGHUP), lambda: None)
    assert len(drains) < 100
