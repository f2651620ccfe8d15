"""What a capture kernel's file says of itself: can the kernel's own loader take it, and how much memory it needs.

Offsets are those of the setup header (Documentation/arch/x86/boot.rst); the checks are those that
``bzImage64_probe()`` of arch/x86/kernel/kexec-bzimage64.c makes *after* the former image was dropped.
"""

from __future__ import annotations

import struct

from crash_hotplug.core.elf import PROGRAM_HEADER_SIZE
from crash_hotplug.core.errors import InputError, NoRoomError
from crash_hotplug.core.in_place import control_pages_bound
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.move_header import room_for, whole_pages
from crash_hotplug.core.sizes import human_size

SETUP_HEADER_END = 0x264
"""How much of the file is looked at, in bytes."""
MAX_ROOM = whole_pages(64 + PROGRAM_HEADER_SIZE * 0xFFFE)
"""Bytes of the largest elfcorehdr: ``e_phnum`` has 16 bits, and 0xffff (PN_XNUM) means something else."""
_SETUP_SECTS, _SYSSIZE, _BOOT_FLAG, _MAGIC, _VERSION = 0x1F1, 0x1F4, 0x1FE, 0x202, 0x206
_LOADFLAGS, _XLOADFLAGS, _INIT_SIZE = 0x211, 0x236, 0x260
_LOADED_HIGH, _KERNEL_64, _ABOVE_4G = 0x1, 0x1, 0x2
_OLDEST_PROTOCOL = 0x20C


def check_bzimage(head: bytes, size: int, name: str) -> None:
    """Check that a file is an x86 kernel image, and whole.

    :param head: its first :data:`SETUP_HEADER_END` bytes
    :param size: bytes of the file
    :raise InputError: it is none, or its end is missing (the kernel would load that and not say so)
    """
    if head[_MAGIC : _MAGIC + 4] != b"HdrS" or len(head) < SETUP_HEADER_END:
        raise InputError(f"{name} is no x86 kernel image (bzImage)")
    (sixteen_bytes,) = struct.unpack_from("<I", head, _SYSSIZE)
    whole = 512 * ((head[_SETUP_SECTS] or 4) + 1) + 16 * sixteen_bytes
    if size < whole:
        raise InputError(f"{name} is truncated: it has {size} of {whole} bytes")


def why_no_file_load(head: bytes) -> str | None:
    """Return why kexec_file_load would answer ENOEXEC to this bzImage; None where nothing speaks against it."""
    (version,) = struct.unpack_from("<H", head, _VERSION)
    (xloadflags,) = struct.unpack_from("<H", head, _XLOADFLAGS)
    if head[_BOOT_FLAG : _BOOT_FLAG + 2] != b"\x55\xaa" or version < _OLDEST_PROTOCOL:
        return f"its boot protocol ({version >> 8}.{version & 0xFF:02}) is older than 2.12"
    if not head[_LOADFLAGS] & _LOADED_HIGH:
        return "it is a zImage"
    if xloadflags & (_KERNEL_64 | _ABOVE_4G) != _KERNEL_64 | _ABOVE_4G:
        return "it has no 64-bit entry point"
    return None


def needed_at_least(head: bytes, initrd_size: int, room: int, machine: Machine) -> int:
    """Return the bytes of one reserved range that an image takes at least; alignment and small segments come on top.

    :param room: bytes for its elfcorehdr
    """
    (init_size,) = struct.unpack_from("<I", head, _INIT_SIZE)
    return sum(whole_pages(size) for size in (init_size, initrd_size, room)) + control_pages_bound(machine.ram)


def check_room(head: bytes, initrd_size: int, room: int, machine: Machine) -> None:
    """Check, before anything is loaded, that a header of *room* bytes can do and that the image can fit.

    :raise InputError: *room* is too small for this machine as it is, or larger than any elfcorehdr can be
    :raise NoRoomError: the memory reserved for the capture kernel is too small
    """
    now = room_for(len(machine.cpus), len(machine.dumpable_ram) + 1)
    if room < now:
        raise InputError(
            f"room for {room} bytes is too small: the elfcorehdr needs {now} for this machine as it is now, "
            f"with {len(machine.cpus)} possible CPUs"
        )
    if room > MAX_ROOM:
        raise InputError(
            f"room for {room} bytes is more than an elfcorehdr can use ({MAX_ROOM}: it has 65,534 entries)"
        )
    largest = max((reserved.size for reserved in machine.crashkernel), default=0)
    needed = needed_at_least(head, initrd_size, room, machine)
    if needed > largest:
        raise NoRoomError(
            f"the reserved region ({human_size(largest)}) is too small: kernel, initrd, the elfcorehdr's room and "
            f"control pages need at least {human_size(needed)}; nothing was changed"
        )
