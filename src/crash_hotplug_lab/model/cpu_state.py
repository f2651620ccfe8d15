"""The CPUs of a model machine, and the registers each would save."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crash_hotplug.core.elf import NT_PRSTATUS, Note, pack_notes

REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""``struct user_regs_struct`` of x86_64, in order."""
_PID_AT = 32
_REGISTERS_AT = 112
PRSTATUS_SIZE = 336


@dataclass(frozen=True)
class CpuState:
    """One possible CPU."""

    number: int
    present: bool = False
    online: bool = False
    registers: tuple[tuple[str, int], ...] = ()
    """Registers that a scenario planted; the others hold recognisable values."""


def register_values(cpu: CpuState, kernel_virt: int, stack_virt: int) -> dict[str, int]:
    """Return every register of a running CPU: values that tell the CPU, and addresses that lie in the kernel.

    :param kernel_virt: virtual address of ``_text``
    :param stack_virt: virtual address of the top of this CPU's stack
    """
    values = {name: 0xC0DE_0000_0000_0000 | cpu.number << 16 | i for i, name in enumerate(REGISTERS)}
    values.update(rip=kernel_virt + 0x1000 + 0x10 * cpu.number, rsp=stack_virt, rbp=stack_virt + 0x80)
    values.update(cs=0x10, ss=0x18, eflags=0x46, orig_rax=(1 << 64) - 1, fs_base=0, gs_base=0, ds=0, es=0, fs=0, gs=0)
    values.update(dict(cpu.registers))
    return values


def prstatus_note(pid: int, registers: dict[str, int]) -> bytes:
    """Return what a CPU writes into its crash_notes: NT_PRSTATUS, and the empty note that ends the list.

    :param pid: the task that ran on it (``crash_save_cpu()`` in kernel/kexec_core.c)
    """
    descriptor = bytearray(PRSTATUS_SIZE)
    struct.pack_into("<I", descriptor, _PID_AT, pid)
    struct.pack_into(f"<{len(REGISTERS)}Q", descriptor, _REGISTERS_AT, *(registers[name] for name in REGISTERS))
    return pack_notes([Note(b"CORE", NT_PRSTATUS, bytes(descriptor))]) + bytes(12)
