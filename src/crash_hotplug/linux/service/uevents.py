# SPDX-License-Identifier: MIT
"""Kernel uevents of CPUs and memory blocks, straight from netlink.

Documentation: netlink(7), kobject_uevent_env() of lib/kobject_uevent.c.  A uevent is ``ACTION@DEVPATH`` and
``KEY=VALUE`` strings, each ended by a null byte.  Only enough of it is parsed to know that it is one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import socket
import struct
from typing import NamedTuple

from crash_hotplug.core.errors import CannotTellError

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
"""Events of the kernel; those of udev come to group 2."""
_SO_PASSCRED, _SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 16, 33, 26
BUFFER = 8 << 20
"""Bytes of events that may wait while an update runs.  More than that are lost, and a look makes up for them."""
_UEVENT_SIZE = 16 << 10
"""UEVENT_BUFFER_SIZE is 2 KiB."""
_AT_ONCE = 4096
"""Events read before the machine is looked at again."""
_CREDENTIALS = struct.Struct("iII")
_HEAD = re.compile(rb"([a-z]{2,16})@/devices/system/(cpu|memory)/((?:cpu|memory)\d{1,9})")


class Uevent(NamedTuple):
    """One uevent of a CPU or a memory block."""

    action: str
    """``add``, ``remove``, ``online``, ``offline`` or ``change``."""
    subsystem: str
    """``cpu`` or ``memory``."""
    device: str
    """Such as ``cpu3`` or ``memory40``."""


class Drained(NamedTuple):
    """What was waiting in the socket."""

    events: list[Uevent]
    ignored: int
    """Messages that did not come from the kernel."""
    overrun: bool
    """Whether the buffer overran: an unknown number of events is lost."""


def parse_uevent(data: bytes) -> Uevent | None:
    """Return the event in *data*; None where it is none, or not of a CPU or a memory block."""
    head, _null, rest = data.partition(b"\0")
    matched = _HEAD.fullmatch(head)
    if matched is None or b"SUBSYSTEM=" + matched[2] not in rest.split(b"\0"):
        return None
    return Uevent(*(part.decode("ascii") for part in matched.groups()))


class UeventSocket:
    """A socket that gets the kernel's uevents of CPUs and memory blocks, and no others.

    The kernel itself filters: the network interfaces of a thousand containers shall neither wake the service nor fill
    its buffer.
    """

    def __init__(self) -> None:
        """Open it.

        :raise CannotTellError: this kernel or sandbox has no such sockets
        """
        try:
            flags = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, flags, _NETLINK_KOBJECT_UEVENT)
            attach_filter(self._socket)
            self._enlarge_buffer()
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
            self._socket.bind((0, _KERNEL_GROUP))
        except OSError as error:
            raise CannotTellError(f"the kernel's uevents cannot be received: {error.strerror}") from error

    def fileno(self) -> int:
        """Return the file descriptor, to be polled."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def drain(self) -> Drained:
        """Read what is waiting, without waiting for more."""
        events: list[Uevent] = []
        ignored, overrun = 0, False
        for _ in range(_AT_ONCE):
            try:
                data, ancillary, flags, sender = self._socket.recvmsg(
                    _UEVENT_SIZE, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    break  # EAGAIN: that was all
                overrun = True
                continue
            if not is_from_kernel(ancillary, flags, sender):
                ignored += 1
                continue
            event = parse_uevent(data)
            if event is not None:
                events.append(event)
        return Drained(events, ignored, overrun)

    def _enlarge_buffer(self) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
        except PermissionError:  # no CAP_NET_ADMIN: up to net.core.rmem_max
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)


def is_from_kernel(ancillary: list[tuple[int, int, bytes]], flags: int, sender: tuple[int, int]) -> bool:
    """Whether a message was sent by the kernel to all: port 0, group 1, and credentials of process 0, user 0.

    :param sender: netlink port and groups
    """
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC) or sender != (0, _KERNEL_GROUP):
        return False
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            pid, uid, _gid = _CREDENTIALS.unpack_from(data)
            return bool(pid == 0 and uid == 0)
    return False


# Classic BPF (linux/filter.h): load a byte or a word at an absolute or an indexed offset, jump if equal, return.
_LOAD_BYTE, _LOAD_WORD_X, _SET_X, _JUMP_EQUAL, _JUMP, _RETURN = 0x30, 0x40, 0x01, 0x15, 0x05, 0x06


def _filter() -> bytes:
    """Return the program: ``ACTION@/devices/system/cpu/…`` or ``…/memory/…``, for actions of 3, 6 or 7 letters."""
    prefix = [int.from_bytes(b"/devices/system/"[at : at + 4], "big") for at in range(0, 16, 4)]
    lengths = (len("add"), len("remove"), len("offline"))
    program: list[tuple[int, int, int, int]] = []
    for number, length in enumerate(lengths):
        behind = 4 * (len(lengths) - number - 1) + 1  # instructions from this block's end to the common part
        program += [(_LOAD_BYTE, 0, 0, length), (_JUMP_EQUAL, 0, 2, ord("@"))]
        program += [(_SET_X, 0, 0, length + 1), (_JUMP, 0, 0, behind)]
    program.append((_RETURN, 0, 0, 0))
    left = 2 * len(prefix) + 3
    for at, word in enumerate(prefix):
        left -= 2
        program += [(_LOAD_WORD_X, 0, 0, 4 * at), (_JUMP_EQUAL, 0, left + 1, word)]
    program += [(_LOAD_WORD_X, 0, 0, 16), (_JUMP_EQUAL, 1, 0, int.from_bytes(b"cpu/", "big"))]
    program += [(_JUMP_EQUAL, 0, 1, int.from_bytes(b"memo", "big"))]
    program += [(_RETURN, 0, 0, 0xFFFF_FFFF), (_RETURN, 0, 0, 0)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def attach_filter(filtered: socket.socket) -> None:
    """Let the kernel drop what is no uevent of a CPU or a memory block; without that, it is dropped here."""
    program = ctypes.create_string_buffer(_filter())
    # struct sock_fprog: the number of instructions, and a pointer to them.
    described = struct.pack("HxxxxxxQ", len(_filter()) // 8, ctypes.addressof(program))
    with contextlib.suppress(OSError):
        filtered.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
