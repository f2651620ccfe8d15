# SPDX-License-Identifier: MIT
"""The boot description of x86: the zero page (``struct boot_params``) with command line, E820 table, setup header.

Offsets are those of Documentation/arch/x86/zero-page.rst and boot.rst; no other module has them.
"""

from __future__ import annotations

import re
import struct

from crash_hotplug.core.arch.architecture import PAGE, RamTold
from crash_hotplug.core.arch.cmdline import arguments, has_argument, read_cmdline
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from crash_hotplug.core.image import Kimage

E820_RAM = 1
E820_RESERVED = 2
E820_MAX = 128
E820_COUNT = 0x1E8
"""The number of E820 entries, one byte."""
E820_TABLE = 0x2D0
E820_ENTRY = struct.Struct("<QQI")
"""Physical start, size, type."""
SETUP_SECTS, SYSSIZE, BOOT_FLAG, MAGIC, VERSION = 0x1F1, 0x1F4, 0x1FE, 0x202, 0x206
LOADFLAGS, RAMDISK, CMD_LINE_PTR, XLOADFLAGS, CMDLINE_SIZE, INIT_SIZE = 0x211, 0x218, 0x228, 0x236, 0x238, 0x260
EXT_RAMDISK, EXT_CMD_LINE_PTR = 0xC0, 0xC8
SETUP_MAGIC = b"HdrS"
SETUP_HEADER_END = 0x264
"""Bytes at the beginning of a bzImage that identify it."""
_LOADED_HIGH, _KERNEL_64, _ABOVE_4G = 0x1, 0x1, 0x2
_OLDEST_PROTOCOL = 0x20C
_COMMAND_LINE_SIZE = 2048
"""Bytes of the command line that an x86 kernel keeps, the final zero included (arch/x86/include/asm/setup.h)."""
_MEMPARSE = re.compile(r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)([KMGTPEkmgtpe]?)")
_ELFCOREHDR = re.compile(r"(?:^|\s)elfcorehdr=(?:[0-9a-fA-FxX]{1,18}[kKmMgG]?@)?(\d{1,18}K|0[xX][0-9a-fA-F]{1,16})")


def is_boot_params(page: bytes) -> bool:
    """Whether *page* is an x86 zero page with a setup header."""
    return len(page) >= PAGE and page[MAGIC : MAGIC + 4] == SETUP_MAGIC


def cmdline_phys(boot_params: bytes) -> int:
    """Return the physical address of the command line from the zero page."""
    (low,) = struct.unpack_from("<I", boot_params, CMD_LINE_PTR)
    (high,) = struct.unpack_from("<I", boot_params, EXT_CMD_LINE_PTR)
    return int(high) << 32 | int(low)


def elfcorehdr_argument(cmdline: str) -> tuple[int, Loader] | None:
    """Return physical address and loader from the last ``elfcorehdr=`` of a capture kernel's command line.

    kexec-tools writes decimal KiB (``949620K``), the kernel's loader hex bytes (``0x2a000000``).  The size of
    ``elfcorehdr=64K@0x…`` is skipped.
    """
    found = _ELFCOREHDR.findall(cmdline)
    if not found:
        return None
    value = found[-1]
    if value.endswith("K"):
        return int(value[:-1]) << 10, Loader.KEXEC_TOOLS
    return int(value, 16), Loader.KERNEL


def elfcorehdr_addresses(cmdline: str) -> list[int]:
    """Return the physical address in each ``elfcorehdr=`` of a command line, as the capture kernel parses it.

    It takes the last one (``setup_elfcorehdr()`` in kernel/crash_dump.c), and none behind ``--`` (``parse_args()`` in
    kernel/params.c).  An address that it cannot parse is 0.
    """
    addresses = []
    for value in arguments(cmdline[: _COMMAND_LINE_SIZE - 1], "elfcorehdr"):
        first, rest = _memparse(value)
        addresses.append(_memparse(rest[1:])[0] if rest.startswith("@") else first)
    return addresses


