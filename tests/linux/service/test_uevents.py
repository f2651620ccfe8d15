# SPDX-License-Identifier: MIT
"""Uevents: parsing of hostile messages, the kernel's filter, and who may send."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
