# SPDX-License-Identifier: MIT
"""Hot-plug events of a model machine, and the reports of their handlers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.ranges import Range


class EventKind(str, Enum):
    """Kind of an event, in the words of the kernel's notifiers and uevents."""

    CPU_ADD = "cpu-add"
    CPU_ONLINE = "cpu-online"
    CPU_OFFLINE = "cpu-offline"
    CPU_REMOVE = "cpu-remove"
    MEMORY_ADD = "memory-add"
    MEMORY_ONLINE = "memory-online"
    MEMORY_OFFLINE = "memory-offline"
    MEMORY_REMOVE = "memory-remove"
    LOOK = "look"
    """No event: a heartbeat or the start of the service."""

    @property
    def is_cpu(self) -> bool:
        """Whether the event is about a CPU."""
        return self.value.startswith("cpu-")


@dataclass(frozen=True)
class Event:
    """One hot-plug event."""

    kind: EventKind
    cpu: int | None = None
    """The CPU's number."""
    memory: Range | None = None
    """The memory block's physical range."""


class Handled(NamedTuple):
    """The report of a handler about one event."""

    event: Event
    outcome: Outcome
    sentence: str
    """The reason, for people."""
