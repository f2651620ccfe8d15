# SPDX-License-Identifier: MIT
"""The verdict on a header: the losses of a dump made now, as findings, notes and checks that could not be made.

:func:`assess` judges a loaded crash image, which ``status`` shows and ``update`` acts on; :func:`compare_header` any
header; the single comparisons serve a vmcore as well (core/dump/vmcore.py).
"""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import RamTold
from crash_hotplug.core.elf import PROGRAM_HEADER_SIZE, ProgramHeader
from crash_hotplug.core.elfcorehdr import ElfCoreHeader, entries_that_fit, parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError, NoRoomError
from crash_hotplug.core.expected import describes_possible_cpus, expected_elfcorehdr, loader_of, with_capture_ram
from crash_hotplug.core.finding import Comparison, Finding, Kind, placed
from crash_hotplug.core.header_shape import compare_notes, shape_findings, unusual_notes
from crash_hotplug.core.image import CrashImage, elfcorehdr_room
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import KernelText, Machine
from crash_hotplug.core.ranges import RangeList, compare_ranges
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.sizes import count, cpu_list, human_size


class Assessment(NamedTuple):
    """A loaded image and the verdict on its header."""

    header: ElfCoreHeader
    loader: Loader
    """The loader whose rules the header follows."""
    room: int | None
    """Bytes the header may grow to, where that is known."""
    comparison: Comparison


def assess(machine: Machine, image: CrashImage) -> Assessment:
    """Compare the header of *image* with *machine*.

    :raise ElfFormatError: the image's bytes are not an elfcorehdr
    """
    known, machine = machine, with_capture_ram(machine, image)
    header = parse_elfcorehdr(image.elfcorehdr)
    loader = loader_of(header, image)
    backup = header.backup_region
    room = elfcorehdr_room(image, machine.crashkernel, None if backup is None else backup.p_offset)
    comparison = compare_header(machine, header, loader, room)
    if room is not None and comparison.findings:
        comparison.notes.extend(_fit_notes(machine, loader, header, room))
    if image.torn is not None:
        sentence = f"an update left this image torn: {image.torn}; reload it, or verify it with update --verify full"
        comparison.findings.insert(0, Finding(Kind.TORN_IMAGE, sentence))
    comparison.notes.extend(_capture_kernel_notes(machine, image))
    _compare_place(image, comparison)
    _compare_backup_place(machine, image, backup, comparison)
    _compare_memory_map(known, image, header, comparison)
    return Assessment(header, loader, room, comparison)


def _compare_place(image: CrashImage, result: Comparison) -> None:
    """Compare the ``elfcorehdr=`` by which the capture kernel finds the header with the place that it was read from."""
    check = "whether the capture kernel finds this header: its command line"
    if image.why_header_not_found is not None:
        result.findings.append(Finding(Kind.HEADER_NOT_FOUND, image.why_header_not_found))
    elif image.cmdline is None and image.elfcorehdr_phys is None:
        result.left_out.append(f"{check} was not given")
    elif image.cmdline is None:
        result.unchecked.append(f"{check} cannot be read out of the image")
    elif image.elfcorehdr_phys is None:
        result.unchecked.append("whether the capture kernel finds this header: the header's own address is not known")


def _compare_backup_place(
    machine: Machine, image: CrashImage, backup: ProgramHeader | None, result: Comparison
) -> None:
    """Compare the place from which low memory would be read with the one to which purgatory copies it."""
    if backup is None or backup.p_memsz == 0:
        return
    meant, copied = f"the first 640 KiB would be read from {backup.p_offset:#x}", image.backup_region_phys
    place = RangeList([(backup.p_offset, min(backup.p_offset + backup.p_memsz, 1 << 64))])
    ram = image.capture_ram
    header = image.elfcorehdr_phys
    taken = RangeList([] if header is None else [(header, header + len(image.elfcorehdr))])
    if copied is not None and copied != backup.p_offset:
        sentence = f"{meant}, but purgatory copies them to {copied:#x}: the wrong memory"
    elif not machine.crashkernel.covers(place):
        sentence = f"{meant}, which is not reserved memory: purgatory's copy cannot be there"
    elif place.intersect(ram) or place.intersect(taken):
        sentence = f"{meant}, which the capture kernel uses for something else: purgatory's copy cannot be there"
    else:
        return
    result.findings.append(Finding(Kind.WRONG_BACKUP_REGION, sentence, tuple(place)))


