# SPDX-License-Identifier: MIT
"""The header that a machine should have now."""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import RamTold
from crash_hotplug.core.elf import ProgramHeader
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, build_elfcorehdr, parse_elfcorehdr, ram_header
from crash_hotplug.core.errors import CannotTellError, NoRoomError
from crash_hotplug.core.image import CrashImage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import KernelText, Machine, NoteRegion, kernel_version
from crash_hotplug.core.ranges import Range, RangeList


def expected_elfcorehdr(
    machine: Machine,
    loader: Loader,
    loaded: ElfCoreHeader | None = None,
    backup_region_phys: int | None = None,
    room: int | None = None,
    possible_cpus: bool = False,
) -> ElfCoreHeader:
    """Build the header that describes *machine* completely.

    The new header keeps the parts of the *loaded* one that its loader wrote: the backup region (kernel fixes
    eef879190a1f and 9103787054c6 on powerpc), and the notes of all possible CPUs where it has them.  A header of
    present CPUs loses a removed CPU.

    :param loader: the loader whose rules apply to low memory
    :param backup_region_phys: physical address to which purgatory copies low memory, where *loaded* lacks it
    :param room: bytes that the header may take
    :param possible_cpus: describe every possible CPU, as an update in place does, where all their notes are known
    :raise CannotTellError: something that has to be described could not be read
    :raise NoRoomError: the header is larger than *room*
    """
    offset = _direct_map_offset(machine, loaded)
    low_memory = RangeList([machine.architecture.excluded_low_memory])
    ram = machine.dumpable_ram
    ram_headers = _low_memory_headers(machine, loader, loaded, backup_region_phys, ram.intersect(low_memory), offset)
    ram_headers += [ram_header(high, offset) for high in ram.exclude(low_memory)]
    header = build_elfcorehdr(
        machine.architecture,
        _cpu_notes(machine, loader, loaded, possible_cpus),
        _vmcoreinfo(machine, loaded),
        _kernel_text(machine, loaded),
        ram_headers,
    )
    if room is not None and header.size > room:
        raise NoRoomError(f"the elfcorehdr for this machine needs {header.size} bytes, its segment has room for {room}")
    return header


def header_to_write(machine: Machine, image: CrashImage, possible_cpus: bool = True) -> ElfCoreHeader:
    """Build the header that an update writes into *image*; it keeps the parts that the loader wrote.

    :param possible_cpus: describe every possible CPU, where all their notes are known; else the present ones
    :raise CannotTellError: something that has to be described could not be read
    """
    machine = with_capture_ram(machine, image)
    loaded = parse_elfcorehdr(image.elfcorehdr)
    loader, backup = loader_of(loaded, image), image.backup_region_phys
    return expected_elfcorehdr(machine, loader, loaded, backup, possible_cpus=possible_cpus)


def with_capture_ram(machine: Machine, image: CrashImage) -> Machine:
    """Return *machine* with the RAM outside of the reserved region that *image* gives its capture kernel.

    That is the memory of ``crashkernel=SIZE,cma`` (Linux 6.17 and newer; /sys shows it since 6.19).  The memory map of
    the image decides.  kexec_file_load(2) writes the CMA range into it: the capture kernel overwrites that memory, and
    no dump can have it.  kexec-tools (2.0.29) leaves the range out: a dump has it as any other RAM.
    """
    if image.boot is None or image.boot.ram_told is not RamTold.TOLD:
        return machine
    low = RangeList([machine.architecture.excluded_low_memory])
    own = image.capture_ram.exclude(machine.crashkernel).exclude(low)
    return machine._replace(capture_ram=own if image.boot.ram_is_whole else own.union(machine.capture_ram))


def loader_of(header: ElfCoreHeader, image: CrashImage) -> Loader:
    """Return the loader of *image*: from its command line, else from the presence of a backup region in the header.

    The command line is asked first because the kernel drops the backup region when it updates a header that
    kexec-tools wrote.
    """
    if image.loader is not None:
        return image.loader
    return Loader.KERNEL if header.backup_region is None else Loader.KEXEC_TOOLS


