# SPDX-License-Identifier: MIT
"""arm64: a guest of QEMU's ``virt`` machine with UEFI, and the start of its capture kernel from a device tree.

The start follows the kernel (arch/arm64/kernel/setup.c, arch/arm64/mm/init.c, drivers/of/fdt.c), not the product.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from crash_hotplug.core.arch import arm64 as core
from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.elf import ELF_HEADER_SIZE, PROGRAM_HEADER_SIZE
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import KernelText, NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug_lab.model.arch.architecture import CaptureStart, ControlPages, ModelArchitecture
from crash_hotplug_lab.model.arch.arm64_loaders import (
    BOOTED_FROM_KEXEC,
    ELFCOREHDR,
    IMAGE_HEADER,
    IMAGE_MAGIC,
    INITRD_END,
    INITRD_START,
    USABLE_MEMORY,
    is_whole,
    plan_of_kernel,
    plan_of_kexec_tools,
    sealed_capture_kernel,
)
from crash_hotplug_lab.model.arch.flat_tree import FlatTree, read_tree
from crash_hotplug_lab.model.capture_kernel import COMMAND_LINE_SIZE, NoCaptureError, OldMemory, elfcorehdr_address
from crash_hotplug_lab.model.kimage import ModelKimage
from crash_hotplug_lab.model.loader import KERNEL_ALIGNMENT
from crash_hotplug_lab.model.memory import PhysicalMemory
from crash_hotplug_lab.model.profile import CRASH_MAX_MEMORY_RANGES, SYSTEM_RAM, FirmwareRange, MachineProfile
from crash_hotplug_lab.model.purgatory import check_digest, is_purgatory, read_purgatory

_MIB = 1 << 20
_GIB = 1 << 30
_RAM_START = _GIB
_PAGE_OFFSET = 0xFFFF_0000_0000_0000
"""Virtual address of the first byte of RAM (VA_BITS is 48)."""
_KIMAGE_VADDR = 0xFFFF_8000_8000_0000
_FIRMWARE_TOP = (0xEF0000, 0xE70000, 0xE30000, 0xC70000, 0xBD0000, 0xA40000, 0x1E0000, 0x150000, 0x140000, 0x20000, 0)
"""Bytes from the end of RAM at which the firmware's map changes between System RAM and reserved (a captured guest)."""
_E_PHNUM = 56
"""Where an ELF header has the number of its entries."""
_LONGEST_START = 64
"""Instructions and jumps on the way from the entry point to the kernel, at most."""


