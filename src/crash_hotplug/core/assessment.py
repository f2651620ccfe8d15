"""Judge a loaded crash image against its machine: what ``status`` shows and ``update`` acts on."""

from __future__ import annotations

from dataclasses import dataclass

from crash_hotplug.core.compare import Comparison, Finding, Kind, compare_header
from crash_hotplug.core.elfcorehdr import Dialect, ElfCoreHeader, parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError, NoRoomError
from crash_hotplug.core.expected import expected_elfcorehdr, loader_of
from crash_hotplug.core.image import CrashImage, elfcorehdr_room
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.sizes import count


@dataclass(frozen=True)
class Assessment:
    """A loaded image and what is to be said of its header."""

    header: ElfCoreHeader
    dialect: Dialect
    """Whose rules the loader followed."""
    room: int | None
    """Bytes the header may grow to, where that is known."""
    comparison: Comparison


def assess(machine: Machine, image: CrashImage) -> Assessment:
    """Compare the header of *image* with *machine*.

    :raise ElfFormatError: what stands in the image is no elfcorehdr
    """
    header = parse_elfcorehdr(image.elfcorehdr)
    dialect = loader_of(header, image)
    backup = header.backup_region
    room = elfcorehdr_room(image, machine.crashkernel, None if backup is None else backup.p_offset)
    comparison = compare_header(machine, header, dialect, room)
    if room is not None and comparison.findings:
        comparison.notes.extend(_fit_notes(machine, dialect, header, room))
    comparison.notes.extend(_capture_kernel_notes(machine, image))
    return Assessment(header, dialect, room, comparison)


def _capture_kernel_notes(machine: Machine, image: CrashImage) -> list[Finding]:
    """Say where the capture kernel may make the crashed kernel's DIMMs its own RAM, which /proc/vmcore then refuses.

    Seen on 6.1, 6.12 and 7.2 under QEMU: with a hot-added DIMM described rightly, reading it failed with EFAULT until
    the capture kernel was given ``acpi_no_memhotplug``.
    """
    if machine.acpi_memory_devices == 0 or image.cmdline is None or "acpi_no_memhotplug" in image.cmdline.split():
        return []
    devices = count(machine.acpi_memory_devices, "ACPI memory device is", "ACPI memory devices are")
    sentence = (
        f"{devices} plugged in, and the capture kernel's command line lacks acpi_no_memhotplug: it may take that "
        "memory for its own, and then no dump can hold it"
    )
    return [Finding(Kind.CAPTURE_KERNEL_CLAIMS_MEMORY, sentence)]


def _fit_notes(machine: Machine, dialect: Dialect, header: ElfCoreHeader, room: int) -> list[Finding]:
    """Say where the header cannot be corrected in its place: what the machine needs by now is larger."""
    try:
        expected_elfcorehdr(machine, dialect, header, room=room)
    except NoRoomError as error:
        return [Finding(Kind.DOES_NOT_FIT, f"it cannot be corrected in its place: {error}")]
    except CannotTellError:
        pass  # the comparison has listed what cannot be read
    return []