def _memparse(text: str) -> tuple[int, str]:
    """Return a number and the text behind it, as ``memparse()`` in lib/cmdline.c."""
    found = _MEMPARSE.match(text)
    if found is None:
        return 0, text
    digits, suffix = found.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    shift = 10 * ("KMGTPE".index(suffix.upper()) + 1) if suffix else 0
    return int(digits, base) << shift & (1 << 64) - 1, text[found.end() :]


def why_elfcorehdr_not_found(cmdline: str, elfcorehdr_phys: int | None) -> str | None:
    """Return why the capture kernel cannot be relied on to find its header; None where it will.

    :param cmdline: the capture kernel's command line
    :param elfcorehdr_phys: physical address of the header; None where it is not known
    """
    addresses = elfcorehdr_addresses(cmdline)
    if not addresses:
        return "the capture kernel's command line has no elfcorehdr=: it would not find the header, and save no dump"
    if len(addresses) > 1:
        listed = ", ".join(map(hex, addresses))
        return f"the capture kernel's command line has elfcorehdr= {len(addresses)} times ({listed}), not once"
    if elfcorehdr_phys is not None and addresses[0] != elfcorehdr_phys:
        return (
            f"the capture kernel would look for its elfcorehdr at {addresses[0]:#x}, but the image has it at "
            f"{elfcorehdr_phys:#x}"
        )
    return None


def e820_table(boot_params: bytes) -> list[tuple[Range, int]]:
    """Return the capture kernel's E820 entries (physical range, type); entries that wrap are left out."""
    if not is_boot_params(boot_params):
        return []
    entries = min(boot_params[E820_COUNT], E820_MAX)
    table = boot_params[E820_TABLE : E820_TABLE + entries * E820_ENTRY.size]  # the page has room for E820_MAX
    return [
        (Range(start, start + size), kind)
        for start, size, kind in E820_ENTRY.iter_unpack(table)
        if start + size <= 1 << 64
    ]


def initrd(boot_params: bytes) -> Range:
    """Return the physical range of the initrd from the zero page; an empty one where there is none."""
    low, size_low = struct.unpack_from("<II", boot_params, RAMDISK)
    high, size_high = struct.unpack_from("<II", boot_params, EXT_RAMDISK)
    start = int(high) << 32 | int(low)
    return Range(start, start + (int(size_high) << 32 | int(size_low)))


def change_elfcorehdr_argument(
    parameters: bytearray, cmdline_at: int, boot_params_at: int, cmdline: str, place: int
) -> None:
    """Write the new ``elfcorehdr=``, as the loader writes it, into the segment of the zero page.

    :param parameters: the segment that holds zero page and command line
    :param cmdline_at: where the command line starts in it, in bytes
    :param boot_params_at: where the zero page starts in it, in bytes
    :param place: physical address of the header
    :raise CannotTellError: the command line has no ``elfcorehdr=``, or no room for the new one
    """
    argument = elfcorehdr_argument(cmdline)
    if argument is None:
        raise CannotTellError("the capture kernel's command line has no elfcorehdr=")
    word = f"{place >> 10}K" if argument[1] is Loader.KEXEC_TOOLS else hex(place)
    old = cmdline.encode("ascii", "replace")
    new = re.sub(rb"(^|\s)elfcorehdr=\S+", rb"\g<1>elfcorehdr=" + word.encode(), old)
    (longest,) = struct.unpack_from("<I", parameters, boot_params_at + CMDLINE_SIZE)
    space = bytes(parameters[cmdline_at : cmdline_at + max(len(old), len(new)) + 1])
    is_there = cmdline_at >= 0 and space.startswith(old) and not space[len(old) :].strip(b"\0")
    if not is_there or len(space) <= len(new):
        raise CannotTellError("the capture kernel's command line has no room for the new place of its elfcorehdr")
    if len(new) > longest:
        raise CannotTellError(f"the capture kernel's command line would have {len(new)} bytes; its limit is {longest}")
    parameters[cmdline_at : cmdline_at + len(space)] = new.ljust(len(space), b"\0")


