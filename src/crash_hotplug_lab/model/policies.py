"""The policies of the generic handler, each with the kernel (or tool) whose doing it reproduces.

=========  ==================================================  =======================  ===========================
name       where it is found                                   CPUs described           a taken lock
=========  ==================================================  =======================  ===========================
v6         the patch series of April 2022, applied to 5.18     present less one leaving the event is lost
merged     Linux 6.6 and newer                                 possible                 the event is lost
reload     kexec-tools with udev, on any kernel                present (6.6+: possible) waits (flock)
in-place   this project, on any kernel                         possible                 waits (flock)
=========  ==================================================  =======================  ===========================
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from crash_hotplug.core.elfcorehdr import Dialect, ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import describes_possible_cpus, expected_elfcorehdr
from crash_hotplug.core.handler import Event, EventKind, Method, Policy
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Cpu, Machine

_KERNEL_EVENTS = (EventKind.CPU_ONLINE, EventKind.CPU_OFFLINE, EventKind.MEMORY_ONLINE, EventKind.MEMORY_OFFLINE)
"""What the kernel's notifiers tell: nothing is said when memory is added or removed."""


@dataclass(frozen=True)
class V6:
    """The patches as posted in April 2022 (v6): present CPUs less the one leaving; the event is lost on a taken lock.

    A CPU on its way out is still present while its notifier runs (CPUHP_AP_ONLINE_DYN), so it is left out by number.
    """

    name: str = "v6"
    method: Method = Method.REPLACE
    waits_for_lock: bool = False
    always_writes: bool = True

    def handles(self, event: Event) -> bool:
        """Whether one of the kernel's notifiers tells of *event*."""
        return event.kind in _KERNEL_EVENTS

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader:
        """Build the kernel's own header; what the loader put there, such as a backup region, is not kept."""
        leaving = event.cpu if event.kind is EventKind.CPU_OFFLINE else None
        return _kernel_header(machine, (cpu for cpu in machine.present_cpus if cpu.number != leaving))


@dataclass(frozen=True)
class Merged:
    """Linux 6.6 and newer (v28 of the patches): every possible CPU; memory at MEM_ONLINE and MEM_OFFLINE only.

    It keeps the kernel's faults.  At MEM_OFFLINE the block is still in /proc/iomem, and nothing is told at the
    removal, so removed memory stays described; and the backup region of kexec-tools is dropped by the first update.
    """

    name: str = "merged"
    method: Method = Method.REPLACE
    waits_for_lock: bool = False
    always_writes: bool = True

    def handles(self, event: Event) -> bool:
        """Whether one of the kernel's notifiers tells of *event*."""
        return event.kind in _KERNEL_EVENTS

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader | None:
        """Build the kernel's own header.

        None for a CPU event where every possible CPU is described: ``file_mode || elfcorehdr_updated`` in
        ``arch_crash_handle_hotplug_event()`` of arch/x86/kernel/crash.c.
        """
        if event.kind.is_cpu and describes_possible_cpus(parse_elfcorehdr(image.elfcorehdr), machine):
            return None
        return _kernel_header(machine, machine.cpus)


@dataclass(frozen=True)
class Reload:
    """What distributions do: a udev rule that unloads and loads the image, for every event or behind a throttle."""

    throttled: bool = False
    """RHEL's kdump-udev-throttler: events that come while one waits its second are answered by one reload."""
    method: Method = Method.RELOAD
    waits_for_lock: bool = True
    always_writes: bool = True

    @property
    def name(self) -> str:
        """``reload`` or ``reload-throttled``."""
        return "reload-throttled" if self.throttled else "reload"

    def handles(self, event: Event) -> bool:
        """Whether RHEL's 98-kexec.rules reacts to *event*."""
        return event.kind in (
            EventKind.CPU_ADD,
            EventKind.CPU_REMOVE,
            EventKind.MEMORY_ONLINE,
            EventKind.MEMORY_OFFLINE,
        )

    def header(self, machine: Machine, image: CrashImage, event: Event) -> None:
        """Return None: the loader builds the header."""


def _kernel_header(machine: Machine, cpus: Iterable[Cpu]) -> ElfCoreHeader:
    """Build what ``crash_prepare_elf64_headers()`` writes with *cpus* as the CPUs that it goes through."""
    described = tuple(replace(cpu, present=True) for cpu in cpus)
    return expected_elfcorehdr(replace(machine, cpus=described), Dialect.KERNEL)


POLICIES: dict[str, Policy] = {
    policy.name: policy for policy in (Reload(), Reload(throttled=True), V6(), Merged(), InPlace())
}
"""Every policy by the name a person gives."""


def policy_named(name: str) -> Policy:
    """Return the policy with this name.

    :raise InputError: there is none
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise InputError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}") from None
