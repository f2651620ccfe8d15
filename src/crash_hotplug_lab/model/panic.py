# SPDX-License-Identifier: MIT
"""A panic: from the CPU that panics to the capture kernel's first look at the elfcorehdr.

The order is the kernel's (``__crash_kexec()`` in kernel/crash_core.c, ``machine_crash_shutdown()`` of the
architecture): it takes the kexec lock, looks for an image, saves registers and vmcoreinfo, and
purgatory checks the digest before the capture kernel starts.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from crash_hotplug.core.dump.formats import parse_vmcore
from crash_hotplug.core.dump.vmcore import Vmcore, audit_vmcore, compare_vmcore
from crash_hotplug.core.elf import NT_PRSTATUS, Note, pack_notes
from crash_hotplug.core.elfcorehdr import ElfCoreHeader
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.finding import Comparison, Verdict
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.sizes import human_size
from crash_hotplug_lab.model.arch.architecture import ModelArchitecture
from crash_hotplug_lab.model.capture_kernel import NoCaptureError, read_elfcorehdr
from crash_hotplug_lab.model.kimage import ModelKimage
from crash_hotplug_lab.model.machine import CpuState, ModelMachine
from crash_hotplug_lab.model.memory import AbsentMemoryError
from crash_hotplug_lab.model.proc_vmcore import ProcVmcore
from crash_hotplug_lab.model.purgatory import DigestError

_PID_AT = 32
_REGISTERS_AT = 112
CRASH_TIME = 1795368865
"""Time of every panic, in seconds since 1970; it is fixed so that dumps are reproducible."""


class DumpOutcome(str, Enum):
    """The dump that a panic leaves, if any."""

    ACCURATE = "accurate dump"
    STALE = "stale dump"
    NO_DUMP = "no dump"
    REFUSED = "refused by digest"
    BROKEN = "broken dump"
    """The header is torn, or the capture kernel finds none: a panic must never end so."""


@dataclass(frozen=True)
class Panic:
    """The result of one panic."""

    outcome: DumpOutcome
    sentence: str
    """The reason, for people."""
    vmcore: ProcVmcore | None = None
    """/proc/vmcore of the capture kernel."""
    comparison: Comparison | None = None
    """The audit of the vmcore against the machine at the panic."""


def panic(machine: ModelMachine) -> Panic:
    """Let a machine panic.  The panic changes the machine, so pass a copy if it is needed again.

    The panicking CPU needs no number: it saves its registers as the stopped CPUs do.
    """
    if machine.kexec_locked:
        return Panic(DumpOutcome.NO_DUMP, "the kexec lock was held: the panic could not start the capture kernel")
    if machine.crash_image is None:
        return Panic(DumpOutcome.NO_DUMP, "no crash image was loaded")
    truth = machine.kernel_view()
    save_registers(machine)
    save_vmcoreinfo(machine)
    return _capture(machine, machine.crash_image, truth)


def _capture(machine: ModelMachine, image: ModelKimage, truth: Machine) -> Panic:
    """Let the capture kernel start and find its elfcorehdr, and audit its vmcore."""
    arch = machine.profile.arch
    try:
        started = arch.start_capture_kernel(machine.memory, image)
        header, raw = read_elfcorehdr(started.old, started.elfcorehdr_phys, arch.record.machine_number)
        if raw not in machine.whole_headers:
            return Panic(DumpOutcome.BROKEN, "the elfcorehdr is torn: part old, part new")
        vmcore = ProcVmcore(header, started.old)
        comparison = audit(vmcore, truth, header, started.loader)
    except DigestError as error:
        return Panic(DumpOutcome.REFUSED, str(error))
    except (NoCaptureError, InputError, AbsentMemoryError) as error:
        return Panic(DumpOutcome.BROKEN, f"the capture kernel saved no dump: {error}")
    if vmcore.absent and not arch.reads_gone_memory:
        where = f"{human_size(vmcore.absent.size)} at {vmcore.absent[0].start:#x}"
        sentence = f"the header describes {where} that is gone: reading it ends the capture kernel's copy"
        return Panic(DumpOutcome.NO_DUMP, sentence, None, comparison)
    # The audit shares code with the verdict on an image, so memory and its contents are compared here, too.
    reserved = RangeList([*machine.profile.crashkernel, truth.architecture.excluded_low_memory])
    lost = machine.ram.exclude(reserved).exclude(header.ram).union(vmcore.wrong(started.backup))
    if comparison.verdict is Verdict.ACCURATE and not lost:
        return Panic(DumpOutcome.ACCURATE, "the dump describes the machine completely", vmcore, comparison)
    sentences = [finding.sentence for finding in comparison.findings[:3]] or comparison.unchecked
    sentence = "; ".join(sentences) or f"the dump lacks {human_size(lost.size)} at {lost[0].start:#x}"
    return Panic(DumpOutcome.STALE, sentence, vmcore, comparison)


def register_values(arch: ModelArchitecture, cpu: CpuState, kernel_virt: int, stack_virt: int) -> dict[str, int]:
    """Return the registers of a running CPU: values that identify the CPU, and addresses inside the kernel.

    :param kernel_virt: virtual address of ``_text``
    :param stack_virt: virtual address of the top of this CPU's stack
    """
    values = {name: 0xC0DE_0000_0000_0000 | cpu.number << 16 | i for i, name in enumerate(arch.registers)}
    values.update(arch.kernel_registers(cpu.number, kernel_virt, stack_virt))
    values.update(dict(cpu.registers))
    return values


def prstatus_note(arch: ModelArchitecture, pid: int, registers: dict[str, int]) -> bytes:
    """Return the crash_notes of a CPU: NT_PRSTATUS, and the empty note that ends the list.

    :param pid: the task that ran on the CPU (``crash_save_cpu()`` in kernel/kexec_core.c)
    """
    descriptor = bytearray(arch.prstatus_size)
    struct.pack_into("<I", descriptor, _PID_AT, pid)
    values = (registers[name] for name in arch.registers)
    struct.pack_into(f"<{len(arch.registers)}Q", descriptor, _REGISTERS_AT, *values)
    return pack_notes([Note(b"CORE", NT_PRSTATUS, bytes(descriptor))]) + bytes(12)


def save_registers(machine: ModelMachine) -> None:
    """Write the registers of each running CPU into its crash_notes (``crash_save_cpu()``)."""
    profile = machine.profile
    for cpu in machine.cpus.values():
        if cpu.online:
            notes_at = profile.crash_notes[cpu.number]
            stack_virt = profile.page_offset + notes_at - 0x400
            registers = register_values(profile.arch, cpu, profile.kernel_text.virt, stack_virt)
            machine.memory.write(notes_at, prstatus_note(profile.arch, 1000 + cpu.number, registers))


def save_vmcoreinfo(machine: ModelMachine) -> None:
    """Write the vmcoreinfo note with the time of the crash (``crash_save_vmcoreinfo()``)."""
    place = machine.profile.vmcoreinfo
    text = machine.profile.kernel_memory.vmcoreinfo(CRASH_TIME)
    machine.memory.write(place.phys, pack_notes([Note(b"VMCOREINFO", 0, text)])[: place.size])


def audit(vmcore: ProcVmcore, truth: Machine, header: ElfCoreHeader, loader: Loader) -> Comparison:
    """Audit the vmcore against the machine at the panic."""
    parsed: Vmcore = parse_vmcore(vmcore)
    result = audit_vmcore(parsed)
    compare_vmcore(parsed, truth, header, loader, result)
    return result