def _compare_memory_map(machine: Machine, image: CrashImage, header: ElfCoreHeader, result: Comparison) -> None:
    """Compare the RAM that *image* gives the capture kernel with the memory it runs in and must read.

    The capture kernel cannot read its own RAM as old memory (``copy_oldmem_page()`` maps it by ``ioremap()``).
    """
    if image.boot is None or image.boot.ram_told is RamTold.NOT_GIVEN:
        return  # _compare_place() names the missing check
    if image.boot.ram_told is RamTold.ELSEWHERE:
        result.left_out.append("the memory that the capture kernel uses: its command line has memmap=")
        return
    if image.boot.ram_told is RamTold.UNREADABLE:
        result.unchecked.append("the memory that the capture kernel uses: its boot description is not readable")
        return
    ram = image.capture_ram
    low = RangeList([machine.architecture.excluded_low_memory])
    for needed in image.boot.needed_ram:
        if not ram.covers(RangeList([needed])):
            sentence = f"has no RAM at {needed.start:#x}, where the capture kernel is loaded: it cannot start"
            _add_claim(result, sentence, RangeList([needed]))
    if not machine.reserves_cma:
        for foreign in ram.exclude(low.union(machine.not_dumpable)):
            sentence = (
                f"has {placed(foreign)} as RAM, which is not reserved for it: it would use that memory as its own"
            )
            _add_claim(result, sentence, RangeList([foreign]))
    at = image.elfcorehdr_phys
    if at is not None and ram.intersect(RangeList([(at, at + header.size)])):
        _add_claim(result, f"has the elfcorehdr's place at {at:#x} as RAM: it cannot read the header", RangeList())
    notes = RangeList((note.phys, min(note.phys + note.size, 1 << 64)) for note in header.notes)
    if notes.intersect(ram):
        _add_claim(result, "has notes that the header describes as RAM: it cannot read them", notes.intersect(ram))
    low_end = machine.architecture.excluded_low_memory.end
    in_place = RangeList(
        (p.p_paddr, p.p_paddr + p.p_memsz) for p in header.ram_headers if p.p_offset == p.p_paddr < low_end
    )
    if in_place.intersect(low).intersect(ram):
        lost = in_place.intersect(low).intersect(ram)
        _add_claim(result, f"has {placed(lost[0])} as RAM, which it would have to read from there", lost)


def _add_claim(result: Comparison, sentence: str, ranges: RangeList) -> None:
    sentence = f"the capture kernel's memory map {sentence}"
    result.findings.append(Finding(Kind.CAPTURE_KERNEL_CLAIMS_MEMORY, sentence, tuple(ranges)))


def _capture_kernel_notes(machine: Machine, image: CrashImage) -> list[Finding]:
    """Note that the capture kernel may use the crashed kernel's DIMMs as RAM, which /proc/vmcore then cannot read.

    Seen on 6.1, 6.12 and 7.2 under QEMU: without ``acpi_no_memhotplug`` reading a described DIMM failed with EFAULT.
    """
    if machine.acpi_memory_devices == 0 or image.cmdline is None or "acpi_no_memhotplug" in image.cmdline.split():
        return []
    devices = count(machine.acpi_memory_devices, "ACPI memory device is", "ACPI memory devices are")
    sentence = (
        f"{devices} plugged in, and the capture kernel's command line lacks acpi_no_memhotplug: the capture "
        "kernel may use that memory as its own, and no dump can then contain it"
    )
    return [Finding(Kind.CAPTURE_KERNEL_CLAIMS_MEMORY, sentence)]


