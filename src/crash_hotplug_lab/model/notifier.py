# SPDX-License-Identifier: MIT
"""Notifier chains, which call their subscribers in the kernel's order (kernel/notifier.c)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from crash_hotplug.core.steps import Steps

_Data = TypeVar("_Data")
Callback = Callable[[_Data], Steps[None]]


@dataclass(frozen=True)
class NotifierBlock(Generic[_Data]):
    """One subscriber of a chain (``struct notifier_block``)."""

    name: str
    callback: Callback[_Data]
    priority: int = 0
    """Callbacks of a higher priority are called first, those of the same priority in the order of registration."""


@dataclass
class NotifierChain(Generic[_Data]):
    """A blocking notifier chain, such as the memory notifiers' or the callbacks of one CPU hot-plug state."""

    blocks: list[NotifierBlock[_Data]] = field(default_factory=list)

    def register(self, name: str, callback: Callback[_Data], priority: int = 0) -> None:
        """Add a subscriber after those of the same or a higher priority."""
        at = next((i for i, block in enumerate(self.blocks) if block.priority < priority), len(self.blocks))
        self.blocks.insert(at, NotifierBlock(name, callback, priority))

    def call(self, data: _Data) -> Steps[None]:
        """Call the subscribers one after the other."""
        for block in self.blocks:
            yield from block.callback(data)
