# SPDX-License-Identifier: MIT
"""x86_64: an ordinary PC, its registers, and the start of its capture kernel from a zero page."""

from __future__ import annotations

from crash_hotplug.core.arch import x86_64 as core
from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import E820_RAM, cmdline_phys, e820_table, is_boot_params
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import KernelText, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.arch.architecture import CaptureStart, ControlPages, ModelArchitecture
from crash_hotplug_lab.model.arch.x86_loaders import plan_of_kernel, plan_of_kexec_tools
from crash_hotplug_lab.model.arch.x86_tables import KernelMemory
from crash_hotplug_lab.model.capture_kernel import COMMAND_LINE_SIZE, NoCaptureError, OldMemory, elfcorehdr_address
from crash_hotplug_lab.model.kimage import ModelKimage
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.memory import PhysicalMemory
from crash_hotplug_lab.model.profile import CRASH_MAX_MEMORY_RANGES, SYSTEM_RAM, FirmwareRange, MachineProfile
from crash_hotplug_lab.model.purgatory import check_digest, read_purgatory

_MIB = 1 << 20
_GIB = 1 << 30
_PC_HOLES = (
    FirmwareRange(Range(0, 0x1000), "Reserved"),
    FirmwareRange(Range(0x1000, 0x9FC00), SYSTEM_RAM),
    FirmwareRange(Range(0x9FC00, 0xA0000), "Reserved"),
    FirmwareRange(Range(0xF0000, 0x100000), "Reserved"),
)


def default_profile(
    kernel_release: str = "5.10.0-model",
    memory: int = _GIB,
    possible_cpus: int = 8,
    boot_cpus: int = 2,
    crashkernel: int = 192 * _MIB,
    block_size: int = 128 * _MIB,
    crashkernel_low: int = 0,
    auto_online: bool = True,
    max_memory_ranges: int = CRASH_MAX_MEMORY_RANGES,
    has_v6_patches: bool = False,
) -> MachineProfile:
    """Return an ordinary PC-like machine.

    :param memory: bytes of RAM at boot; the part that does not fit below 3 GiB lies above 4 GiB
    :param crashkernel: bytes reserved for the capture kernel
    :param crashkernel_low: bytes of the low reservation; with it the main one lies above 4 GiB
    """
    low_end = min(memory, 3 * _GIB)
    high_end = 4 * _GIB + memory - low_end
    firmware = [*_PC_HOLES, FirmwareRange(Range(0x100000, low_end - 0x2A000), SYSTEM_RAM)]
    firmware.append(FirmwareRange(Range(low_end - 0x2A000, low_end), "Reserved"))
    firmware.append(FirmwareRange(Range(0xFFFC0000, 0x100000000), "Reserved"))
    if high_end > 4 * _GIB:
        firmware.append(FirmwareRange(Range(4 * _GIB, high_end), SYSTEM_RAM))
    top = low_end - 16 * _MIB  # percpu areas and vmcoreinfo lie above
    low = [Range(top - crashkernel_low, top)] if crashkernel_low else []
    main = Range(high_end - 16 * _MIB - crashkernel, high_end - 16 * _MIB) if low else Range(top - crashkernel, top)
    percpu = low_end - 14 * _MIB
    return MachineProfile(
        arch=X86_64,
        kernel_release=kernel_release,
        firmware=tuple(firmware),
        crashkernel=(main, *low),
        kernel_text=KernelText(0xFFFF_FFFF_9200_0000, 0x0200_0000, 0x0283_0000),
        page_offset=0xFFFF_8E35_C000_0000,
        vmcoreinfo=NoteRegion(low_end - 15 * _MIB, 0x1024),
        crash_notes=tuple(percpu + number * 0x10000 + 0xD800 for number in range(possible_cpus)),
        boot_cpus=boot_cpus,
        block_size=block_size,
        auto_online=auto_online,
        max_memory_ranges=max_memory_ranges,
        has_v6_patches=has_v6_patches,
    )