def _fit_notes(machine: Machine, loader: Loader, header: ElfCoreHeader, room: int) -> list[Finding]:
    """Note that the header cannot be corrected in its place, because the machine needs a larger one."""
    try:
        expected_elfcorehdr(machine, loader, header, room=room)
    except NoRoomError as error:
        return [Finding(Kind.DOES_NOT_FIT, f"the header cannot be corrected in its place: {error}")]
    except CannotTellError:
        pass  # the comparison has listed the values that cannot be read
    return []


class Wording(NamedTuple):
    """The ends of the sentences about memory: before a panic, or about an existing dump."""

    missing: str
    gone: str
    reserved: str
    not_plugged: str


BEFORE_PANIC = Wording(
    "is not described: a dump would lack that memory",
    "is described but gone: saving the dump would read memory that is not there, which can fail or hang",
    "is described but reserved: a dump would hold the capture kernel's own memory",
    "is described, but virtio-mem has not plugged it: a dump would have zeros there, or leave it out as offline pages",
)
IN_DUMP = Wording(
    "is not described: the dump lacks that memory",
    "was described but gone: its bytes in the dump are not memory contents",
    "was described but reserved: the dump has the capture kernel's own memory there",
    "was described, but virtio-mem had not plugged it: zeros there, or pages left out, are no loss",
)


def compare_header(machine: Machine, header: ElfCoreHeader, loader: Loader, room: int | None = None) -> Comparison:
    """Compare *header* with *machine*.

    :param loader: the loader of the image; decides whether a missing backup region was dropped
    :param room: bytes that the header may grow to, where that is known
    """
    result = Comparison()
    _compare_cpus(machine, header, result)
    compare_memory(machine, header.ram, result)
    _compare_low_memory(machine, header, loader, result)
    result.findings.extend(shape_findings(header))
    compare_notes(machine, header, result)
    result.notes.extend(unusual_notes(machine, header))
    _compare_vmcoreinfo(machine, header, result)
    compare_kernel_text(machine, header.kernel_text, result)
    compare_direct_map(machine, header.ram_headers, result)
    if room is not None:
        result.notes.append(_room_note(header, room))
    return result


def _compare_cpus(machine: Machine, header: ElfCoreHeader, result: Comparison) -> None:
    """Look up every present CPU by the address of its notes: positions mean nothing once CPUs were removed."""
    described = {note.phys: note for note in sorted(header.notes)}  # of two descriptions the larger one counts
    unreadable = []
    for cpu in machine.present_cpus:
        if cpu.crash_notes is None:
            unreadable.append(cpu.number)
            continue
        note = described.get(cpu.crash_notes.phys)
        if note is None and cpu.online:
            sentence = f"CPU {cpu.number} is not described: a dump would lack its registers and so its stack"
            result.findings.append(Finding(Kind.CPU_MISSING, sentence, cpu=cpu.number))
        elif note is None:
            sentence = (
                f"CPU {cpu.number} is plugged in but offline, and not described: its registers will be missing from "
                "a dump once it is online"
            )
            result.notes.append(Finding(Kind.CPU_OFFLINE_NOT_DESCRIBED, sentence, cpu=cpu.number))
        elif note.size < cpu.crash_notes.size:
            sentence = (
                f"CPU {cpu.number} saves {cpu.crash_notes.size} bytes, but only {note.size} are described: "
                "a dump would contain only a part of its registers"
            )
            # A CPU that is offline saves nothing.
            found = result.findings if cpu.online else result.notes
            found.append(Finding(Kind.CPU_NOTES_TOO_SMALL, sentence, cpu=cpu.number))
    if unreadable:
        subject = f"CPU {unreadable[0]} is" if len(unreadable) == 1 else f"CPUs {cpu_list(unreadable)} are"
        result.unchecked.append(f"whether {subject} described: crash_notes cannot be read")
    if describes_possible_cpus(header, machine) and len(machine.cpus) > len(machine.present_cpus):
        sentence = f"all {len(machine.cpus)} possible CPUs are described: CPU hot-plug needs no update"
        result.notes.append(Finding(Kind.ALL_POSSIBLE_CPUS, sentence))


