# SPDX-License-Identifier: MIT
"""The record of an architecture, and of the description from which its capture kernel starts.

Nothing outside of this package depends on the architecture in any other way than through these records.
"""

from __future__ import annotations

from enum import Enum

from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple, Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from crash_hotplug.core.elf import ProgramHeader
    from crash_hotplug.core.image import Kimage

PAGE = 4096
"""Bytes in the smallest page of any architecture: every segment is a multiple of it."""


def whole_pages(size: int, page: int = PAGE) -> int:
    """Return *size* bytes, rounded up to whole pages of *page* bytes."""
    return -(-size // page) * page


class RamTold(Enum):
    """Whether a boot description tells the capture kernel's RAM."""

    TOLD = "told"
    ELSEWHERE = "by memmap= on its command line"
    UNREADABLE = "unreadable"
    NOT_GIVEN = "not given"


class BootDescription(Protocol):
    """The part of an image that tells the capture kernel its command line, its RAM, and the place of its elfcorehdr."""

    @property
    def phys(self) -> int | None:
        """Physical address of the segment that has it; None where that is not known."""

    @property
    def cmdline(self) -> str | None:
        """The capture kernel's command line; None where it cannot be read."""

    @property
    def loader(self) -> Loader | None:
        """The loader, recognised by what it wrote; None where that shows nothing."""

    @property
    def elfcorehdr_phys(self) -> int | None:
        """Physical address at which the capture kernel looks for its elfcorehdr; None where none is given."""

    @property
    def ram_told(self) -> RamTold:
        """Whether :attr:`ram` is known."""

    @property
    def ram(self) -> RangeList:
        """Physical ranges that the capture kernel uses as RAM, without its elfcorehdr; empty where not told."""

    @property
    def ram_is_whole(self) -> bool:
        """Whether no more RAM than :attr:`ram` may be told elsewhere, where it is told."""

    @property
    def luks_keys(self) -> str | None:
        """Name of what leads the capture kernel to keys of encrypted disks in the image; None where nothing does."""

    @property
    def needed_ram(self) -> tuple[Range, ...]:
        """Physical ranges that have to be RAM of the capture kernel: this description, its initrd."""

    def why_elfcorehdr_not_found(self, elfcorehdr_phys: int | None, size: int) -> str | None:
        """Return why the capture kernel cannot be relied on to find its header; None where it will.

        :param elfcorehdr_phys: physical address of the header; None where it is not known
        :param size: bytes that the header has
        """

    def elfcorehdr_room(self, start: int, listed: int | None, bounds: Iterable[int]) -> int | None:
        """Return how many bytes the header may have before it meets what the capture kernel uses; None: not known.

        :param start: physical address of the header
        :param listed: bytes from *start* on that the header's segment has; None where that is not known
        :param bounds: physical addresses at which something begins or the reserved range ends, before *start* as well
        """

    @property
    def moved(self) -> str:
        """What it is when the header moves, for people."""

    def why_cannot_move(self) -> str | None:
        """Return why the header's place in it cannot be changed; None where it can, as far as is known."""

    def with_elfcorehdr_at(self, segment: bytes, segment_phys: int, place: Range) -> bytes:
        """Return the contents of this description's segment with the header at *place*, a physical range.

        :param segment: the present contents of the whole segment
        :raise CannotTellError: it cannot be changed
        """

    def saved(self) -> tuple[Mapping[str, bytes], Mapping[str, int]]:
        """Return what a snapshot keeps: contents by file name, and physical addresses by name."""


KERNEL_FILE_HEAD = 0x264
"""Bytes at the beginning of a kernel's file that identify it on every architecture."""


class KernelFile(NamedTuple):
    """What the file of a capture kernel says of itself."""

    init_size: int
    """Bytes of memory that the kernel takes while it starts, at least."""
    why_no_file_load: str | None
    """Why kexec_file_load would reject it with ENOEXEC; None where it would not."""


class MovableKernel(NamedTuple):
    """How an architecture's capture kernel is moved: where its loaders put it, the kernel takes its control pages."""

    alignment: int
    """Its distance to the old place is a multiple of this."""
    find: Callable[[Kimage, Callable[[int, int], bytes]], tuple[int, int] | None]
    """Returns the physical addresses of its segment and of its first instruction; reads by (address, length)."""
    start_code: Callable[[int, int], bytes]
    """Returns code that starts it; given are the physical addresses of its first instruction and of the description."""


class Architecture(NamedTuple):
    """How one architecture lays out its elfcorehdr and loads its crash image."""

    name: str
    """The name ``uname -m`` prints."""
    machine_number: int
    """``e_machine`` of its ELF files."""
    excluded_low_memory: Range
    """Physical range that the kernel's own loader leaves out of the header."""
    backup_region_source: Range
    """Physical range in which RAM that kexec-tools backs up lies; empty where it backs up none."""
    maps_kernel_text: bool
    """Whether the header has a PT_LOAD of the kernel text at its virtual address."""
    kernel_padding: int
    """The kernel's loader pads the header with zeros to a multiple of this (``ELF_CORE_HEADER_ALIGN``)."""
    kexec_load_number: int
    """Number of the system call kexec_load(2)."""
    kexec_file_load_number: int
    """Number of the system call kexec_file_load(2)."""
    kernel_text_headers: Callable[[Sequence[ProgramHeader]], Sequence[ProgramHeader]]
    """Returns those PT_LOADs of a core file, in its order, that map the kernel text."""
    control_pages: Callable[[RangeList], int]
    """Returns how many control pages the kernel takes for a crash image at most; it is given the physical RAM."""
    find_boot_description: Callable[[Kimage, Callable[[int, int], bytes]], BootDescription | None]
    """Finds the description in a loaded image; reads by (physical address, length)."""
    saved_boot_description: Callable[[Callable[[str], bytes | None], Callable[[str], int | None]], BootDescription]
    """Returns the description in a saved tree; given are functions for its files' contents and for its addresses."""
    variable_read_by: Callable[[bytes, int], int | None]
    """Returns the virtual address of the variable that a function reads; given are its first bytes and its address."""
    updated_by_kernel_since: str | None
    """The first release whose kernels may update the header themselves; None where no released kernel does."""
    describes_offline_blocks: bool
    """Whether every header describes memory blocks that are plugged in but offline; where not, some leave them out."""
    reads_gone_memory: bool
    """Whether a read of physical memory that is not there returns anything; where not, it ends the capture kernel."""
    unmaps_image_before: tuple[int, int] | None
    """The first release (major, minor) whose kernels leave the segments of a loaded image readable; None: all do."""
    reservation_advice: str | None
    """What distributions reserve for the capture kernel, for people; None where that is not known."""
    read_kernel_file: Callable[[bytes, int, str], KernelFile]
    """Checks a kernel's file; given are its first :data:`KERNEL_FILE_HEAD` bytes, its size, and its name for messages.

    It raises InputError for what is no kernel of this architecture, or is truncated.
    """
    movable_kernel: MovableKernel | None
    """How the capture kernel is moved; None where it need not be."""
    page_size: int = PAGE
    """Bytes in a page, which arm64 kernels choose when they are built."""

    def control_bytes(self, ram: RangeList) -> int:
        """Return how many bytes of control pages the kernel takes for a crash image, at most.

        :param ram: the physical ranges of RAM
        """
        return self.page_size * self.control_pages(ram)

    def padding(self, loader: Loader) -> int:
        """Return the number of bytes to a multiple of which *loader* pads a header with zeros."""
        return self.kernel_padding if loader is Loader.KERNEL else 1024
