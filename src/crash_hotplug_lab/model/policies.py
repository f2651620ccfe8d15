# SPDX-License-Identifier: MIT
"""The policies: the ways to update the header of a model machine, with the kernel or tool that each reproduces.

=========  ==================================================  =======================  ===========================
name       reproduces                                          CPUs described           a taken lock
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

from crash_hotplug.core.elfcorehdr import ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import describes_possible_cpus, expected_elfcorehdr
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Cpu, Machine
from crash_hotplug_lab.model.events import Event, EventKind


@dataclass(frozen=True)
class Policy:
    """A way to keep the header up to date."""

    name: str
    """The name on the command line and in scenarios."""


class KernelPolicy(Policy):
    """The kernel's own handler, called by notifiers; no notifier is called when memory is added or removed."""

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader | None:
        """Return the header that the handler writes for *event*; None if it writes none.

        The header does not keep parts that the loader added, such as a backup region.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class V6(KernelPolicy):
    """The patches as posted in April 2022 (v6): the present CPUs without the leaving one.

    The notifier (CPUHP_AP_ONLINE_DYN) runs while the leaving CPU is still present, so v6 leaves it out by number.
    """

    name: str = "v6"

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader:
        """Build the kernel's own header."""
        leaving = event.cpu if event.kind is EventKind.CPU_OFFLINE else None
        return _kernel_header(machine, (cpu for cpu in machine.present_cpus if cpu.number != leaving))


@dataclass(frozen=True)
class Merged(KernelPolicy):
    """Linux 6.6 and newer (v28 of the patches): every possible CPU; memory at MEM_ONLINE and MEM_OFFLINE only.

    It has the kernel's faults.  At MEM_OFFLINE the block is still in /proc/iomem, and no notifier runs at the removal,
    so removed memory stays described.  The first update drops the backup region of kexec-tools.
    """

    name: str = "merged"

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader | None:
        """Build the kernel's own header.

        Return None for a CPU event if the header describes every possible CPU: ``file_mode || elfcorehdr_updated`` in
        ``arch_crash_handle_hotplug_event()`` of arch/x86/kernel/crash.c.
        """
        if event.kind.is_cpu and describes_possible_cpus(parse_elfcorehdr(image.elfcorehdr), machine):
            return None
        return _kernel_header(machine, machine.cpus)


@dataclass(frozen=True)
class Reload(Policy):
    """The distributions' way: a udev rule unloads and loads the image, for every event or throttled."""

    throttled: bool = False
    """RHEL's kdump-udev-throttler: one reload for all events that arrive while it waits one second."""


@dataclass(frozen=True)
class InPlace(Policy):
    """The way of this project: core/update.py, at each event and each heartbeat of the service."""

    name: str = "in-place"


def _kernel_header(machine: Machine, cpus: Iterable[Cpu]) -> ElfCoreHeader:
    """Build the header that ``crash_prepare_elf64_headers()`` writes for *cpus*."""
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
"""Every policy by name."""


def policy_named(name: str) -> Policy:
    """Return the policy with this name.

    :raise InputError: there is no such policy
    """
    try:
        return POLICIES[name]
    except KeyError:
        raise InputError(f"there is no policy {name!r}; there are {', '.join(POLICIES)}") from None
