# SPDX-License-Identifier: MIT
"""The watch service's loop: waits for uevents, signals and the schedule, looks, and tells what came of it.

One thread and one poll(2): between looks the process sleeps until the kernel has something for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import select
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Callable

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.watch_record import Look, WatchRecord
from crash_hotplug.core.service.watch_schedule import Schedule
from crash_hotplug.core.sizes import count
from crash_hotplug.linux.atomic_file import write_atomically
from crash_hotplug.linux.service.reconciler import Reconciler
from crash_hotplug.linux.service.sd_notify import Notifier
from crash_hotplug.linux.service.uevents import UeventSocket

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
"""Priorities of syslog(3)."""
Say = Callable[[int, str], None]
"""Takes a priority and a line for the log."""
_NAMED = 4
"""Devices of a burst that are named in the log."""
_METRICS_SECONDS = 1.0
"""In a burst the metrics file is not written more often."""


class Service:
    """Watches the machine until it is told to stop."""

    def __init__(
        self,
        reconciler: Reconciler,
        uevents: UeventSocket,
        schedule: Schedule,
        record: WatchRecord,
        say: Say,
        notifier: Notifier,
        metrics_file: str | None = None,
    ) -> None:
        """Take the parts; nothing happens yet."""
        self._reconciler, self._uevents, self._schedule, self._record = reconciler, uevents, schedule, record
        self._say, self._notifier, self._metrics_file = say, notifier, metrics_file
        self._stops = self._reloads = False
        self._burst: Counter[str] = Counter()
        """Events since the last look, each ``DEVICE ACTION``, in the order in which they came."""
        self._cause = "start"
        self._metrics_written = float("-inf")
        self._metrics_error = ""

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT; SIGHUP reads everything anew at once."""
        with _signals(self._on_signal) as wakeup:
            poller = select.poll()
            poller.register(self._uevents.fileno(), select.POLLIN)
            poller.register(wakeup.fileno(), select.POLLIN)
            self._look()
            self._notifier.ready()
            while not self._stops:
                poller.poll(self._sleep_milliseconds())
                with contextlib.suppress(BlockingIOError):
                    wakeup.recv(64)
                self._take_events()
                self._reload_if_asked()
                if not self._stops and time.monotonic() >= self._schedule.due:
                    self._look()
                self._notifier.alive()
        self._notifier.stopping()
        self._say(INFO, "stopped; the loaded image stays as it is")

    def _sleep_milliseconds(self) -> float:
        seconds = self._schedule.due - time.monotonic()
        if self._notifier.watchdog_seconds is not None:
            seconds = min(seconds, self._notifier.watchdog_seconds / 2)
        return max(0.0, 1000 * seconds + 1)

    def _take_events(self) -> None:
        drained = self._uevents.drain()
        for event in drained.events:
            self._burst[f"{event.device} {event.action}"] += 1
            self._record.events[event.subsystem] += 1
        if drained.ignored:
            if not self._record.ignored:
                self._say(WARNING, "a uevent that does not come from the kernel was ignored (the metrics count them)")
            self._record.ignored += drained.ignored
        if drained.overrun:
            self._record.overruns += 1
            self._say(NOTICE, "uevents were lost (the socket's buffer overran): everything is read again")
        if drained.events or drained.overrun:
            self._cause = "event"
            self._schedule.event(time.monotonic())

    def _reload_if_asked(self) -> None:
        if self._reloads:
            self._reloads, self._cause = False, "signal"
            self._notifier.reloading()
            self._reconciler.forget()
            self._schedule.look_now(time.monotonic())
            self._look()
            self._notifier.ready()

    def _look(self) -> None:
        cause, self._cause = self._cause, "timer"
        began = time.monotonic()
        self._schedule.began(began)
        last = self._record.last
        look = self._reconciler.look(self._schedule.is_quiet(began))
        ended = time.monotonic()
        self._schedule.finished(ended, has_news=look.is_news_after(last))
        self._schedule.lead = self._schedule.max_delay / 2 if look.by_kernel else 0.0
        self._record.add(look, cause, time.time(), ended - began)
        self._tell(look, last, cause, ended - began)
        self._burst.clear()
        self._write_metrics(ended)
        if not look.was_cheap:
            _give_memory_back()

    def _tell(self, look: Look, last: Look | None, cause: str, seconds: float) -> None:
        """Say what is new: one line for the events and what was done about them, one for a verdict that changed."""
        if look.external_change:
            self._say(NOTICE, look.external_change)
        if look.verification is not None:
            is_whole = look.verification.outcome is Outcome.UNCHANGED
            self._say(INFO if is_whole else WARNING, f"daily verification: {look.verification.sentence}")
        call = f", {look.kexec_seconds * 1e3:.1f} ms of it without an image, at most" if look.kexec_seconds else ""
        took = f"({1e3 * seconds:.0f} ms{call})"
        done = f"{look.strategy}: {look.outcome.value}: {look.action}" if look.action else "nothing to do"
        if self._burst:
            done = f"{_listed(self._burst)}: {done}"
        is_repeated = look.failed and last is not None and last.action == look.action
        if self._burst or (look.action and not is_repeated):
            self._say(WARNING if look.failed else NOTICE if look.action else INFO, f"{done} {took}")
        if cause in ("start", "signal") or last is None or (look.verdict, look.sentence) != (
            last.verdict, last.sentence
        ):  # fmt: skip
            self._say(_PRIORITIES[look.verdict], f"{look.verdict.value}: {look.sentence}")
        self._notifier.status(self._record.status_line())

    def _write_metrics(self, now: float) -> None:
        is_burst = now - self._metrics_written < _METRICS_SECONDS and not self._schedule.is_quiet(now)
        if self._metrics_file is None or is_burst:
            return
        self._metrics_written = now
        try:
            write_metrics(self._metrics_file, self._record)
        except CrashHotplugError as error:
            if str(error) != self._metrics_error:
                self._say(WARNING, f"{error}; tried again at each look")
            self._metrics_error = str(error)
            return
        if self._metrics_error:
            self._say(INFO, f"{self._metrics_file} is written again")
            self._metrics_error = ""

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._reloads = True
        else:
            self._stops = True


