"""The generic handler: bring a loaded crash image's header up to date after a CPU or memory event.

It is what ``crash_handle_hotplug_event()`` of kernel/crash_core.c is for Linux, over an interface instead of one
kernel's variables: the model and a live machine are two implementations of :class:`CrashImageMachine`.  What is
described, who may be waited for and how the header gets into the image is the policy's (handler_policies.py).

The handler is a generator of named steps: the model lets a machine panic between any two of them, a live machine
runs it to its end with :func:`run`.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, TypeVar

from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError, NoRoomError
from crash_hotplug.core.image import CrashImage, elfcorehdr_room
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.sizes import count


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
    """Nothing was told: a heartbeat, or the first look at a machine."""

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


class Step(NamedTuple):
    """One step that somebody took; a panic may come right after it."""

    name: str
    """What was done, for people."""
    seen: Hashable = None
    """What was read from the machine and will be used later: two runs are alike only where this is."""
    waits: bool = False
    """Nothing was done: somebody else holds what is needed."""


_Result = TypeVar("_Result")
Steps = Generator[Step, None, _Result]
"""Something that takes time: its steps, and in the end a result."""


def run(steps: Steps[_Result]) -> _Result:
    """Take all steps without a pause and return the result."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: _Result = stop.value
            return result


class ImageChangedError(CrashHotplugError):
    """Somebody else loaded or unloaded an image meanwhile: what was planned is void, and nothing was changed."""


class MixedImageError(CrashHotplugError):
    """Somebody else loaded an image at the very moment of the update: what is loaded now has to be loaded anew."""


class CrashImageMachine(Protocol):
    """A machine whose crash image can be updated."""

    def try_lock(self) -> bool:
        """Take the lock that keeps other updates and loads away; False where somebody has it."""

    def unlock(self) -> None:
        """Give the lock back."""

    def loaded_image(self) -> CrashImage | None:
        """Return the crash image that is loaded now, or None.

        :raise CannotTellError: it cannot be read
        """

    def why_not_updatable(self, image: CrashImage) -> str | None:
        """Return the reason, for people, why the header of *image* must not be replaced; None where it may be."""

    def read_machine(self) -> Machine:
        """Return the machine as it is now.

        :raise CannotTellError: it cannot be read
        """

    def replace_header(self, image: CrashImage, header: bytes) -> Steps[None]:
        """Put *header* in the place of the one in *image*; it fits.

        :raise ImageChangedError: *image* is loaded no more
        :raise MixedImageError: another image came in between; now a reload must follow
        :raise CrashHotplugError: it could not be done
        """

    def reload(self) -> Steps[None]:
        """Unload the image and load it anew, as the machine's own tools do.

        :raise CrashHotplugError: it could not be done
        """


class Method(Enum):
    """How a policy gets a new header into the image."""

    REPLACE = "replace the header"
    RELOAD = "unload and load"


class Policy(Protocol):
    """Which events matter, what the header describes, and what is done about a lock that is taken."""

    @property
    def name(self) -> str:
        """The name a person gives it."""

    @property
    def method(self) -> Method:
        """How the header gets into the image."""

    @property
    def waits_for_lock(self) -> bool:
        """Whether a taken lock is waited for; where not, the event is lost."""

    @property
    def always_writes(self) -> bool:
        """Whether a header is written even where it is the same as the loaded one."""

    def handles(self, event: Event) -> bool:
        """Whether *event* is looked at."""

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader | None:
        """Return the header that *machine* should have; None where this event cannot change it.

        :raise CrashHotplugError: it cannot be built
        """


class Outcome(str, Enum):
    """What came of an event."""

    UPDATED = "updated"
    UNCHANGED = "unchanged"
    RELOADED = "reloaded"
    IGNORED = "ignored"
    NOT_LOADED = "not loaded"
    LOCK_BUSY = "lock busy"
    REFUSED = "refused"
    NO_ROOM = "no room"
    CANNOT_TELL = "cannot tell"
    MIXED = "mixed"
    """What is loaded now may leave no dump, although its header is right (a mix of two images): only a reload helps."""
    FAILED = "failed"


@dataclass(frozen=True)
class Report:
    """What the handler did about one event."""

    event: Event
    outcome: Outcome
    sentence: str
    """The reason, for people."""


_RETRIES = 8
"""How often an image that changed under the handler is looked at again."""


def handle_event(machine: CrashImageMachine, policy: Policy, event: Event) -> Steps[Report]:
    """Bring the header up to date after *event* and say what was done.

    Errors raised on purpose become reports: a handler on a machine in trouble must not add to it.
    """
    if not policy.handles(event):
        return Report(event, Outcome.IGNORED, f"{policy.name} does nothing about {event.kind.value}")
    while not machine.try_lock():
        if not policy.waits_for_lock:
            yield Step("handler: lock is busy, event lost")
            return Report(event, Outcome.LOCK_BUSY, "the lock is taken: somebody else loads an image")
        yield Step("handler: waits for the lock", waits=True)
    try:
        yield Step("handler: lock taken")
        for _attempt in range(_RETRIES):
            try:
                return (yield from _update(machine, policy, event))
            except ImageChangedError as error:
                reason = str(error)
                yield Step("handler: image changed, looks again")
        return Report(event, Outcome.FAILED, reason)
    except CrashHotplugError as error:
        return Report(event, _outcome_of(error), str(error))
    finally:
        machine.unlock()


def _outcome_of(error: CrashHotplugError) -> Outcome:
    if isinstance(error, NoRoomError):
        return Outcome.NO_ROOM
    if isinstance(error, MixedImageError):
        return Outcome.MIXED
    return Outcome.CANNOT_TELL if isinstance(error, CannotTellError) else Outcome.FAILED


def _update(machine: CrashImageMachine, policy: Policy, event: Event) -> Steps[Report]:
    if policy.method is Method.RELOAD:
        yield from machine.reload()
        return Report(event, Outcome.RELOADED, "unloaded and loaded again")
    image = machine.loaded_image()
    yield Step("handler: image looked up", image)
    if image is None:
        return Report(event, Outcome.NOT_LOADED, "no crash image is loaded")
    reason = machine.why_not_updatable(image)
    if reason is not None:
        return Report(event, Outcome.REFUSED, reason)
    now = machine.read_machine()
    yield Step("handler: machine read", now)
    header = policy.header(now, image, event)
    if header is None:
        return Report(event, Outcome.UNCHANGED, "the header describes every possible CPU already")
    data = header.to_bytes()
    if image.elfcorehdr.startswith(data) and not policy.always_writes:
        return Report(event, Outcome.UNCHANGED, "the header is right as it is")
    _check_room(image, now, header)
    yield from machine.replace_header(image, data)
    return Report(event, Outcome.UPDATED, f"{count(len(header.program_headers), 'entry', 'entries')} written")


def _check_room(image: CrashImage, machine: Machine, header: ElfCoreHeader) -> None:
    """Check the capacity before anything is replaced: a header that does not fit leaves the old one whole.

    :raise NoRoomError: it does not fit
    :raise CannotTellError: nothing says how much room there is
    """
    room = elfcorehdr_room(image, machine.crashkernel, None)
    if room is None:
        raise CannotTellError("how much room the loaded elfcorehdr has cannot be told")
    if header.size > room:
        raise NoRoomError(f"the new elfcorehdr has {header.size} bytes, its segment {room}: the old one stays")
