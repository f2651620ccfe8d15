# SPDX-License-Identifier: MIT
"""udev's rules for kdump by distribution, and the kernels on which they start no reload."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.profile import CrashHotplug

_CPU_ADD_REMOVE = frozenset({EventKind.CPU_ADD, EventKind.CPU_REMOVE})
_MEMORY_ONLINE_OFFLINE = frozenset({EventKind.MEMORY_ONLINE, EventKind.MEMORY_OFFLINE})


class StandBack(Enum):
    """The test by which a rules file skips the reload."""

    NEVER = "never"
    ARCH = 'CONST{arch}=="x86-64", GOTO="kdump_reload_end"'
    """The rule of the v6 patches: on x86-64 always, with any kernel."""
    CRASH_HOTPLUG = 'ATTRS{crash_hotplug}=="1", GOTO="kdump_reload_end"'
    """The rule since 6.6: if the kernel updates the loaded image."""


@dataclass(frozen=True)
class UdevRules:
    """One distribution's rules file."""

    name: str
    events: frozenset[EventKind]
    """Events that start a reload."""
    stands_back: StandBack
    sandboxed: bool = False
    """Whether the reload runs inside systemd-udevd's sandbox, whose system call filter forbids kexec_load."""

    def reacts_to(self, machine: ModelMachine, event: Event) -> bool:
        """Whether *event* starts a reload on this machine now."""
        if event.kind not in self.events or self.stands_back is StandBack.ARCH:
            return False
        return not (self.stands_back is StandBack.CRASH_HOTPLUG and crash_hotplug_attribute(machine) == 1)


def crash_hotplug_attribute(machine: ModelMachine) -> int:
    """Return the value of /sys/devices/system/{cpu,memory}/crash_hotplug (``crash_check_hotplug_support()``).

    The value is 0 while the kexec lock is taken; udev then starts a full reload.
    """
    if machine.profile.crash_hotplug is not CrashHotplug.MERGED or machine.kexec_locked:
        return 0
    return int(machine.crash_image is not None and machine.crash_image.hotplug_support)


RULES = {
    rules.name: rules
    for rules in (
        UdevRules("rhel", _CPU_ADD_REMOVE | _MEMORY_ONLINE_OFFLINE, StandBack.CRASH_HOTPLUG),
        UdevRules("rhel-v6", _CPU_ADD_REMOVE | _MEMORY_ONLINE_OFFLINE, StandBack.ARCH),
        UdevRules(
            "debian12",
            _CPU_ADD_REMOVE | _MEMORY_ONLINE_OFFLINE | {EventKind.CPU_ONLINE},
            StandBack.NEVER,
            sandboxed=True,
        ),
    )
}
"""The rules files by name."""


def rules_named(name: str) -> UdevRules:
    """Return a rules file.

    :raise InputError: there are no such rules
    """
    try:
        return RULES[name]
    except KeyError:
        raise InputError(f"there are no udev rules {name!r}; there are {', '.join(RULES)}") from None