def compare_memory(machine: Machine, described: RangeList, result: Comparison, wording: Wording = BEFORE_PANIC) -> None:
    """Compare RAM above low memory with the physical ranges that a header or a vmcore describes."""
    low = RangeList([machine.architecture.excluded_low_memory])
    difference = compare_ranges(machine.dumpable_ram.exclude(low), described.exclude(low))
    offline = _offline_ram(machine)
    for left_out in difference.only_first.intersect(offline):
        sentence = f"{placed(left_out)} is offline and not described: offline memory has no contents to lose"
        result.notes.append(Finding(Kind.MEMORY_OFFLINE_NOT_DESCRIBED, sentence, (left_out,)))
    for missing in difference.only_first.exclude(offline):
        result.findings.append(Finding(Kind.MEMORY_MISSING, f"{placed(missing)} {wording.missing}", (missing,)))
    reserved = difference.only_second.intersect(machine.not_dumpable)
    for gone in difference.only_second.exclude(reserved):
        result.findings.append(Finding(Kind.MEMORY_GONE, f"{placed(gone)} {wording.gone}", (gone,)))
    for own in reserved:
        result.findings.append(Finding(Kind.CRASHKERNEL_DESCRIBED, f"{placed(own)} {wording.reserved}", (own,)))
    _note_not_plugged(machine, described, result, wording)


def _note_not_plugged(machine: Machine, described: RangeList, result: Comparison, wording: Wording) -> None:
    """Note the described memory that virtio-mem has not plugged; the kernel and all loaders describe whole blocks."""
    if machine.not_plugged is None:
        result.left_out.append("which memory of virtio-mem is plugged: /proc/kpageflags was not readable, or not saved")
    elif ranges := machine.not_plugged.intersect(described):
        subject = f"{human_size(ranges.size)} in {len(ranges):,} ranges" if len(ranges) > 1 else placed(ranges[0])
        result.notes.append(Finding(Kind.MEMORY_NOT_PLUGGED, f"{subject} {wording.not_plugged}", tuple(ranges)))


def _offline_ram(machine: Machine) -> RangeList:
    """Return the physical ranges that are plugged in but offline, where some headers rightly leave them out."""
    if machine.memory_blocks is None or machine.architecture.describes_offline_blocks:
        return RangeList()
    return machine.memory_blocks.offline_ram


def _compare_low_memory(machine: Machine, header: ElfCoreHeader, loader: Loader, result: Comparison) -> None:
    low = machine.dumpable_ram.intersect(RangeList([machine.architecture.backup_region_source]))
    gone = header.ram.intersect(RangeList([machine.architecture.excluded_low_memory])).exclude(machine.ram)
    for stale in gone:
        lost = "is described but not RAM: saving the dump would read addresses that are not memory"
        result.findings.append(Finding(Kind.MEMORY_GONE, f"{placed(stale)} {lost}", (stale,)))
    compare_backup_region(machine, low.exclude(header.ram), loader, result)


def compare_backup_region(machine: Machine, undescribed: RangeList, loader: Loader, result: Comparison) -> None:
    """Judge RAM below 640 KiB that is not described: a note only, where the kernel does not use it.

    :param undescribed: physical ranges of low memory that are RAM and that no PT_LOAD describes
    """
    if not undescribed:
        return
    keeps_out = machine.keeps_out_of_low_memory
    if loader is Loader.KERNEL and keeps_out:
        return  # left out on purpose by the kernel's loader
    lost = f"the first 640 KiB are no longer described ({human_size(undescribed.size)} of RAM)"
    if loader is Loader.KERNEL:
        lost = f"the first 640 KiB are not described ({human_size(undescribed.size)} of RAM)"
    if keeps_out is None:
        result.unchecked.append(f"{lost}; whether this kernel uses them: its release is not known")
        return
    if keeps_out:
        sentence = f"{lost}: the loader's backup region was dropped; this kernel does not use the first 1 MiB"
        result.notes.append(Finding(Kind.BACKUP_REGION_DROPPED, sentence, tuple(undescribed)))
        return
    sentence = f"{lost}: a dump would lack the data that this kernel keeps there"
    result.findings.append(Finding(Kind.BACKUP_REGION_DROPPED, sentence, tuple(undescribed)))