def write_metrics(path: str, record: WatchRecord) -> None:
    """Write the metrics for node_exporter's textfile collector, which runs as another user and reads ``*.prom``.

    :raise InputError: the file cannot be written; the former one stays
    """
    write_atomically(path, record.metrics().encode(), 0o644)


_PRIORITIES = {
    Verdict.ACCURATE: INFO,
    Verdict.NOT_ACCURATE: ERROR,
    Verdict.NO_IMAGE: WARNING,
    Verdict.CANNOT_TELL: WARNING,
}


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[socket.socket]:
    """Handle SIGTERM, SIGINT and SIGHUP; what is yielded becomes readable when one came."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    readable, writable = socket.socketpair()
    with readable, writable:
        readable.setblocking(False)
        writable.setblocking(False)
        before = {number: signal.signal(number, handler) for number in numbers}
        wakeup_before = signal.set_wakeup_fd(writable.fileno(), warn_on_full_buffer=False)
        try:
            yield readable
        finally:
            signal.set_wakeup_fd(wakeup_before)
            for number, old in before.items():
                signal.signal(number, old)


def _give_memory_back() -> None:
    """Return what a look freed to the kernel: its symbols and types are megabytes, and glibc would keep them."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _listed(burst: Counter[str]) -> str:
    """Return what happened: ``memory40 add, memory40 online and 254 more events``."""
    named = ", ".join(list(burst)[:_NAMED])
    others = sum(burst.values()) - min(len(burst), _NAMED)
    return f"{named} and {count(others, 'more event')}" if others else named
