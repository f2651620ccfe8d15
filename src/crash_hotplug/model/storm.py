"""A storm of memory blocks in virtual time: when is the crash image accurate, stale, or not there at all?

A discrete-event simulation.  The guest plugs DIMM after DIMM; a DIMM's RAM is in /proc/iomem at once, its memory
blocks go online one by one.  A policy (storm_policies.py) answers these events.  Nothing here looks at a clock.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from enum import Enum
from typing import Callable, NamedTuple, Protocol

from crash_hotplug.core.errors import InputError
from crash_hotplug.model.storm_costs import StormCosts

Action = Callable[[], None]

MOST_BLOCKS = 1 << 17
"""The most memory blocks accepted in one storm: 16 TiB in blocks of 128 MiB."""


class ImageState(Enum):
    """What a panic at this moment finds."""

    ACCURATE = "accurate"
    """An image that describes all RAM in /proc/iomem."""
    STALE = "stale"
    """An image that describes less."""
    NO_IMAGE = "without an image"
    """None: no dump."""


class Period(NamedTuple):
    """A stretch of time [start, end) in one state, in virtual seconds since the storm began."""

    start: float
    end: float
    state: ImageState


@dataclass(frozen=True)
class StormShape:
    """What is plugged."""

    blocks: int
    """Memory blocks, all DIMMs together."""
    blocks_per_dimm: int
    """Memory blocks in one DIMM; the last DIMM may have fewer."""

    def __post_init__(self) -> None:
        """Check the counts.

        :raise InputError: a count is not positive, or too large
        """
        if not 1 <= self.blocks <= MOST_BLOCKS:
            raise InputError(f"a storm has 1 to {MOST_BLOCKS} memory blocks, not {self.blocks}")
        if self.blocks_per_dimm < 1:
            raise InputError(f"a DIMM has at least one memory block, not {self.blocks_per_dimm}")

    @property
    def dimms(self) -> int:
        """How many DIMMs hold the blocks."""
        return -(-self.blocks // self.blocks_per_dimm)


@dataclass
class Work:
    """What a policy did, counted while the storm runs."""

    replacements: int = 0
    """Times that the image or its header was replaced: reloads or updates."""
    busy: float = 0.0
    """Seconds spent in reloads, updates and looks; waiting is not counted."""


class StormPolicy(Protocol):
    """How a system keeps its crash image up to date."""

    name: str
    title: str
    """For a table or a picture; says the versions it stands for."""
    work: Work

    def on_plugged(self) -> None:
        """A DIMM was added: its RAM is in /proc/iomem, its blocks have their "add" uevents."""

    def on_online(self) -> float:
        """One memory block went online.

        :return: seconds by which the policy holds up the guest before its next event
        """


class Schedule:
    """Virtual time and what is to happen when."""

    def __init__(self) -> None:
        """Begin at 0 with nothing to do."""
        self.now = 0.0
        self._order = 0
        self._heap: list[tuple[float, int, Action]] = []
        self._cancelled: set[int] = set()

    def after(self, seconds: float, action: Action) -> int:
        """Do *action* that many seconds from now, behind everything planned for the same moment.

        :return: a ticket for :meth:`cancel`
        """
        self._order += 1
        heapq.heappush(self._heap, (self.now + seconds, self._order, action))
        return self._order

    def cancel(self, ticket: int) -> None:
        """Forget something planned and not done yet; time does not go on for it."""
        self._cancelled.add(ticket)

    def run(self) -> None:
        """Go on until nothing is left to do."""
        while self._heap:
            time, ticket, action = heapq.heappop(self._heap)
            if ticket not in self._cancelled:
                self.now = time
                action()


class StormGuest:
    """The guest: its memory, its crash image and its udev queue."""

    def __init__(self, shape: StormShape, costs: StormCosts) -> None:
        """Begin with an accurate image and nothing plugged."""
        self.shape = shape
        self.costs = costs
        self.schedule = Schedule()
        self.plugged = 0
        """Blocks in /proc/iomem."""
        self.last_event = 0.0
        self._online = 0
        self._described = 0
        self._loaded = True
        self._udev_waiters: list[Action] = []
        self._changes: list[tuple[float, ImageState]] = []
        self._note_state()

    def run(self, policy: StormPolicy) -> None:
        """Let the whole storm pass, and all work that follows from it."""
        self.schedule.after(self.costs.dimm.value, lambda: self._plug(policy))
        self.schedule.run()

    def remove_image(self) -> None:
        """From now on no image is loaded."""
        self._loaded = False
        self._note_state()

    def install_image(self, described: int) -> None:
        """From now on an image is loaded that describes this many of the plugged blocks."""
        self._loaded = True
        self._described = described
        self._note_state()

    @property
    def state(self) -> ImageState:
        """What a panic now would find."""
        if not self._loaded:
            return ImageState.NO_IMAGE
        return ImageState.ACCURATE if self._described == self.plugged else ImageState.STALE

    def when_udev_is_idle(self, action: Action) -> None:
        """Do *action* as soon as udev has no event left: between the last block of a DIMM and the next DIMM."""
        if self._online == self.plugged:
            action()
        else:
            self._udev_waiters.append(action)

    def forget_udev_waiter(self, action: Action) -> None:
        """Take back :meth:`when_udev_is_idle`, where that is still waiting."""
        if action in self._udev_waiters:
            self._udev_waiters.remove(action)

    def periods(self) -> tuple[Period, ...]:
        """Return the states from 0 to now, without gaps; neighbours differ."""
        ends = [time for time, _ in self._changes[1:]] + [self.schedule.now]
        return tuple(Period(start, end, state) for (start, state), end in zip(self._changes, ends) if end > start)

    def _plug(self, policy: StormPolicy) -> None:
        self.plugged = min(self.plugged + self.shape.blocks_per_dimm, self.shape.blocks)
        self._note_state()
        policy.on_plugged()
        self.schedule.after(self.costs.event.value, lambda: self._bring_online(policy))

    def _bring_online(self, policy: StormPolicy) -> None:
        self._online += 1
        self.last_event = self.schedule.now
        delay = policy.on_online()
        if self._online < self.plugged:
            self.schedule.after(delay + self.costs.event.value, lambda: self._bring_online(policy))
            return
        waiters, self._udev_waiters = self._udev_waiters, []
        for waiter in waiters:
            waiter()
        if self.plugged < self.shape.blocks:
            self.schedule.after(delay + self.costs.dimm.value, lambda: self._plug(policy))

    def _note_state(self) -> None:
        state = self.state
        if self._changes and self._changes[-1][0] == self.schedule.now:
            self._changes.pop()  # it held for no time at all
        if not self._changes or self._changes[-1][1] is not state:
            self._changes.append((self.schedule.now, state))


@dataclass(frozen=True)
class StormOutcome:
    """What became of the crash image under one policy.  All times are virtual seconds since the storm began."""

    policy: str
    title: str
    replacements: int
    """Reloads or updates done."""
    busy: float
    """Seconds spent in them."""
    last_event: float
    """When the last block went online."""
    end: float
    """When the last event was past and all work was done."""
    periods: tuple[Period, ...]
    """The states from 0 to *end*."""
    final_state: ImageState

    def time_in(self, state: ImageState) -> float:
        """Return the seconds spent in *state*, from 0 to *end*."""
        return sum(period.end - period.start for period in self.periods if period.state is state)

    def share_of(self, state: ImageState) -> float:
        """Return the chance, 0 to 1, that a panic at a random moment between 0 and *end* finds *state*."""
        return self.time_in(state) / self.end if self.end else 0.0

    @property
    def longest_without_image(self) -> float:
        """The longest stretch of seconds without an image; reloads that follow each other at once are one."""
        return max((p.end - p.start for p in self.periods if p.state is ImageState.NO_IMAGE), default=0.0)

    @property
    def accurate_after_last_event(self) -> float | None:
        """Seconds from the last event until the image is accurate for good; None if it never is."""
        if self.final_state is not ImageState.ACCURATE:
            return None
        bad = [period.end for period in self.periods if period.state is not ImageState.ACCURATE]
        return max(0.0, max(bad, default=0.0) - self.last_event)


def simulate_storm(
    shape: StormShape, costs: StormCosts, make_policy: Callable[[StormGuest], StormPolicy]
) -> StormOutcome:
    """Run one storm under one policy.

    :param make_policy: makes the policy for this guest, such as a class of storm_policies.py
    """
    guest = StormGuest(shape, costs)
    policy = make_policy(guest)
    guest.run(policy)
    periods = guest.periods()
    return StormOutcome(
        policy=policy.name,
        title=policy.title,
        replacements=policy.work.replacements,
        busy=policy.work.busy,
        last_event=guest.last_event,
        end=guest.schedule.now,
        periods=periods,
        final_state=guest.state,
    )
