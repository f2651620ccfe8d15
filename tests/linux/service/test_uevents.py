# SPDX-License-Identifier: MIT
"""Uevents: parsing of hostile messages, the kernel's filter, and who may send."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.linux.service.uevents import Uevent, UeventSocket, attach_filter, is_from_kernel, parse_uevent

CREDENTIALS = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 0, 0, 0))


def message(action: str, device: str, subsystem: str) -> bytes:
    path = f"/devices/system/{subsystem}/{device}"
    fields = (f"{action}@{path}", f"ACTION={action}", f"DEVPATH={path}", f"SUBSYSTEM={subsystem}", "SEQNUM=1234")
    return b"".join(field.encode() + b"\0" for field in fields)


@pytest.mark.parametrize("action", ["add", "remove", "change", "online", "offline"])
@pytest.mark.parametrize(("device", "subsystem"), [("cpu3", "cpu"), ("memory40", "memory")])
def test_what_the_kernel_sends(action: str, device: str, subsystem: str) -> None:
    assert parse_uevent(message(action, device, subsystem)) == Uevent(action, subsystem, device)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"libudev\0\xfe\xed\xca\xfe",
        b"add@/devices/system/cpu/cpu3",
        b"add@/devices/system/cpu/cpu3\0SUBSYSTEM=memory\0",
        b"add@/devices/system/cpu/cpu3/cache/index0\0SUBSYSTEM=cpu\0",
        b"add@/devices/system/memory/../cpu/cpu3\0SUBSYSTEM=cpu\0",
        b"add@/devices/pci0000:00/net/eth0\0SUBSYSTEM=net\0",
        b"add\n<3>evil@/devices/system/cpu/cpu3\0SUBSYSTEM=cpu\0",
        b"add@/devices/system/cpu/cpu3\xff\0SUBSYSTEM=cpu\0",
        b"add@/devices/system/cpu/cpu" + b"9" * 4000 + b"\0SUBSYSTEM=cpu\0",
    ],
)
def test_what_is_none(data: bytes) -> None:
    assert parse_uevent(data) is None


@given(st.binary() | st.binary().map(lambda b: b"add@/devices/system/cpu/cpu3\0SUBSYSTEM=cpu\0" + b))
def test_any_bytes_are_parsed_without_an_error(data: bytes) -> None:
    event = parse_uevent(data)
    assert event is None or event.subsystem in ("cpu", "memory")


def test_only_the_kernel_is_believed() -> None:
    assert is_from_kernel([CREDENTIALS], 0, (0, 1))
    assert not is_from_kernel([CREDENTIALS], 0, (4711, 1))
    assert not is_from_kernel([CREDENTIALS], 0, (0, 0))
    assert not is_from_kernel([CREDENTIALS], socket.MSG_TRUNC, (0, 1))
    assert not is_from_kernel([], 0, (0, 1))
    user = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", 4711, 1000, 1000))
    assert not is_from_kernel([user], 0, (0, 1))


def test_the_kernel_filters_by_our_program() -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setblocking(False)
        attach_filter(receiver)
        wanted = [
            message(action, device, subsystem)
            for action in ("add", "remove", "change", "online", "offline")
            for device, subsystem in (("cpu3", "cpu"), ("memory40", "memory"))
        ]
        others = [
            b"",
            b"add@",
            b"add@/devices/system/",
            b"add@/devices/virtual/net/veth0/queues/rx-0\0",
            b"add@/devices/system/node/node1\0",
            b"bind@/devices/system/cpu/cpu3\0",
            b"libudev\0",
        ]
        for data in [part for pair in zip(others, wanted) for part in pair] + wanted[len(others) :]:
            sender.send(data)
        received = []
        while True:
            try:
                received.append(receiver.recv(4096))
            except BlockingIOError:
                break
        assert received == wanted


def test_a_real_socket_ignores_a_forged_message() -> None:
    try:
        receiver = UeventSocket()
    except Exception as error:  # a sandbox without netlink
        pytest.skip(str(error))
    try:
        assert receiver.drain().events == []
        forger = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
        with forger:
            port = socket.socket(fileno=os.dup(receiver.fileno())).getsockname()[0]
            try:
                forger.sendto(message("add", "cpu3", "cpu"), (port, 0))
            except PermissionError:
                return  # the kernel lets only CAP_NET_ADMIN try
            drained = receiver.drain()
            assert (drained.events, drained.ignored) == ([], 1)
    finally:
        receiver.close()


@pytest.mark.parametrize("name_space", ["this network", "a network of its own"])
def test_a_real_event_of_this_machine(name_space: str) -> None:
    code = """