def _compare_vmcoreinfo(machine: Machine, header: ElfCoreHeader, result: Comparison) -> None:
    if machine.vmcoreinfo is None:
        result.unchecked.append("the place of vmcoreinfo: /sys/kernel/vmcoreinfo cannot be read")
    elif machine.vmcoreinfo not in header.notes:
        sentence = f"vmcoreinfo at {machine.vmcoreinfo.phys:#x} is not described: tools could not read the dump"
        result.findings.append(Finding(Kind.WRONG_VMCOREINFO, sentence))


def compare_direct_map(machine: Machine, ram_headers: tuple[ProgramHeader, ...], result: Comparison) -> None:
    """Compare the virtual addresses of RAM with the machine's direct map, which is fixed at boot."""
    offset = machine.page_offset
    if offset is None:
        result.unchecked.append("the direct-map address of RAM: /proc/kcore cannot be read")
        return
    wrong = [p for p in ram_headers if p.p_vaddr != p.p_paddr + offset]
    if wrong:
        ranges = count(len(wrong), "memory range has", "memory ranges have")
        sentence = (
            f"{ranges} the wrong virtual address, the first at {wrong[0].p_paddr:#x}: "
            "debuggers would read the wrong memory"
        )
        wrong_ranges = RangeList((p.p_paddr, min(p.p_paddr + p.p_memsz, 1 << 64)) for p in wrong)
        result.findings.append(Finding(Kind.WRONG_DIRECT_MAP, sentence, tuple(wrong_ranges)))


def compare_kernel_text(machine: Machine, described: KernelText | None, result: Comparison) -> None:
    """Compare the described kernel text with the running kernel's, which is fixed at boot."""
    if not machine.architecture.maps_kernel_text:
        return
    if machine.kernel_text is None:
        result.unchecked.append("the addresses of the kernel text: /proc/kallsyms or /proc/kcore cannot be read")
    elif described is None:
        sentence = "the kernel text is not described: debuggers could not find the kernel's code and data"
        result.findings.append(Finding(Kind.WRONG_KERNEL_TEXT, sentence))
    elif described != machine.kernel_text:
        sentence = (
            f"the kernel text is described as {_text(described)}; it is {_text(machine.kernel_text)}: "
            "debuggers could not find the kernel's code and data"
        )
        result.findings.append(Finding(Kind.WRONG_KERNEL_TEXT, sentence))


def compare_text_offset(machine: Machine, offset: int | None, result: Comparison) -> None:
    """Compare the virtual minus the physical address of the kernel text with the running kernel's.

    :param offset: that of a dump without virtual addresses, modulo 2^64; None where it is not known
    """
    if machine.kernel_text is None:
        result.unchecked.append("the addresses of the kernel text: /proc/kallsyms or /proc/kcore cannot be read")
    elif offset is None:
        result.unchecked.append("the addresses of the kernel text: vmcoreinfo has neither phys_base nor kimage_voffset")
    elif (machine.kernel_text.virt - machine.kernel_text.phys - offset) % (1 << 64):
        sentence = (
            f"the kernel text is described as {offset:#x} above its physical address; it is "
            f"{_text(machine.kernel_text)}: debuggers could not find the kernel's code and data"
        )
        result.findings.append(Finding(Kind.WRONG_KERNEL_TEXT, sentence))


def _text(text: KernelText) -> str:
    return f"{text.size:#x} bytes at virtual {text.virt:#x}, physical {text.phys:#x}"


def _room_note(header: ElfCoreHeader, room: int) -> Finding:
    left = entries_that_fit(room) - len(header.program_headers)
    if left < 0:
        sentence = f"the header has {header.size} bytes and does not fit into its segment of {room}"
    else:
        sentence = (
            f"room left for {count(left, 'more CPU or memory range', 'more CPUs or memory ranges')} "
            f"({header.size} of {room} bytes used, {PROGRAM_HEADER_SIZE} each)"
        )
    return Finding(Kind.ROOM_LEFT, sentence)
