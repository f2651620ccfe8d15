# SPDX-License-Identifier: MIT
"""What the watch service knows: the last look, and counters since it started.  Out of it come metrics and status."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.metrics import Family, exposition
from crash_hotplug.core.sizes import count

_PREFIX = "crash_hotplug"
_VERIFIED = {Outcome.UNCHANGED: "whole", Outcome.TORN: "broken"}


@dataclass(frozen=True)
class Look:
    """What one look at the machine came to."""

    verdict: Verdict
    """Whether a panic after it would be dumped completely."""
    sentence: str
    """The verdict's reason, for people."""
    strategy: str = "none"
    """What was done about the header: ``none``, ``in-place`` or ``reload``."""
    outcome: Outcome = Outcome.UNCHANGED
    """What came of that."""
    action: str = ""
    """What was done and why, for people; empty where nothing was."""
    kexec_seconds: float = 0.0
    """How long kexec_load took: at most as long there was no image."""
    external_change: str = ""
    """What another process did to the image since the last look, for people; empty where nothing was noticed."""
    room_left: int | None = None
    """CPUs or memory ranges that the header may still grow by."""
    by_kernel: bool = False
    """Whether the kernel itself updates this image."""
    was_cheap: bool = False
    """Whether nothing had changed, so that not everything was read."""
    verification: Report | None = None
    """What came of hashing the whole image; None where this look did not."""

    @property
    def failed(self) -> bool:
        """Whether something was tried that did not succeed."""
        return bool(self.action) and self.outcome not in (Outcome.UPDATED, Outcome.UNCHANGED, Outcome.RELOADED)

    @property
    def changed_image(self) -> bool:
        """Whether the loaded image is another one than before."""
        return self.outcome in (Outcome.UPDATED, Outcome.RELOADED)

    def is_news_after(self, last: Look | None) -> bool:
        """Whether something changed since the look before; a failure that stays the same is no news."""
        if last is None or self.external_change or self.changed_image:
            return True
        return self._gist() != last._gist()

    def _gist(self) -> tuple[object, ...]:
        return self.verdict, self.sentence, self.failed and self.action