def default_profile(
    kernel_release: str = "6.12.0-model",
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
    """Return a guest whose possible CPUs are those at boot: QEMU plugs none.

    :param memory: bytes of RAM at boot
    :param crashkernel: bytes reserved for the capture kernel
    :param crashkernel_low: not used: the model has one reservation here
    """
    end = _RAM_START + memory
    starts = [_RAM_START, *(end - before for before in _FIRMWARE_TOP)]
    ranges = (Range(*pair) for pair in zip(starts, starts[1:]))
    firmware = [FirmwareRange(r, "reserved" if number % 2 else SYSTEM_RAM) for number, r in enumerate(ranges)]
    reserved_at = (end - 16 * _MIB - crashkernel) // KERNEL_ALIGNMENT * KERNEL_ALIGNMENT
    percpu = end - 10 * _MIB
    return MachineProfile(
        arch=ARM64,
        kernel_release=kernel_release,
        firmware=tuple(firmware),
        crashkernel=(Range(reserved_at, reserved_at + crashkernel),),
        kernel_text=KernelText(_KIMAGE_VADDR, _RAM_START + 16 * _MIB, 0x1E7_0000),
        page_offset=_PAGE_OFFSET - _RAM_START,
        vmcoreinfo=NoteRegion(_RAM_START + 0x99_0000, 0x1024),
        crash_notes=tuple(percpu + number * 0x8000 + 0x1C00 for number in range(boot_cpus)),
        boot_cpus=boot_cpus,
        block_size=block_size,
        auto_online=auto_online,
        max_memory_ranges=max_memory_ranges,
        has_v6_patches=has_v6_patches,
    )


@dataclass(frozen=True)
class _KernelTables:
    """vmcoreinfo only: makedumpfile (1.7.8) reads no dump of such a kernel, so the model has no page tables here."""

    profile: MachineProfile

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Yield nothing."""
        return iter(())

    def section_table(self, _ram: RangeList) -> Iterator[tuple[int, bytes]]:
        """Yield nothing."""
        return iter(())

    def vmcoreinfo(self, panic_time: int) -> bytes:
        """Return the lines that a reader of addresses needs (``arch_crash_save_vmcoreinfo()``)."""
        text = self.profile.kernel_text
        lines = [
            f"OSRELEASE={self.profile.kernel_release}",
            "PAGESIZE=4096",
            f"SYMBOL(_stext)={text.virt:x}",
            "NUMBER(VA_BITS)=48",
            f"NUMBER(kimage_voffset)=0x{text.virt - text.phys:x}",
            f"NUMBER(PHYS_OFFSET)=0x{_RAM_START:x}",
            f"KERNELOFFSET={text.virt - _KIMAGE_VADDR:x}",
            f"CRASHTIME={panic_time}",
        ]
        return "\n".join([*lines, ""]).encode()


_REGISTERS = (*(f"x{number}" for number in range(31)), "sp", "pc", "pstate")
"""``struct user_pt_regs``, in order."""
_EL1H = 0x5


def _kernel_registers(cpu: int, kernel_virt: int, stack_virt: int) -> dict[str, int]:
    """Return addresses inside the kernel, and the state of a CPU that runs at EL1."""
    values = {"pc": kernel_virt + 0x1000 + 0x10 * cpu, "sp": stack_virt, "x29": stack_virt + 0x80}
    return {**values, "pstate": _EL1H}


def _control_pages(_ram: RangeList) -> tuple[ControlPages, ...]:
    """Return the page for code, which a crash image leaves as it is (5.16 and newer), and vmcoreinfo's copy.

    ``kimage_crash_copy_vmcoreinfo()`` of kernel/kexec_core.c writes the copy with every load.
    """
    return (ControlPages(PAGE, is_written=False), ControlPages(PAGE, is_written=True))


def _start_capture_kernel(memory: PhysicalMemory, loaded: ModelKimage) -> CaptureStart:
    """Run from the entry point to the kernel, and let the kernel read its device tree.

    :raise DigestError: purgatory rejects the image
    :raise NoCaptureError: it does not start, or finds no elfcorehdr
    :raise AbsentMemoryError: a part of it has no memory behind it
    """
    kernel_at, tree_at = _jump(memory, loaded.kimage.entry_phys, loaded.argument_phys)
    head = IMAGE_HEADER.unpack(memory.read(kernel_at, IMAGE_HEADER.size))
    text_offset, image_size = head[2:4]
    kernel = Range(kernel_at - text_offset, kernel_at - text_offset + image_size)
    if kernel.start % KERNEL_ALIGNMENT:
        raise NoCaptureError(f"the capture kernel at {kernel_at:#x} is not aligned to 2 MiB: it does not start")
    if not is_whole(memory, kernel_at):
        raise NoCaptureError(f"the capture kernel at {kernel_at:#x} is overwritten: it does not start")
    tree = read_tree(memory, tree_at)
    initrd = Range(*(next(iter(tree.numbers(name)), 0) for name in (INITRD_START, INITRD_END)))
    if initrd.size <= 0:
        raise NoCaptureError("the capture kernel's device tree has no initrd: nothing saves the dump")
    if not is_whole(memory, initrd.start):
        raise NoCaptureError(f"the initrd at {initrd.start:#x} is overwritten: nothing saves the dump")
    ram = _usable_ram(memory, tree)
    for part in (kernel, tree.range, initrd):
        if not ram.covers(RangeList([part])):
            raise NoCaptureError(f"the capture kernel has no RAM at {part.start:#x}, where the image is loaded")
    address, room = _find_elfcorehdr(tree)
    # The header is read through the linear map (elfcorehdr_read()), which has the kernel's RAM only.
    entries = int.from_bytes(memory.read(address + _E_PHNUM, 2), "little")
    size = ELF_HEADER_SIZE + PROGRAM_HEADER_SIZE * entries
    if not ram.covers(RangeList([Range(address, address + size)])):
        raise NoCaptureError(f"the elfcorehdr at {address:#x} is not in the capture kernel's RAM: it cannot be read")
    taken = RangeList([kernel, tree.range, initrd])
    # "elfcorehdr is overlapped": the kernel reserves nothing then (fdt_reserve_elfcorehdr()).
    reserved = [] if taken.intersect(RangeList([room])) else [room]
    reserved += [r for r in tree.reservations if not r.overlaps(initrd)]
    own_ram = ram.exclude(RangeList(reserved))
    loader = Loader.KEXEC_TOOLS if tree.value(BOOTED_FROM_KEXEC) is None else Loader.KERNEL
    return CaptureStart(OldMemory(memory, own_ram, reads_gone_memory=False), address, loader)


def _jump(memory: PhysicalMemory, entry_phys: int, argument_phys: int) -> tuple[int, int]:
    """Run purgatory, or the code at the entry point, up to the kernel's first instruction.

    :return: the physical addresses of the kernel and, in x0, of the device tree
    :raise NoCaptureError: it does not come to a kernel
    """
    at, x = entry_phys, [0] * 31
    x[0] = argument_phys  # machine_kexec() passes arch.dtb_mem
    for _step in range(_LONGEST_START):
        if memory.read(at + IMAGE_HEADER.size - 8, 4) == IMAGE_MAGIC:
            if any(x[1:4]):
                raise NoCaptureError("x1 to x3 are not 0 at the start of the capture kernel")
            return at, x[0]
        if is_purgatory(memory, at):
            purgatory = read_purgatory(memory, at)
            check_digest(memory, purgatory)
            at, x[0] = purgatory.words[:2]
            continue
        (word,) = struct.unpack("<I", memory.read(at, 4))
        target, source = word & 31, word >> 5 & 31
        if word >> 24 == 0x58:  # ldr, of a 64-bit word behind it
            (x[target],) = struct.unpack("<Q", memory.read(at + 4 * (word >> 5 & 0x3FFFF), 8))
        elif word & ~31 == 0xAA1F_03E0:  # mov, from xzr
            x[target] = 0
        elif word & ~(31 << 5) == 0xD61F_0000:  # br
            at = x[source]
            continue
        else:
            break
        at += 4
    raise NoCaptureError(f"no kernel starts from the code at {entry_phys:#x}")


def _usable_ram(memory: PhysicalMemory, tree: FlatTree) -> RangeList:
    """Return the capture kernel's RAM (``early_init_dt_check_for_usable_mem_range()``): all memory where none is told.

    The first range caps the memory; ``memblock_cap_memory_range()`` ignores one of no bytes.  The second is added.

    :raise NoCaptureError: the second range has no memory behind it
    """
    numbers = tree.numbers(USABLE_MEMORY)
    ranges = [Range(start, start + size) for start, size in zip(numbers[::2], numbers[1::2])]
    if not ranges or not ranges[0].size:
        return memory.present
    added = RangeList(ranges[1:2])
    if not memory.present.covers(added):
        raise NoCaptureError("the capture kernel's device tree has RAM where no memory is")
    return memory.present.intersect(RangeList(ranges[:1])).union(added)


def _find_elfcorehdr(tree: FlatTree) -> tuple[int, Range]:
    """Return the elfcorehdr's physical address, and the physical range that the kernel reserves for it.

    ``elfcorehdr=`` on the command line overrides the address in the tree (``setup_elfcorehdr()``).
    """
    numbers = tree.numbers(ELFCOREHDR)
    cmdline = (tree.value("bootargs") or b"").split(b"\0")[0][:COMMAND_LINE_SIZE]
    address = elfcorehdr_address(cmdline)
    if address is None and not numbers:
        raise NoCaptureError("the capture kernel's device tree has no linux,elfcorehdr")
    place, size = numbers[:2] if numbers else (0, 0)
    address = place if address is None else address
    return address, Range(address, address + size)


ARM64 = ModelArchitecture(
    name="arm64",
    record=core.ARM64,
    default_kernel="6.12.0-model",
    console="ttyAMA0",
    plugs_cpus=False,
    lowest_dimm=_RAM_START,
    default_profile=default_profile,
    kernel_tables=_KernelTables,
    registers=_REGISTERS,
    prstatus_size=392,
    crash_notes_size=0x1A8,
    kernel_registers=_kernel_registers,
    busy_registers=tuple(f"x{number}" for number in range(8, 16)),
    small_capture_kernel=sealed_capture_kernel,
    plan_of_kexec_tools=plan_of_kexec_tools,
    plan_of_kernel=plan_of_kernel,
    control_pages=_control_pages,
    start_capture_kernel=_start_capture_kernel,
    reads_gone_memory=False,
)
