# SPDX-License-Identifier: MIT
"""The forecast: whether the kernel, a udev rule or the service handles the next hot-plug, and whether it succeeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.doctor.settings_files import Sandbox
from crash_hotplug.core.doctor.udev_rules import Reload, UEvent

SERVICE = "crash-hotplug.service"
_NEEDS_KEYS = "fails where the volume key of the dump target requires a passphrase"
_CLAIMS_DIMMS = (
    "the loaded capture kernel uses DIMMs as its own memory (its command line lacks acpi_no_memhotplug), so a dump "
    "lacks them"
)
_STARTS_NOT = (
    "a panic on an added CPU leaves no dump: this kernel starts on one only with nr_cpus=1, which the loaded capture "
    "kernel's command line lacks"
)


class Change(Enum):
    """A change of the machine, with the subsystem and the actions of its events."""

    CPU_ADDED = ("added CPUs", "cpu", ("add", "online"))
    CPU_REMOVED = ("removed CPUs", "cpu", ("offline", "remove"))
    MEMORY_ADDED = ("added memory", "memory", ("add", "online"))
    MEMORY_REMOVED = ("removed memory", "memory", ("offline", "remove"))

    def __init__(self, label: str, subsystem: str, actions: tuple[str, ...]) -> None:
        """Take the label for people, the subsystem, and its actions in the order of the events."""
        self.label = label
        self.subsystem = subsystem
        self.events = tuple(UEvent(subsystem, action) for action in actions)


@dataclass(frozen=True)
class Situation:
    """The facts on which the forecast depends.  None means that a fact is not known."""

    image_loaded: bool | None
    kernel_updates: Mapping[str, bool | None]
    """By subsystem: whether the kernel itself updates this image; None on kernels that never do."""
    describes_all_cpus: bool | None
    """Whether the header describes every possible CPU, so that no CPU's event changes anything."""
    service_active: bool | None
    in_place: bool | None
    """Whether the service can update the image in place."""
    in_place_reason: str | None
    """Why it cannot, or why that is not known."""
    nothing_loads: str | None
    """The restriction that forbids every load, so that a reload fails as well; None where there is none."""
    reload_tool: str | None
    """The distribution's own command that loads the image again; None where there is none."""
    reloads: Mapping[UEvent, Sequence[Reload]]
    """The reloads that udev rules start, by event."""
    rules_known: bool
    """False for a saved tree without any rules files."""
    sandbox: Sandbox | None
    """Whether the programs of systemd-udevd may load an image; None where its unit is not known."""
    active_units: Mapping[str, bool | None]
    """For each unit that a rule asks for: whether it is active."""
    capture_kernel_claims_dimms: bool | None
    """Whether the loaded capture kernel would use hot-added DIMMs as its own memory (docs/elfcorehdr.md)."""
    capture_kernel_refuses_added_cpus: bool | None = False
    """Whether the loaded capture kernel cannot start on a CPU that was added after the boot.  The firmware's MADT lists
    such a CPU as disabled, and x86 before Linux 6.9 ends at a BUG_ON there (setup_local_APIC(),
    arch/x86/kernel/apic/apic.c) unless it has nr_cpus=1."""
    hands_over_keys: bool = False
    """Whether the loaded image hands volume keys (LUKS) to the capture kernel.  A reload needs them again, and kdumpctl
    lets them expire 300 s after a load."""
    lacks_sudo: bool = False
    """Whether kdumpctl calls kexec through sudo in a transient unit, and sudo is not installed."""


class Forecast(NamedTuple):
    """Whether one change will be handled."""

    change: Change
    is_handled: bool | None
    sentence: str
    """The component that handles it, or the reason why none does."""


def forecast(situation: Situation) -> list[Forecast]:
    """Tell for each change whether it will be handled."""
    return [_forecast(situation, change) for change in Change]


def overall(situation: Situation, forecasts: Sequence[Forecast]) -> bool | None:
    """Tell whether the next hot-plug will be handled, whichever it is; None where that is not known."""
    handled = {found.is_handled for found in forecasts}
    if situation.image_loaded is None:
        return None
    return False if False in handled else None if None in handled else True


def _forecast(situation: Situation, change: Change) -> Forecast:
    is_handled, sentence = _updated_by(situation, change)
    loss = _lost_by_capture_kernel(situation, change)
    if loss is not None and is_handled is not False:
        return Forecast(change, False, f"{sentence}; but {loss}")
    return Forecast(change, is_handled, sentence)


def _lost_by_capture_kernel(situation: Situation, change: Change) -> str | None:
    """Return what the loaded capture kernel loses of a change although the header is accurate; None for nothing."""
    if change is Change.MEMORY_ADDED and situation.capture_kernel_claims_dimms:
        return _CLAIMS_DIMMS
    if change is Change.CPU_ADDED and situation.capture_kernel_refuses_added_cpus:
        return _STARTS_NOT
    return None