@dataclass
class WatchRecord:
    """Counters since the service started.  Times are seconds since the epoch."""

    version: str
    started: float
    events: Counter[str] = field(default_factory=Counter)
    """Uevents from the kernel, by subsystem."""
    ignored: int = 0
    """Uevents that did not come from the kernel, or were malformed."""
    overruns: int = 0
    """How often the socket's buffer overran, so that events were lost."""
    looks: Counter[str] = field(default_factory=Counter)
    """Looks by their cause."""
    updates: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Updates by strategy and result."""
    external_changes: int = 0
    """How often another process loaded or unloaded an image."""
    last: Look | None = None
    last_look: float = 0.0
    last_accurate: float = 0.0
    last_update: float = 0.0
    last_update_seconds: float = 0.0
    """How long the last look took that changed something."""
    last_kexec_seconds: float = 0.0
    verifications: Counter[str] = field(default_factory=Counter)
    """Verifications of the whole image by result, a label of the metrics."""
    last_verified: float = 0.0
    """When the digest was last seen to fit the whole image."""
    look_seconds: float = 0.0
    """Duration of all looks together."""

    def add(self, look: Look, cause: str, now: float, seconds: float) -> None:
        """Add a look that ended *now* and took *seconds*."""
        self.last, self.last_look = look, now
        self.looks[cause] += 1
        self.look_seconds += seconds
        self.external_changes += bool(look.external_change)
        if look.verdict is Verdict.ACCURATE:
            self.last_accurate = now
        if look.verification is not None:
            outcome = look.verification.outcome
            self.verifications[_VERIFIED.get(outcome, "unknown")] += 1
            if outcome is Outcome.UNCHANGED:
                self.last_verified = now
        if look.strategy != "none":
            self.updates[look.strategy, look.outcome.value] += 1
            self.last_update, self.last_update_seconds = now, seconds
            self.last_kexec_seconds = look.kexec_seconds

    def status_line(self) -> str:
        """Return one line for ``systemctl status``."""
        if self.last is None:
            return "first look"
        updates = sum(number for (_, result), number in self.updates.items() if result in ("updated", "reloaded"))
        done = f"{count(updates, 'update')}, {count(sum(self.events.values()), 'event')}"
        return f"{self.last.verdict.value}: {self.last.sentence} ({done})"

    def metrics(self) -> str:
        """Return what the textfile collector reads."""
        return exposition([*self._verdict_families(), *self._counters()])

    def _verdict_families(self) -> list[Family]:
        last = self.last
        if last is None:
            return []
        verdicts: list[tuple[dict[str, str], float]] = [
            ({"verdict": verdict.value}, verdict is last.verdict) for verdict in Verdict
        ]
        families = [
            _gauge("accurate", "Whether a panic now would be dumped completely.", last.verdict is Verdict.ACCURATE),
            Family(f"{_PREFIX}_verdict", "gauge", "The verdict of the last look: 1 for the one that holds.", verdicts),
            _gauge("last_look_timestamp_seconds", "When the machine was last looked at.", self.last_look),
        ]
        if self.last_accurate:
            families.append(
                _gauge("last_accurate_timestamp_seconds", "When the image was last seen accurate.", self.last_accurate)
            )
        if last.room_left is not None:
            families.append(
                _gauge("room_left_entries", "CPUs or memory ranges the header may still grow by.", last.room_left)
            )
        return families

    def _counters(self) -> list[Family]:
        updates = [({"strategy": s, "result": r}, float(n)) for (s, r), n in sorted(self.updates.items())]
        events = [({"subsystem": name}, float(self.events[name])) for name in ("cpu", "memory")]
        looks = [({"cause": cause}, float(number)) for cause, number in sorted(self.looks.items())]
        families = [
            Family(f"{_PREFIX}_build_info", "gauge", "The running version.", [({"version": self.version}, 1.0)]),
            _gauge("start_timestamp_seconds", "When the service started.", self.started),
            Family(
                f"{_PREFIX}_updates_total", "counter", "Attempts to correct the header, by way and result.", updates
            ),
            Family(f"{_PREFIX}_uevents_total", "counter", "CPU and memory uevents from the kernel.", events),
            _counter("uevents_ignored_total", "Uevents that did not come from the kernel.", self.ignored),
            _counter("uevent_overruns_total", "Times that uevents were lost; a look followed.", self.overruns),
            Family(f"{_PREFIX}_looks_total", "counter", "Looks at the machine, by cause.", looks),
            _counter("look_seconds_total", "Time spent in looks, updates included.", self.look_seconds),
            _counter(
                "foreign_changes_total",
                "Times that another process loaded or unloaded an image.",
                self.external_changes,
            ),
        ]
        verifications = [({"result": result}, float(number)) for result, number in sorted(self.verifications.items())]
        families.append(
            Family(f"{_PREFIX}_verifications_total", "counter", "Digests of the whole image, by result.", verifications)
        )
        if self.last_verified:
            families.append(
                _gauge("last_verified_timestamp_seconds", "When the digest was last seen to fit.", self.last_verified)
            )
        if self.last_update:
            families += [
                _gauge("last_update_timestamp_seconds", "When a correction was last tried.", self.last_update),
                _gauge(
                    "last_update_duration_seconds", "How long that took, reading included.", self.last_update_seconds
                ),
                _gauge("last_kexec_load_seconds", "How long its kexec_load took.", self.last_kexec_seconds),
            ]
        return families


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(f"{_PREFIX}_{name}", "gauge", text, [({}, float(value))])


def _counter(name: str, text: str, value: float) -> Family:
    return Family(f"{_PREFIX}_{name}", "counter", text, [({}, float(value))])
