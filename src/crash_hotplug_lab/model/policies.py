"""Who updates the header of a model machine, each with the kernel or tool that it reproduces.

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
from dataclasses import dataclass

from crash_hotplug.core.elfcorehdr import ElfCoreHeader, Loader, parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import describes_possible_cpus, expected_elfcorehdr
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.machine import Cpu, Machine
from crash_hotplug_lab.model.events import Event, EventKind


@dataclass(frozen=True)
class Policy:
    """A way to keep the header up to date."""

    name: str
    """The name a person gives it."""


class KernelPolicy(Policy):
    """The kernel's own handler, called by its notifiers: nothing is said when memory is added or removed."""

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader | None:
        """Return the header that *machine* should have; None where *event* cannot change it.

        What the loader put into the header, such as a backup region, is not kept.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class V6(KernelPolicy):
    """The patches as posted in April 2022 (v6): present CPUs less the one leaving.

    A CPU on its way out is still present while its notifier runs (CPUHP_AP_ONLINE_DYN), so it is left out by number.
    """

    name: str = "v6"

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader:
        """Build the kernel's own header."""
        leaving = event.cpu if event.kind is EventKind.CPU_OFFLINE else None
        return _kernel_header(machine, (cpu for cpu in machine.present_cpus if cpu.number != leaving))


@dataclass(frozen=True)
class Merged(KernelPolicy):
    """Linux 6.6 and newer (v28 of the patches): every possible CPU; memory at MEM_ONLINE and MEM_OFFLINE only.

    It keeps the kernel's faults.  At MEM_OFFLINE the block is still in /proc/iomem, and nothing is told at the
    removal, so removed memory stays described; and the first update drops the backup region of kexec-tools.
    """

    name: str = "merged"

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader | None:
        """Build the kernel's own header.

        None for a CPU event where every possible CPU is described: ``file_mode || elfcorehdr_updated`` in
        ``arch_crash_handle_hotplug_event()`` of arch/x86/kernel/crash.c.
        """
        if event.kind.is_cpu and describes_possible_cpus(parse_elfcorehdr(image.elfcorehdr), machine):
            return None
        return _kernel_header(machine, machine.cpus)


@dataclass(frozen=True)
class Reload(Policy):
    """The distributions' way: a udev rule that unloads and loads the image, for every event or behind a throttle."""

    throttled: bool = False
    """RHEL's kdump-udev-throttler: one reload answers the events that come while it waits its second."""


@dataclass(frozen=True)
class InPlace(Policy):
    """The way of this project: core/update.py, at any event and at each look of the service."""

    name: str = "in-place"


def _kernel_header(machine: Machine, cpus: Iterable[Cpu]) -> ElfCoreHeader:
    """Build what ``crash_prepare_elf64_headers()`` writes with *cpus* as the CPUs that it goes through."""
    described = tuple(cpu._replace(present=True) for cpu in cpus)
    return expected_elfcorehdr(machine._replace(cpus=described), Loader.KERNEL)


POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Reload("reload"),
        Reload("reload-throttled", throttled=True),
        V6(),
        Merged(),
        InPlace(),
    )
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