def _updated_by(situation: Situation, change: Change) -> tuple[bool | None, str]:
    """Return whether the header will be accurate after the change, and a sentence that names the component."""
    udev = _judge_reloads(situation, change)
    if change.subsystem == "cpu" and situation.describes_all_cpus:
        return True, "the header describes every possible CPU: no update is needed"
    if situation.service_active and situation.nothing_loads is None:
        is_handled, sentence = _by_service(situation, change)
        return is_handled, sentence + (udev.beside_the_service if is_handled else "")
    by_kernel = situation.kernel_updates.get(change.subsystem)
    if by_kernel and change is not Change.MEMORY_REMOVED:
        return True, "the kernel itself updates the header"
    if by_kernel and not udev.works:
        return False, "the kernel leaves it in the header, and nothing else removes it"
    return _by_udev(situation, udev)


def _by_service(situation: Situation, change: Change) -> tuple[bool | None, str]:
    by_kernel = situation.kernel_updates.get(change.subsystem)
    if by_kernel and change is not Change.MEMORY_REMOVED:
        return True, f"the kernel updates the header, and {SERVICE} checks it"
    if situation.in_place is not False:
        return True, f"{SERVICE} {'removes it from' if by_kernel else 'updates'} the header in place"
    if situation.reload_tool is not None:
        sentence = f"{SERVICE} reloads the image ({situation.reload_tool}): {situation.in_place_reason}"
        return (None, f"{sentence}; the reload {_NEEDS_KEYS}") if situation.hands_over_keys else (True, sentence)
    return False, f"{SERVICE} can neither update the image in place ({situation.in_place_reason}) nor reload it"


def _by_udev(situation: Situation, udev: _Udev) -> tuple[bool | None, str]:
    if situation.nothing_loads is not None:
        return False, f"nothing can update the header: {situation.nothing_loads}"
    if udev.sentence:
        return udev.works, udev.sentence
    if not situation.rules_known:
        return None, "this saved tree has no udev rules files"
    if situation.service_active is None:
        return None, f"no udev rule reloads the image, and whether {SERVICE} is active is not known"
    return False, f"nothing updates the header: neither the kernel, nor a udev rule, nor {SERVICE}"


class _Udev(NamedTuple):
    """The reloads that udev rules start at one change, judged together."""

    works: bool | None
    sentence: str
    """Empty where no rule starts a reload."""
    beside_the_service: str
    """The addition to the sentence of the service, where the service handles the change."""


def _judge_reloads(situation: Situation, change: Change) -> _Udev:
    started = [reload for event in change.events for reload in situation.reloads.get(event, ())]
    judged = [(reload, *_judge(situation, reload)) for reload in started]
    for reload, works, _doubt in judged:
        if works:
            whole = f"udev reloads the whole image ({reload.path})"
            also = f"; but udev reloads the whole image as well ({reload.path})"
            return _Udev(True, f"{whole}: no image is loaded for about a second each time", also)
    doubts = list(dict.fromkeys(doubt for _reload, _works, doubt in judged))
    works = None if any(works is None for _reload, works, _doubt in judged) else False
    return _Udev(works, "; ".join(doubts), f"; {doubts[0]}" if doubts else "")


def _judge(situation: Situation, reload: Reload) -> tuple[bool | None, str]:
    """Tell whether a reload that a rule starts works, and the reason where it does not or may not."""
    it = f"udev's reload ({reload.path})"
    sandbox = Sandbox.OPEN if reload.escapes_sandbox else situation.sandbox or Sandbox.OPEN
    unit = reload.needs_active
    is_active = True if unit is None else situation.active_units.get(unit)
    if sandbox in (Sandbox.NO_SYSTEM_CALL, Sandbox.NO_CAPABILITY):
        return False, f"{it} fails silently: systemd-udevd's sandbox does not let it load an image"
    if is_active is False:
        return False, f"{it} does nothing unless {unit} is active, and it is not active"
    if sandbox is Sandbox.ONE_SYSTEM_CALL:
        return None, f"{it} may fail: systemd-udevd's sandbox allows only one of kexec_load and kexec_file_load"
    if is_active is None:
        return None, f"{it} does nothing unless {unit} is active, and whether it is active is not known"
    if not reload.certain:
        return None, f"udev may start a reload ({reload.path}): doctor cannot evaluate a condition of the rule"
    return _judge_load(situation, reload, it)


def _judge_load(situation: Situation, reload: Reload, it: str) -> tuple[bool | None, str]:
    if situation.lacks_sudo and reload.in_transient_unit:
        return False, f"{it} leaves no image loaded: kdumpctl calls kexec through sudo there, and sudo is not installed"
    keys = f"{it} asks for the volume keys again: it {_NEEDS_KEYS}, and then no image is loaded"
    return (None, keys) if situation.hands_over_keys else (True, "")