import ctypes, select, sys
from crash_hotplug.linux.service.uevents import UeventSocket
if sys.argv[1] != "this network" and ctypes.CDLL(None).unshare(0x40000000):
    sys.exit("skip: no privilege for unshare(CLONE_NEWNET)")
uevents = UeventSocket()
try:
    with open("/sys/devices/system/cpu/cpu0/uevent", "w") as file:
        file.write("change")
except OSError as error:
    sys.exit(f"skip: {error}")
select.select([uevents], [], [], 2)
print(uevents.drain())
"""
    command = [sys.executable, "-c", code, name_space]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    if "skip: " in done.stderr:
        pytest.skip(done.stderr.strip().partition("skip: ")[2])
    assert "Uevent(action='change', subsystem='cpu', device='cpu0')" in done.stdout, done.stderr


@pytest.mark.parametrize(("pid", "uid"), [(4711, 0), (0, 1000)])
def test_message_with_the_credentials_of_a_process_is_not_the_kernels(pid: int, uid: int) -> None:
    forged = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, uid, 0))
    assert not is_from_kernel([forged], 0, (0, 1))


def test_message_whose_credentials_were_cut_is_not_the_kernels() -> None:
    assert not is_from_kernel([CREDENTIALS], socket.MSG_CTRUNC, (0, 1))
    assert not is_from_kernel([(*CREDENTIALS[:2], CREDENTIALS[2][:8])], 0, (0, 1))


def test_other_ancillary_data_are_no_credentials() -> None:
    assert not is_from_kernel([(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(12))], 0, (0, 1))
    assert is_from_kernel([(socket.SOL_SOCKET, socket.SCM_RIGHTS, bytes(12)), CREDENTIALS], 0, (0, 1))


class FakeSocket:
    """A netlink socket that gives messages or errors in order, and notes how it was set up."""

    def __init__(self, *messages: bytes | OSError, may_force: bool = True) -> None:
        self.messages = list(messages)
        self.may_force = may_force
        self.made: tuple[int, ...] = ()
        self.options: list[tuple[int, object]] = []
        self.bound: object = None

    def __call__(self, *arguments: int) -> FakeSocket:
        self.made = arguments
        return self

    def setsockopt(self, level: int, option: int, value: object) -> None:
        assert level == socket.SOL_SOCKET
        if option == 33 and not self.may_force:
            raise PermissionError(1, "Operation not permitted")
        self.options.append((option, value))

    def bind(self, address: object) -> None:
        self.bound = address

    def recvmsg(self, _size: int, _ancillary: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, tuple[int, int]]:
        if not self.messages:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        data = self.messages.pop(0)
        if isinstance(data, OSError):
            raise data
        return data, [CREDENTIALS] if not data.startswith(b"forged") else [], 0, (0, 1)


@pytest.mark.parametrize("may_force", [True, False])
def test_socket_is_of_the_kernels_uevents_and_has_a_large_buffer(
    monkeypatch: pytest.MonkeyPatch, may_force: bool
) -> None:
    fake = FakeSocket(may_force=may_force)
    monkeypatch.setattr(socket, "socket", fake)
    UeventSocket()
    # AF_NETLINK, NETLINK_KOBJECT_UEVENT; SO_ATTACH_FILTER, SO_RCVBUFFORCE or SO_RCVBUF, SO_PASSCRED; group 1.
    assert fake.made == (16, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 15)
    assert [option for option, _value in fake.options] == [26, 33 if may_force else 8, 16]
    assert [value for _option, value in fake.options[1:]] == [8 << 20, 1]
    assert fake.bound == (0, 1)


def test_socket_that_cannot_be_opened_is_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: int) -> None:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refused)
    with pytest.raises(CannotTellError, match="cannot be received: Address family"):
        UeventSocket()


def test_lost_forged_and_other_messages_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    add, other = message("add", "cpu3", "cpu"), b"add@/devices/system/node/node1\0SUBSYSTEM=node\0"
    overrun = OSError(errno.ENOBUFS, "No buffer space available")
    monkeypatch.setattr(socket, "socket", FakeSocket(add, overrun, b"forged", other, add))
    drained = UeventSocket().drain()
    assert drained == ([Uevent("add", "cpu", "cpu3")] * 2, 1, True)
    monkeypatch.setattr(socket, "socket", FakeSocket(add))
    assert UeventSocket().drain() == ([Uevent("add", "cpu", "cpu3")], 0, False)
