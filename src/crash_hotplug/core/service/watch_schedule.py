# SPDX-License-Identifier: MIT
"""When the watch service looks at the machine, and when it may reload.  Pure: the clock is passed in.

Level-triggered: an event only brings the next look forward, so it does not matter how many there were or whether some
were lost.  After the last event looks follow at growing distances until they are as far apart as the heartbeat.  That
is for what shows only later: memory is still in /proc/iomem when the uevents of its removal are sent
(``try_remove_memory()`` of mm/memory_hotplug.c), and a lock or a failure may pass.
"""

from __future__ import annotations

from collections.abc import Hashable

MAX_DELAY = 1.0
HEARTBEAT = 60.0
_FIRST_RELOAD_PAUSE = 30.0
_LONGEST_RELOAD_PAUSE = 3600.0
_FIRST_VERIFICATION = 3600.0
_VERIFICATION = 86400.0


class Schedule:
    """Tells when the next look is due.  All times are seconds of one monotonic clock."""

    def __init__(self, now: float, max_delay: float = MAX_DELAY, heartbeat: float = HEARTBEAT) -> None:
        """Begin with a look at once.

        :param max_delay: the first look after an event begins no later than this after it, or after the look that
            was under way
        :param heartbeat: how far looks are apart when nothing happens
        """
        self.due = now
        self.lead = 0.0
        """How long after the first event of a burst its first look is; less than *max_delay*."""
        self.max_delay = max_delay
        self._heartbeat = max(heartbeat, max_delay)
        self._gap = max_delay
        self._last_event: float | None = None
        self._began = now
        self._rest_until = now

    def event(self, now: float) -> None:
        """Take note that something came or went, or that events were lost."""
        self._last_event = now
        self._gap = self.max_delay
        self.due = min(self.due, max(now + min(self.lead, self.max_delay), self._rest_until))

    def look_now(self, now: float) -> None:
        """Look at once because a person asked for it."""
        self._gap = self.max_delay
        self.due = now

    def began(self, now: float) -> None:
        """Take note that a look began."""
        self._began = now

    def finished(self, now: float, has_news: bool) -> None:
        """Take note that the look ended.

        In a burst the next look waits for as long as this one took: a storm of events takes half a CPU at most.

        :param has_news: whether something changed, so that more may come; a failure that stays the same is no news
        """
        self._rest_until = now + min(now - self._began, self.max_delay)
        if has_news:
            self._gap = self.max_delay
        self.due = now + self._gap
        self._gap = min(2 * self._gap, self._heartbeat)

    def is_quiet(self, now: float) -> bool:
        """Whether the last burst of events is over."""
        return self._last_event is None or now - self._last_event >= self.max_delay


class ReloadGate:
    """Tells when a full reload, the last resort, may be tried: once for each state of the machine, not per event."""

    def __init__(self) -> None:
        """Nothing was reloaded yet."""
        self._done_for: Hashable = None
        self._not_before = float("-inf")
        self._pause = _FIRST_RELOAD_PAUSE

    def accept(self, state: Hashable) -> None:
        """Take the machine's *state* as one that needs no reload: the image was right, or loaded, while it was so."""
        self._done_for = state

    def why_not(self, now: float, state: Hashable, is_quiet: bool) -> str | None:
        """Return why no reload is tried now, for people; None where it may be."""
        if state == self._done_for:
            return "nothing changed since the image was loaded"
        if not is_quiet:
            return "events still come"
        if self.is_too_early(now):
            return "the last one failed, and the next is not due yet"
        return None

    def is_too_early(self, now: float) -> bool:
        """Whether the last reload failed not long enough ago."""
        return now < self._not_before

    def tried(self, now: float, state: Hashable, succeeded: bool) -> None:
        """Take note of a reload; one that failed is tried again at growing distances."""
        if succeeded:
            self.accept(state)
            self._pause = _FIRST_RELOAD_PAUSE
            return
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_RELOAD_PAUSE)


class VerificationSchedule:
    """Tells when the whole image is hashed: an hour after the start, then once a day.

    No event tells of a bit that flipped, or of a driver that wrote into the reserved region.  The first hour is left to
    the boot.
    """

    def __init__(self, now: float) -> None:
        """Begin; nothing is due yet."""
        self._due = now + _FIRST_VERIFICATION

    def is_due(self, now: float) -> bool:
        """Whether the image is to be hashed now."""
        return now >= self._due

    def done(self, now: float) -> None:
        """Take note that the image was hashed, or that this was tried."""
        self._due = now + _VERIFICATION