def describes_possible_cpus(header: ElfCoreHeader, machine: Machine) -> bool:
    """Whether *header* has a note for every possible CPU, so that CPU hot-plug never changes it.

    Kernels from 6.6 on write such headers.  The number of notes decides, because the addresses of CPUs that are not
    present are often unknown.
    """
    return len(set(header.cpu_notes)) >= len(machine.cpus)


def _cpu_notes(machine: Machine, loader: Loader, loaded: ElfCoreHeader | None, all_possible: bool) -> list[NoteRegion]:
    present = [_notes_of(cpu.number, cpu.crash_notes) for cpu in machine.present_cpus]
    if loaded is not None and describes_possible_cpus(loaded, machine):
        return list(dict.fromkeys([*loaded.cpu_notes, *present]))
    possible = [cpu.crash_notes for cpu in machine.cpus if cpu.crash_notes is not None]
    # for_each_possible_cpu() in crash_prepare_elf64_headers() since Linux 6.6.
    kernel_writes_possible = (kernel_version(machine.kernel_release) or (0, 0)) >= (6, 6)
    from_kernel = loaded is None and loader is Loader.KERNEL and kernel_writes_possible
    return possible if (from_kernel or all_possible) and len(possible) == len(machine.cpus) else present


def _notes_of(number: int, crash_notes: NoteRegion | None) -> NoteRegion:
    if crash_notes is None:
        raise CannotTellError(f"the address of CPU {number}'s crash_notes cannot be read; run as root")
    return crash_notes


def _direct_map_offset(machine: Machine, loaded: ElfCoreHeader | None) -> int:
    if machine.page_offset is not None:
        return machine.page_offset
    # It is fixed at boot, so a header loaded by this kernel has it right.
    if loaded is not None and loaded.ram_headers:
        return loaded.ram_headers[-1].p_vaddr - loaded.ram_headers[-1].p_paddr
    raise CannotTellError("the direct-map address of RAM cannot be read; root can read it from /proc/kcore")


def _kernel_text(machine: Machine, loaded: ElfCoreHeader | None) -> KernelText | None:
    if not machine.architecture.maps_kernel_text:
        return None
    text = machine.kernel_text or (loaded.kernel_text if loaded is not None else None)
    if text is None:
        raise CannotTellError("the addresses of the kernel text cannot be read; root can read them from /proc/kallsyms")
    return text


def _vmcoreinfo(machine: Machine, loaded: ElfCoreHeader | None) -> NoteRegion:
    vmcoreinfo = machine.vmcoreinfo or (loaded.vmcoreinfo if loaded is not None else None)
    if vmcoreinfo is None:
        raise CannotTellError("the place of vmcoreinfo cannot be read (/sys/kernel/vmcoreinfo)")
    return vmcoreinfo


def _low_memory_headers(
    machine: Machine,
    loader: Loader,
    loaded: ElfCoreHeader | None,
    backup_region_phys: int | None,
    low: RangeList,
    offset: int,
) -> list[ProgramHeader]:
    """Return the PT_LOADs of low memory: the backed-up range, and for kexec-tools its other ranges."""
    backed_up = low.intersect(RangeList([machine.architecture.backup_region_source]))
    if loaded is not None and loaded.backup_region is not None:
        backup = loaded.backup_region
        source = Range(backup.p_paddr, backup.p_paddr + backup.p_memsz)
        # Purgatory's own variable says where the copy is, whatever the loaded header says.
        headers = [backup if backup_region_phys is None else backup._replace(p_offset=backup_region_phys)]
    elif backup_region_phys is not None and backed_up:
        # kexec-tools backs up the first range below 640 KiB (get_backup_area() in crashdump-x86.c).
        source = backed_up[0]
        headers = [ram_header(source, offset, backup_region_phys)]
    elif loaded is None and loader is Loader.KEXEC_TOOLS and backed_up:
        raise CannotTellError(
            "a header of kexec-tools points to the backup region, and only a loaded header or the loader has the "
            "address of that region"
        )
    else:
        return []
    if loader is Loader.KEXEC_TOOLS:
        headers += [ram_header(ram, offset) for ram in low.exclude(RangeList([source]))]
    return sorted(headers, key=lambda p: p.p_paddr)
