"""Hot-plug events of a model machine, and what a handler came to about one."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.ranges import Range
from crash_hotplug.core.update import Outcome


class EventKind(str, Enum):
    """What happened, in the words of the kernel's notifiers and uevents."""

    CPU_ADD = "cpu-add"
    CPU_ONLINE = "cpu-online"
    CPU_OFFLINE = "cpu-offline"
    CPU_REMOVE = "cpu-remove"
    MEMORY_ADD = "memory-add"
    MEMORY_ONLINE = "memory-online"
    MEMORY_OFFLINE = "memory-offline"
    MEMORY_REMOVE = "memory-remove"
    LOOK = "look"
    """No event: a heartbeat of the service, or its first look."""

    @property
    def is_cpu(self) -> bool:
        """Whether a CPU came or went."""
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
    """What a handler came to about one event."""

    event: Event
    outcome: Outcome
    sentence: str
    """The reason, for people."""
