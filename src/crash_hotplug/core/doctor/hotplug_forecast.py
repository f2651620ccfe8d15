"""What will become of the loaded crash image when a CPU or memory comes or goes: who reacts, and does it work?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.doctor.udev_rules import Start, UEvent
from crash_hotplug.core.doctor.unit_file import Sandbox

SERVICE = "crash-hotplug.service"
CLAIMS_DIMMS = (
    "the loaded capture kernel takes DIMMs for its own memory (it lacks acpi_no_memhotplug), so a dump lacks them"
)


class Change(Enum):
    """What may happen to the machine, with the subsystem and the actions of the events that it brings."""

    CPU_ADDED = ("added CPUs", "cpu", ("add", "online"))
    CPU_REMOVED = ("removed CPUs", "cpu", ("offline", "remove"))
    MEMORY_ADDED = ("added memory", "memory", ("add", "online"))
    MEMORY_REMOVED = ("removed memory", "memory", ("offline", "remove"))

    def __init__(self, label: str, subsystem: str, actions: tuple[str, ...]) -> None:
        """Take the label for people, the subsystem, and its actions in the order in which they come."""
        self.label = label
        self.subsystem = subsystem
        self.actions = actions

    @property
    def events(self) -> tuple[UEvent, ...]:
        """The events, in order."""
        return tuple(UEvent(self.subsystem, action) for action in self.actions)


class RuleStart(NamedTuple):
    """A reload that a rules file starts."""

    path: str
    start: Start


@dataclass(frozen=True)
class Situation:
    """All that the forecast depends on.  None means that it cannot be told."""

    image_loaded: bool | None
    kernel_updates: Mapping[str, bool | None]
    """By subsystem: whether the kernel itself updates this image; None on kernels that never do."""
    describes_all_cpus: bool | None
    """Whether the header describes every possible CPU, so that no CPU's event changes anything."""
    service_active: bool | None
    in_place: bool | None
    """Whether the service can update the image in place."""
    in_place_reason: str | None
    """Why it cannot, or why that cannot be told."""
    nothing_loads: str | None
    """What forbids to load any image, so that a reload fails as well; None where nothing does."""
    reload_tool: str | None
    """The distribution's own way to load the image again; None where there is none."""
    reloads: Mapping[UEvent, Sequence[RuleStart]]
    """The reloads that udev's rules start, by event."""
    rules_known: bool
    """False where a saved tree holds no rules files at all."""
    sandbox: Sandbox | None
    """What systemd-udevd's programs may do; None where its unit is not known."""
    active_units: Mapping[str, bool | None]
    """For each unit that a rule asks for: is it active?"""
    capture_kernel_claims_dimms: bool | None
    """Whether the loaded capture kernel would take hot-added DIMMs for its own memory (docs/elfcorehdr.md)."""


class Outcome(NamedTuple):
    """What one change comes to."""

    change: Change
    is_handled: bool | None
    sentence: str


def forecast(situation: Situation) -> list[Outcome]:
    """Tell for each change what it comes to."""
    outcomes = [Outcome(change, *_outcome(situation, change)) for change in Change]
    return [_as_dumped(situation, outcome) for outcome in outcomes]


def _as_dumped(situation: Situation, outcome: Outcome) -> Outcome:
    """A right header is not enough for memory that the capture kernel makes its own: reading it fails there."""
    claimed = situation.capture_kernel_claims_dimms and outcome.change is Change.MEMORY_ADDED
    if not claimed or outcome.is_handled is False:
        return outcome
    sentence = f"{outcome.sentence}; but {CLAIMS_DIMMS}"
    return Outcome(outcome.change, False, sentence)


def overall(situation: Situation, outcomes: Sequence[Outcome]) -> bool | None:
    """Whether the next hot-plug will be handled, whatever it is; None where that cannot be told."""
    if situation.image_loaded is None:
        return None
    if any(outcome.is_handled is False for outcome in outcomes):
        return False
    if any(outcome.is_handled is None for outcome in outcomes):
        return None
    return True


