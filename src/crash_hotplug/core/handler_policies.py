"""The policy of an update in place."""

from __future__ import annotations

from dataclasses import dataclass

from crash_hotplug.core.assessment import dialect_of
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, build_elfcorehdr, parse_elfcorehdr
from crash_hotplug.core.expected import describes_possible_cpus, expected_elfcorehdr
from crash_hotplug.core.handler import Event, Method
from crash_hotplug.core.image import CrashImage, elfcorehdr_room
from crash_hotplug.core.machine import Machine


@dataclass(frozen=True)
class InPlace:
    """Ours, on any kernel: one small kexec_load replaces the header.

    Every possible CPU is described where the notes of all of them are known, so that no later CPU event needs an
    update.  What the loader put into the header is kept.  Any event means "look again", a removal too.
    """

    name: str = "in-place"
    method: Method = Method.REPLACE
    waits_for_lock: bool = True
    always_writes: bool = False
    may_leave_cpus_out: bool = True
    """Whether present CPUs are enough where the segment has no room for all; else the header has to move first."""

    def handles(self, event: Event) -> bool:
        """Every event is a reason to look."""
        return True

    def header(self, machine: Machine, image: CrashImage, event: Event) -> ElfCoreHeader:
        """Build the header this machine should have, from the loaded one."""
        room = elfcorehdr_room(image, machine.crashkernel, None) if self.may_leave_cpus_out else None
        return in_place_header(machine, image, room)


def in_place_header(machine: Machine, image: CrashImage, room: int | None) -> ElfCoreHeader:
    """Build the header this machine should have, from the loaded one.

    :param room: bytes it has; present CPUs only are described where all possible ones would take more; None: enough
    """
    loaded = parse_elfcorehdr(image.elfcorehdr)
    dialect, backup = dialect_of(loaded, image), image.backup_region_phys
    header = expected_elfcorehdr(machine, dialect, with_possible_cpus(loaded, machine), backup)
    if room is not None and header.size > room:
        return expected_elfcorehdr(machine, dialect, loaded, backup)  # present CPUs only take less
    return header


def with_possible_cpus(header: ElfCoreHeader, machine: Machine) -> ElfCoreHeader:
    """Return *header* with a PT_NOTE for every possible CPU, where all their addresses are known; else as it is."""
    notes = [cpu.crash_notes for cpu in machine.cpus if cpu.crash_notes is not None]
    if len(notes) < len(machine.cpus) or describes_possible_cpus(header, machine):
        return header
    return build_elfcorehdr(header.architecture, notes, header.vmcoreinfo, header.kernel_text, header.ram_headers)
