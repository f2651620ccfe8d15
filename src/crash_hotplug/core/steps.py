# SPDX-License-Identifier: MIT
"""Work that takes time, as a generator of named steps.

The model lets a machine panic, or another actor work, between any two steps; a live machine takes them without a
pause.  Both run the same generators.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.records import NamedTuple


class Step(NamedTuple):
    """One completed step."""

    name: str
    """The action, for people."""
    seen: Hashable = None
    """The decision or the result of the step, for an observer of the steps."""
    waits: bool = False
    """Whether the step only waited, because another process holds the lock or the kernel's load is busy."""


Say = Callable[[str], None]
"""Called with the name of each action that takes longer than a moment, for people."""


def say_nothing(_what: str) -> None:
    """Print nothing: the default of every :data:`Say`."""


TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _Result = TypeVar("_Result")
    Steps = Generator[Step, None, _Result]
    """The steps, and in the end a result."""
else:
    Steps = Generator


class OutOfPatienceError(CrashHotplugError):
    """Raised inside the generator, at a step that waits, when the caller stops waiting."""


def run(steps: Steps[_Result], may_wait: Callable[[], bool] = lambda: True) -> _Result:
    """Take all steps and return the result.

    :param may_wait: called at each step that waits; pauses, or returns False to end the wait
    """
    try:
        step = next(steps)
        while True:
            if step.waits and not may_wait():
                step = steps.throw(OutOfPatienceError("waited for too long"))
            else:
                step = next(steps)
    except StopIteration as stop:
        result: _Result = stop.value
        return result
