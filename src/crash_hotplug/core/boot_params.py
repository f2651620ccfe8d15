# SPDX-License-Identifier: MIT
"""The capture kernel's zero page (``struct boot_params``): command line, E820 table, setup header.

Offsets are those of Documentation/arch/x86/zero-page.rst and boot.rst; no other module has them.
"""

from __future__ import annotations

import re
import struct

from crash_hotplug.core.architecture import PAGE
from crash_hotplug.core.elfcorehdr import Loader
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.ranges import Range

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
_WORD = re.compile(r'(?:"[^"]*(?:"|$)|[^\s"])+')
"""A word of a command line; spaces between quotes do not end it (``next_arg()`` in lib/cmdline.c)."""
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
    for quoted in _WORD.findall(cmdline[: _COMMAND_LINE_SIZE - 1]):
        name, equals, value = quoted.replace('"', "").partition("=")
        if quoted == "--":
            break
        if name == "elfcorehdr" and equals:  # setup_elfcorehdr() ignores the word without a value
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


def has_argument(cmdline: str | None, name: str) -> bool:
    """Whether a command line has the argument ``name=``."""
    return any(word.startswith(f"{name}=") for word in (cmdline or "").split())


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
