# SPDX-License-Identifier: MIT
"""In the guest: sends forged uevents as an unprivileged user and as root; the watch service must ignore all of them.

Prints one line for each attempt; exit code 1 where the service took a forged event for a real one.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time

from crash_hotplug.linux.service.uevents import UeventSocket
from crash_hotplug_lab.in_guest.watched import Watched, status, wait, write

_UEVENTS = 15
_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_MESSAGE = b"\0".join(
    [
        b"add@/devices/system/memory/memory99",
        b"ACTION=add",
        b"SUBSYSTEM=memory",
        b"DEVPATH=/devices/system/memory/memory99",
        b"",
    ]
)
_libc = ctypes.CDLL(None, use_errno=True)


def port_of(pid: int) -> int:
    """Return the netlink port of a process's uevent socket (/proc/net/netlink: Eth, Pid)."""
    with open("/proc/net/netlink") as file:
        rows = [line.split() for line in file][1:]
    inodes = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    return next(int(row[2]) for row in rows if int(row[1]) == _UEVENTS and f"socket:[{row[9]}]" in inodes)


def forge(port: int, group: int, uid: int, namespaces: int = 0) -> str:
    """Send a message from another process; return ``sent``, or the error."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        said = "sent"
        try:
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            if namespaces and _libc.unshare(namespaces):
                raise OSError(ctypes.get_errno(), "unshare: " + os.strerror(ctypes.get_errno()))
            with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _UEVENTS) as forger:
                for _ in range(100):
                    forger.sendto(_MESSAGE, (port, group))
        except OSError as error:
            said = error.strerror or str(error)
        os.write(write_end, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with os.fdopen(read_end) as file:
        return file.read()


def in_another_network() -> bool:
    """Whether uevents reach a process in another network namespace (PrivateNetwork= of the unit)."""
    child = os.fork()
    if child == 0:
        if _libc.unshare(_NEWNET):
            os._exit(2)
        uevents = UeventSocket()
        write("/sys/devices/system/cpu/cpu1/uevent", "change")
        time.sleep(0.5)
        os._exit(0 if len(uevents.drain().events) == 1 else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main(_number: int) -> None:
    """Send from each user to each address."""
    service = Watched()
    service.wait_accurate()
    time.sleep(4)
    port = port_of(service.pid)
    before = service.metric("uevents_total")
    for who, uid in (("user 65534", 65534), ("root", 0)):
        print(f"{who}, to the service's socket: {forge(port, 0, uid)}")
        print(f"{who}, to the kernel's group: {forge(0, 1, uid)}")
    print(f"user 65534 in another user and network namespace, to the group: {forge(0, 1, 65534, _NEWUSER | _NEWNET)}")
    write("/sys/devices/system/cpu/cpu1/uevent", "change")  # a real one, so that the metrics are written
    wait(lambda: service.metric("uevents_total") > before, "the real event")
    time.sleep(2)
    seen, ignored = service.metric("uevents_total") - before, service.metric("uevents_ignored_total")
    print(f"the service saw {seen:.0f} event(s) from the kernel and ignored {ignored:.0f}; the image is {status()[0]}")
    print(f"uevents reach another network namespace: {in_another_network()}")
    if seen != 1 or service.said("memory99") or not in_another_network():
        sys.exit("a forged event was taken for a real one, or the real one did not arrive")
    service.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