def reserve(parameters: bytearray, boot_params_at: int, place: Range) -> None:
    """Make the physical range *place* a reserved range of the E820 table: the capture kernel must not use it as RAM.

    :param boot_params_at: where the zero page starts in *parameters*, in bytes
    :raise CannotTellError: the table has no room
    """
    entries = []
    for whole, kind in e820_table(bytes(parameters[boot_params_at : boot_params_at + PAGE])):
        if kind == E820_RAM and whole.overlaps(place):
            entries += [
                (Range(whole.start, place.start), kind),
                (place, E820_RESERVED),
                (Range(place.end, whole.end), kind),
            ]
        else:
            entries.append((whole, kind))
    entries = [(part, kind) for part, kind in entries if part.size > 0]
    if len(entries) > E820_MAX:
        raise CannotTellError(f"the capture kernel's E820 table has no room: {len(entries)} entries of {E820_MAX}")
    parameters[boot_params_at + E820_COUNT] = len(entries)
    for number, (part, kind) in enumerate(entries):
        at = boot_params_at + E820_TABLE + number * E820_ENTRY.size
        E820_ENTRY.pack_into(parameters, at, part.start, part.size, kind)


def check_bzimage(head: bytes, size: int, name: str) -> None:
    """Check that a file is a complete x86 kernel image.

    ``bzImage64_probe()`` of arch/x86/kernel/kexec-bzimage64.c checks it *after* the previous image was dropped.

    :param head: its first :data:`SETUP_HEADER_END` bytes
    :param size: bytes of the file
    :raise InputError: it is not one, or is truncated (the kernel would load a truncated file without an error)
    """
    if head[MAGIC : MAGIC + 4] != SETUP_MAGIC or len(head) < SETUP_HEADER_END:
        raise InputError(f"{name} is not an x86 kernel image (bzImage)")
    (sixteen_bytes,) = struct.unpack_from("<I", head, SYSSIZE)
    whole = 512 * ((head[SETUP_SECTS] or 4) + 1) + 16 * sixteen_bytes
    if size < whole:
        raise InputError(f"{name} is truncated: it has {size} of {whole} bytes")


def why_no_file_load(head: bytes) -> str | None:
    """Return why kexec_file_load would reject this bzImage with ENOEXEC; None where it would not."""
    (version,) = struct.unpack_from("<H", head, VERSION)
    (xloadflags,) = struct.unpack_from("<H", head, XLOADFLAGS)
    if head[BOOT_FLAG : BOOT_FLAG + 2] != b"\x55\xaa" or version < _OLDEST_PROTOCOL:
        return f"its boot protocol ({version >> 8}.{version & 0xFF:02}) is older than 2.12"
    if not head[LOADFLAGS] & _LOADED_HIGH:
        return "it is a zImage"
    if xloadflags & (_KERNEL_64 | _ABOVE_4G) != _KERNEL_64 | _ABOVE_4G:
        return "it has no 64-bit entry point"
    return None


def init_size(head: bytes) -> int:
    """Return the bytes of memory that the kernel of this bzImage takes while it starts."""
    return int(struct.unpack_from("<I", head, INIT_SIZE)[0])


def find_zero_page(kimage: Kimage, read_phys: Callable[[int, int], bytes]) -> ZeroPage | None:
    """Find zero page and command line in a loaded image; None where it has none.

    :param read_phys: reads by (physical address, length)
    :raise CannotTellError: it cannot be read
    """
    for segment in kimage.segments:
        # Both loaders put the zero page first in a segment of its own.
        page = read_phys(segment.phys, min(PAGE, segment.memsz))
        if is_boot_params(page):
            command_at = cmdline_phys(page)
            holder = kimage.segment_at(command_at)
            if holder is not None:
                cmdline = read_cmdline(read_phys, command_at, holder.range.end)
                return ZeroPage(page, segment.phys, cmdline, command_at)
    return None


