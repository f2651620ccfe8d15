"""Notifier chains: who is told what, in the kernel's order (kernel/notifier.c)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from crash_hotplug.core.steps import Steps

_What = TypeVar("_What")
Callback = Callable[[_What], Steps[None]]


@dataclass(frozen=True)
class NotifierBlock(Generic[_What]):
    """One subscriber of a chain (``struct notifier_block``)."""

    name: str
    callback: Callback[_What]
    priority: int = 0
    """Higher ones are called first; equal ones in the order of their registration."""


@dataclass
class NotifierChain(Generic[_What]):
    """A blocking notifier chain, such as the memory notifiers' or the callbacks of one CPU hot-plug state."""

    blocks: list[NotifierBlock[_What]] = field(default_factory=list)

    def register(self, name: str, callback: Callback[_What], priority: int = 0) -> None:
        """Add a subscriber behind those of the same or a higher priority."""
        at = next((i for i, block in enumerate(self.blocks) if block.priority < priority), len(self.blocks))
        self.blocks.insert(at, NotifierBlock(name, callback, priority))

    def call(self, what: _What) -> Steps[None]:
        """Tell every subscriber, one after the other."""
        for block in self.blocks:
            yield from block.callback(what)