def _kernel_tables(profile: MachineProfile) -> KernelMemory:
    return KernelMemory(profile.kernel_text, profile.page_offset, profile.kernel_release)


_REGISTERS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
)
"""``struct user_regs_struct`` of x86_64, in order."""


def _kernel_registers(cpu: int, kernel_virt: int, stack_virt: int) -> dict[str, int]:
    """Return addresses inside the kernel, and the values that all CPUs have there."""
    values = {"rip": kernel_virt + 0x1000 + 0x10 * cpu, "rsp": stack_virt, "rbp": stack_virt + 0x80}
    values.update(cs=0x10, ss=0x18, eflags=0x46, orig_rax=(1 << 64) - 1, fs_base=0, gs_base=0, ds=0, es=0, fs=0, gs=0)
    return values


def _control_pages(ram: RangeList) -> tuple[ControlPages, ...]:
    """Return control code and page tables, as many as the kernel takes at most."""
    return (ControlPages(core.X86_64.control_bytes(ram), is_written=True),)


def _start_capture_kernel(memory: PhysicalMemory, loaded: ModelKimage) -> CaptureStart:
    """Start the capture kernel from the zero page that purgatory passes to it.

    :raise DigestError: purgatory rejects the image
    :raise NoCaptureError: it has no RAM to run in, or its command line has no ``elfcorehdr=``
    :raise AbsentMemoryError: zero page or command line have no memory behind them
    """
    purgatory = read_purgatory(memory, loaded.kimage.entry_phys)
    check_digest(memory, purgatory)
    boot_params_phys, low, low_size, backup_at = purgatory.words
    backup = (Range(low, low + low_size), backup_at) if low_size else None
    if backup is not None:  # the capture kernel overwrites low memory
        memory.write(backup_at, memory.read(low, low_size))
    page = memory.read(boot_params_phys, PAGE)
    if not is_boot_params(page):
        raise NoCaptureError(f"there is no boot_params at {boot_params_phys:#x}")
    own_ram = RangeList(entry for entry, kind in e820_table(page) if kind == E820_RAM)
    if not memory.present.covers(own_ram.exclude(RangeList([core.X86_64.excluded_low_memory]))):
        raise NoCaptureError("the capture kernel's memory map has RAM where no memory is")
    for start, length in purgatory.regions:
        is_read_only = backup is not None and start == backup_at
        is_read_only |= bool(length) and memory.read(start, 4) == b"\x7fELF"
        if length and not is_read_only and not own_ram.covers(RangeList([Range(start, start + length)])):
            raise NoCaptureError(f"the capture kernel's memory map has no RAM at {start:#x}, where the image is loaded")
    address = elfcorehdr_address(memory.read(cmdline_phys(page), COMMAND_LINE_SIZE).split(b"\0")[0])
    if address is None:
        raise NoCaptureError("the capture kernel's command line has no elfcorehdr=")
    loader = Loader.KERNEL if backup is None else Loader.KEXEC_TOOLS
    return CaptureStart(OldMemory(memory, own_ram), address, loader, backup)


X86_64 = ModelArchitecture(
    name="x86_64",
    record=core.X86_64,
    default_kernel="5.10.0-model",
    console="ttyS0",
    plugs_cpus=True,
    lowest_dimm=4 * _GIB,
    default_profile=default_profile,
    kernel_tables=_kernel_tables,
    registers=_REGISTERS,
    prstatus_size=336,
    crash_notes_size=0x170,
    kernel_registers=_kernel_registers,
    busy_registers=tuple(f"r{number}" for number in range(8, 16)),
    small_capture_kernel=small_capture_kernel,
    plan_of_kexec_tools=plan_of_kexec_tools,
    plan_of_kernel=plan_of_kernel,
    control_pages=_control_pages,
    start_capture_kernel=_start_capture_kernel,
    reads_gone_memory=True,
)