class ZeroPage(NamedTuple):
    """Zero page and command line, a :class:`~crash_hotplug.core.arch.architecture.BootDescription`."""

    page: bytes | None = None
    phys: int | None = None
    """Physical address of *page*."""
    cmdline: str | None = None
    cmdline_phys: int | None = None
    """Physical address of *cmdline*."""

    @property
    def loader(self) -> Loader | None:
        """The loader, by the form of its ``elfcorehdr=``."""
        argument = elfcorehdr_argument(self.cmdline or "")
        return argument[1] if argument else None

    @property
    def elfcorehdr_phys(self) -> int | None:
        """The physical address in the last ``elfcorehdr=``."""
        argument = elfcorehdr_argument(self.cmdline or "")
        return argument[0] if argument else None

    @property
    def ram_told(self) -> RamTold:
        """With ``memmap=`` the E820 table is not what the capture kernel uses."""
        if self.page is None:
            return RamTold.NOT_GIVEN
        if has_argument(self.cmdline, "memmap"):
            return RamTold.ELSEWHERE
        return RamTold.TOLD if is_boot_params(self.page) else RamTold.UNREADABLE

    @property
    def ram(self) -> RangeList:
        """RAM of the E820 table."""
        return self._e820_ram() if self.ram_told is RamTold.TOLD else RangeList()

    @property
    def ram_is_whole(self) -> bool:
        """A full E820 table may continue in ``setup_data``."""
        return 0 < len(e820_table(self.page or b"")) < E820_MAX

    @property
    def luks_keys(self) -> str | None:
        """``dmcryptkeys=`` (arch/x86/kernel/kexec-bzimage64.c, Linux 6.16 and newer)."""
        return "dmcryptkeys=" if has_argument(self.cmdline, "dmcryptkeys") else None

    @property
    def needed_ram(self) -> tuple[Range, ...]:
        """The zero page, and the initrd."""
        own = () if self.phys is None else (Range(self.phys, self.phys + PAGE),)
        return own if self.page is None else (*own, initrd(self.page))

    def _e820_ram(self) -> RangeList:
        return RangeList(r for r, kind in e820_table(self.page or b"") if kind == E820_RAM)

    def why_elfcorehdr_not_found(self, elfcorehdr_phys: int | None, size: int) -> str | None:
        """Compare ``elfcorehdr=`` with the header's address."""
        return None if self.cmdline is None else why_elfcorehdr_not_found(self.cmdline, elfcorehdr_phys)

    def elfcorehdr_room(self, start: int, listed: int | None, bounds: Iterable[int]) -> int | None:
        """Return the room up to the next RAM of the E820 table, or the listed room, whichever is more.

        An update in place lists the header with a part of its room only, so *listed* is a lower bound.  The loaders
        exclude the header's place from the RAM of the capture kernel.
        """
        ram = self._e820_ram()
        unused = None
        ends = list(bounds)
        if ends and ram and not ram.contains(start):
            unused = min(end for end in (*ends, *(r.start for r in ram)) if end > start) - start
        return max((size for size in (listed, unused) if size is not None), default=None)

    @property
    def moved(self) -> str:
        """What it is when the header moves, for people."""
        return "the zero page, with the new place in command line and E820 table"

    def why_cannot_move(self) -> str | None:
        """Return why, where ``memmap=`` gives the place as well, or a part is not known."""
        if self.phys is None or self.cmdline_phys is None or self.cmdline is None:
            return "the zero page and command line of the capture kernel were not found"
        if has_argument(self.cmdline, "memmap"):  # kexec --pass-memmap-cmdline: the E820 table alone would not do
            return "the capture kernel's command line has memmap=, which says what it uses as RAM"
        return None

    def with_elfcorehdr_at(self, segment: bytes, segment_phys: int, place: Range) -> bytes:
        """Change command line and E820 table.

        :raise CannotTellError: one of the two has no room
        """
        if self.phys is None or self.cmdline_phys is None or self.cmdline is None:
            raise CannotTellError(str(self.why_cannot_move()))
        changed = bytearray(segment)
        page_at = self.phys - segment_phys
        change_elfcorehdr_argument(changed, self.cmdline_phys - segment_phys, page_at, self.cmdline, place.start)
        reserve(changed, page_at, place)
        return bytes(changed)

    def saved(self) -> tuple[Mapping[str, bytes], Mapping[str, int]]:
        """Return zero page and command line."""
        cmdline = None if self.cmdline is None else self.cmdline.encode("ascii", "replace")
        files = {"boot_params": self.page, "cmdline": cmdline}
        places = {"boot_params": self.phys, "cmdline": self.cmdline_phys}
        return (
            {name: data for name, data in files.items() if data is not None},
            {name: phys for name, phys in places.items() if phys is not None},
        )