def working_reloads(situation: Situation, change: Change) -> tuple[list[RuleStart], list[str]]:
    """Return the reloads that *change* starts and that work, and sentences on those that do not, or may not."""
    works: list[RuleStart] = []
    doubts: list[str] = []
    for event in change.events:
        for found in situation.reloads.get(event, ()):
            doubt = _why_not(situation, found)
            if doubt is None:
                works.append(found)
            elif doubt not in doubts:
                doubts.append(doubt)
    return works, doubts


def _outcome(situation: Situation, change: Change) -> tuple[bool | None, str]:
    if change.subsystem == "cpu" and situation.describes_all_cpus:
        return True, "the header describes every possible CPU: nothing has to change"
    if situation.nothing_loads is None and situation.service_active:
        return _by_service(situation, change)
    works, doubts = working_reloads(situation, change)
    if situation.kernel_updates.get(change.subsystem) and (change is not Change.MEMORY_REMOVED or not works):
        return _by_kernel(change)
    if situation.nothing_loads is not None:
        return False, f"nothing can update the header: {situation.nothing_loads}"
    if works:
        return True, f"udev reloads the whole image ({works[0].path}): no image for about a second each time"
    return _by_doubtful_reload(situation, change, doubts) if doubts else _by_nobody(situation)


def _by_doubtful_reload(situation: Situation, change: Change, doubts: list[str]) -> tuple[bool | None, str]:
    started = [found for event in change.events for found in situation.reloads.get(event, ())]
    unsure = any(_may_work(situation, found) for found in started)
    return (None if unsure else False), "; ".join(doubts)


def _by_nobody(situation: Situation) -> tuple[bool | None, str]:
    if not situation.rules_known:
        return None, "this saved tree holds none of udev's rules files"
    if situation.service_active is None:
        return None, f"no udev rule reacts, and whether {SERVICE} is active cannot be told"
    return False, f"nothing reacts: neither the kernel, nor a udev rule, nor {SERVICE}"


def _by_service(situation: Situation, change: Change) -> tuple[bool | None, str]:
    kernel = situation.kernel_updates.get(change.subsystem)
    also = _udev_as_well(situation, change)
    if kernel and change is not Change.MEMORY_REMOVED:
        return True, f"the kernel updates the header, {SERVICE} checks it{also}"
    if situation.in_place is not False:
        repairs = "takes it out of the header in place" if kernel else "updates the header in place"
        return True, f"{SERVICE} {repairs}{also}"
    if situation.reload_tool is not None:
        return True, f"{SERVICE} has the image reloaded ({situation.reload_tool}): {situation.in_place_reason}"
    return False, f"{SERVICE} can neither update the image in place ({situation.in_place_reason}) nor reload it"


def _udev_as_well(situation: Situation, change: Change) -> str:
    works, doubts = working_reloads(situation, change)
    if works:
        return f"; but udev reloads the whole image as well ({works[0].path})"
    return f"; {doubts[0]}" if doubts else ""


def _by_kernel(change: Change) -> tuple[bool, str]:
    if change is Change.MEMORY_REMOVED:
        return False, "stays in the header: the kernel's own handler leaves it there, and nothing repairs that"
    return True, "the kernel itself updates the header"


def _why_not(situation: Situation, found: RuleStart) -> str | None:
    """Return why a reload that a rule starts will not work, or may not; None where it will."""
    if not found.start.escapes_sandbox and situation.sandbox not in (None, Sandbox.OPEN):
        fails = "may fail" if situation.sandbox is Sandbox.ONE_SYSTEM_CALL else "fails silently"
        return f"udev's reload ({found.path}) {fails}: systemd-udevd's sandbox does not let it load an image"
    unit = found.start.needs_active
    if unit is not None and not situation.active_units.get(unit):
        state = "is not active" if situation.active_units.get(unit) is False else "may not be active"
        return f"udev's reload ({found.path}) does nothing unless {unit} is active, and it {state}"
    if not found.start.certain:
        return f"udev may start a reload ({found.path}); what the rule asks for is not known here"
    return None


def _may_work(situation: Situation, found: RuleStart) -> bool:
    """Whether a reload for which there is a doubt could work all the same."""
    if not found.start.escapes_sandbox and situation.sandbox in (Sandbox.NO_SYSTEM_CALL, Sandbox.NO_CAPABILITY):
        return False
    unit = found.start.needs_active
    return unit is None or situation.active_units.get(unit) is not False
