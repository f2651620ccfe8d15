# SPDX-License-Identifier: MIT
"""A panic: from the CPU that panics to the capture kernel's first look at the elfcorehdr.

The order is the kernel's (``__crash_kexec()`` in kernel/crash_core.c, ``native_machine_crash_shutdown()`` in
arch/x86/kernel/crash.c): it takes the kexec lock, looks for an image, saves registers and vmcoreinfo, and
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
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.sizes import human_size
from crash_hotplug.core.verdict import Comparison, Verdict
from crash_hotplug_lab.model.capture_kernel import NoCaptureError, read_elfcorehdr, start_capture_kernel
from crash_hotplug_lab.model.machine import CpuState, ModelMachine
from crash_hotplug_lab.model.memory import AbsentMemoryError
from crash_hotplug_lab.model.proc_vmcore import ProcVmcore
from crash_hotplug_lab.model.purgatory import Purgatory, copy_backup_region, digest_fits, read_purgatory

REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""``struct user_regs_struct`` of x86_64, in order."""
_PID_AT = 32
_REGISTERS_AT = 112
PRSTATUS_SIZE = 336
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
    purgatory = read_purgatory(machine.memory, machine.crash_image.kimage.entry_phys)
    if not digest_fits(machine.memory, purgatory):
        return Panic(DumpOutcome.REFUSED, "purgatory's digest did not match: the capture kernel was not started")
    copy_backup_region(machine.memory, purgatory)
    return _capture(machine, purgatory, truth)


def _capture(machine: ModelMachine, purgatory: Purgatory, truth: Machine) -> Panic:
    """Let the capture kernel find its elfcorehdr, and audit its vmcore."""
    try:
        old, elfcorehdr_phys = start_capture_kernel(machine.memory, purgatory)
        header, raw = read_elfcorehdr(old, elfcorehdr_phys)
        if raw not in machine.whole_headers:
            return Panic(DumpOutcome.BROKEN, "the elfcorehdr is torn: part old, part new")
        vmcore = ProcVmcore(header, old)
        comparison = audit(vmcore, truth, header, purgatory.backup is not None)
    except (NoCaptureError, InputError, AbsentMemoryError) as error:
        return Panic(DumpOutcome.BROKEN, f"the capture kernel saved no dump: {error}")
    # The audit shares code with the verdict on an image, so memory and its contents are compared here, too.
    reserved = RangeList([*machine.profile.crashkernel, truth.architecture.excluded_low_memory])
    lost = machine.ram.exclude(reserved).exclude(header.ram).union(vmcore.wrong(purgatory.backup))
    if comparison.verdict is Verdict.ACCURATE and not lost:
        return Panic(DumpOutcome.ACCURATE, "the dump describes the machine completely", vmcore, comparison)
    sentences = [finding.sentence for finding in comparison.findings[:3]] or comparison.unchecked
    sentence = "; ".join(sentences) or f"the dump lacks {human_size(lost.size)} at {lost[0].start:#x}"
    return Panic(DumpOutcome.STALE, sentence, vmcore, comparison)


def register_values(cpu: CpuState, kernel_virt: int, stack_virt: int) -> dict[str, int]:
    """Return the registers of a running CPU: values that identify the CPU, and addresses inside the kernel.

    :param kernel_virt: virtual address of ``_text``
    :param stack_virt: virtual address of the top of this CPU's stack
    """
    values = {name: 0xC0DE_0000_0000_0000 | cpu.number << 16 | i for i, name in enumerate(REGISTERS)}
    values.update(rip=kernel_virt + 0x1000 + 0x10 * cpu.number, rsp=stack_virt, rbp=stack_virt + 0x80)
    values.update(cs=0x10, ss=0x18, eflags=0x46, orig_rax=(1 << 64) - 1, fs_base=0, gs_base=0, ds=0, es=0, fs=0, gs=0)
    values.update(dict(cpu.registers))
    return values


def prstatus_note(pid: int, registers: dict[str, int]) -> bytes:
    """Return the crash_notes of a CPU: NT_PRSTATUS, and the empty note that ends the list.

    :param pid: the task that ran on the CPU (``crash_save_cpu()`` in kernel/kexec_core.c)
    """
    descriptor = bytearray(PRSTATUS_SIZE)
    struct.pack_into("<I", descriptor, _PID_AT, pid)
    struct.pack_into(f"<{len(REGISTERS)}Q", descriptor, _REGISTERS_AT, *(registers[name] for name in REGISTERS))
    return pack_notes([Note(b"CORE", NT_PRSTATUS, bytes(descriptor))]) + bytes(12)


def save_registers(machine: ModelMachine) -> None:
    """Write the registers of each running CPU into its crash_notes (``crash_save_cpu()``)."""
    profile = machine.profile
    for cpu in machine.cpus.values():
        if cpu.online:
            notes_at = profile.crash_notes[cpu.number]
            stack_virt = profile.page_offset + notes_at - 0x400
            registers = register_values(cpu, profile.kernel_text.virt, stack_virt)
            machine.memory.write(notes_at, prstatus_note(1000 + cpu.number, registers))


def save_vmcoreinfo(machine: ModelMachine) -> None:
    """Write the vmcoreinfo note with the time of the crash (``crash_save_vmcoreinfo()``)."""
    place = machine.profile.vmcoreinfo
    text = machine.profile.kernel_memory.vmcoreinfo(CRASH_TIME)
    machine.memory.write(place.phys, pack_notes([Note(b"VMCOREINFO", 0, text)])[: place.size])


def audit(vmcore: ProcVmcore, truth: Machine, header: ElfCoreHeader, backed_up: bool) -> Comparison:
    """Audit the vmcore against the machine at the panic.

    :param backed_up: whether kexec-tools loaded the image
    """
    parsed: Vmcore = parse_vmcore(vmcore)
    result = audit_vmcore(parsed)
    loader = Loader.KEXEC_TOOLS if backed_up else Loader.KERNEL
    compare_vmcore(parsed, truth, header, loader, result)
    return result
