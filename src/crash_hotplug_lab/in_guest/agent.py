# SPDX-License-Identifier: MIT
"""In the guest: takes orders from the host as lines of JSON over a serial port, one at a time, and answers each.

A serial port needs no module, so it works on any kernel.  Runs on the guest's own Python, standard library only;
this project is imported only where an update is ordered.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import json
import mmap
import os
import struct
import subprocess
import sys
import time
import traceback
import tty
import zlib
from typing import Any, Callable

PAGE = mmap.PAGESIZE
_PFN_MASK = (1 << 55) - 1
_MAP_POPULATE = 0x8000  # linux/mman.h; Python's mmap module names it from 3.10 on
_planted: list[tuple[mmap.mmap, int]] = []
"""Memory that holds planted words, and the virtual address of each word; kept mapped and locked."""
_libc = ctypes.CDLL(None, use_errno=True)


def run(argv: list[str], limit: float = 170, uid: int = 0) -> dict[str, Any]:
    """Run a program to its end; return its exit code, its output as text, and the seconds it took."""

    def unprivileged() -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)

    begin = time.monotonic()
    done = subprocess.run(
        argv, capture_output=True, timeout=limit, check=False, preexec_fn=unprivileged if uid else None
    )
    return {
        "rc": done.returncode,
        "out": done.stdout.decode(errors="replace"),
        "err": done.stderr.decode(errors="replace"),
        "seconds": round(time.monotonic() - begin, 3),
    }


def spawn(argv: list[str], log: str) -> int:
    """Start a program in the background, with its output in a file; return its process id."""
    with open(log, "wb") as file:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True).pid


def read(path: str) -> str:
    """Return a text file, such as one of sysfs."""
    with open(path, errors="replace") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write a text file, such as one of sysfs; raises OSError where the kernel refuses."""
    with open(path, "w") as file:
        file.write(text)


def get(path: str) -> str:
    """Return a binary file, compressed and in base64."""
    with open(path, "rb") as file:
        return base64.b64encode(zlib.compress(file.read())).decode()


def put(path: str, data: str) -> None:
    """Write a binary file that comes compressed and in base64."""
    with open(path, "wb") as file:
        file.write(zlib.decompress(base64.b64decode(data)))


def _physical(address: int) -> int:
    """Return the physical address behind a virtual one of this process (pagemap: Documentation/admin-guide/mm)."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(address // PAGE * 8)
        (entry,) = struct.unpack("<Q", file.read(8))
    if not entry >> 63:
        raise RuntimeError(f"the page at {address:#x} is not present")
    return int((entry & _PFN_MASK) * PAGE + address % PAGE)


def _available() -> int:
    """Return the bytes of available memory (MemAvailable of /proc/meminfo)."""
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))


def plant(start: int, end: int, word: int) -> int:
    """Write a 64-bit word into a page of this process that lies in a physical range; return its physical address.

    Pages are allocated until one lies in the range; the others are freed.
    """
    held: list[mmap.mmap] = []
    chunk = 8 << 20
    while _available() > 96 << 20:
        memory = mmap.mmap(-1, chunk, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_POPULATE)
        held.append(memory)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(base // PAGE * 8)
            entries = struct.unpack(f"<{chunk // PAGE}Q", file.read(chunk // PAGE * 8))
        for number, entry in enumerate(entries):
            if entry >> 63 and start <= (entry & _PFN_MASK) * PAGE < end:
                address = base + number * PAGE
                memory[number * PAGE : number * PAGE + 8] = struct.pack("<Q", word)
                _libc.mlock(ctypes.c_void_p(address), PAGE)
                _planted.append((memory, address))
                return _physical(address)
    raise RuntimeError(f"no page between {start:#x} and {end:#x} was found after {len(held) * chunk >> 20} MiB")


def where() -> list[int]:
    """Return the current physical address of each planted word (the kernel may move a page)."""
    return [_physical(address) for _, address in _planted]


def busy(cpu: int, pattern: int) -> int:
    """Keep a CPU in an endless loop with ``pattern`` + n in each register n, 8 to 15; return the process's id."""
    child = os.fork()
    if child:
        return child
    os.sched_setaffinity(0, {cpu})
    memory = mmap.mmap(-1, PAGE)
    memory.write(_loop_code({n: (pattern + n) & (2**64 - 1) for n in range(8, 16)}))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    # Executable only now: the kernel makes an arm64 instruction cache coherent when a page becomes executable
    _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_EXEC)
    ctypes.CFUNCTYPE(None)(address)()
    os._exit(1)


def _loop_code(values: dict[int, int]) -> bytes:
    """Return machine code of this machine that loads 64-bit values into registers by number, and loops."""
    code = b""
    if os.uname().machine == "aarch64":
        for n, value in values.items():
            for part in range(4):  # movz, then movk: 16 bits at a time of xN
                opcode = 0xF2800000 if part else 0xD2800000
                code += struct.pack("<I", opcode | part << 21 | (value >> 16 * part & 0xFFFF) << 5 | n)
        return code + struct.pack("<I", 0x14000000)  # b to itself
    for n, value in values.items():
        code += bytes([0x49, 0xB8 + n - 8]) + struct.pack("<Q", value)  # mov $imm64, %rN
    return code + b"\xf3\x90\xeb\xfc"  # pause; jmp back to it


def update() -> str:
    """Update the crash image in place from this process, as a service does: without the start of a new process."""
    module = importlib.import_module("crash_hotplug.linux.loading.live_machine")
    live = module.LiveMachine()
    report = module.run_patiently(importlib.import_module("crash_hotplug.core.update").update(live))
    return f"{report.outcome.value}: {report.sentence} (kexec_load {live.kexec_seconds * 1e3:.1f} ms)"


def panic_after(cpu: int, seconds: float) -> int:
    """Start a process that panics the kernel on a given CPU after some seconds; return its process id."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        panic(cpu)
    return child


def panic(cpu: int) -> None:
    """Panic the kernel on a given CPU.  Does not return."""
    os.sched_setaffinity(0, {cpu})
    os.sync()
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("c")


ORDERS: dict[str, Callable[..., Any]] = {
    "run": run, "spawn": spawn, "read": read, "write": write, "get": get, "put": put, "plant": plant, "where": where,
    "busy": busy, "update": update, "panic": panic, "panic_after": panic_after,
}  # fmt: skip


def main(port: str) -> None:
    """Answer orders until the port closes or the kernel ends."""
    line = os.open(port, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line)
    with os.fdopen(line, "r+b", buffering=0) as raw:
        raw.write(b'{"ready": %d}\n' % os.getpid())
        pending = b""
        while True:
            data = raw.read(4096)
            if not data:
                return
            pending += data
            while b"\n" in pending:
                order, pending = pending.split(b"\n", 1)
                answer = json.dumps(_obey(order)).encode() + b"\n"
                while answer:
                    answer = answer[raw.write(answer) or 0 :]


def _obey(order: bytes) -> dict[str, Any]:
    try:
        name, arguments = json.loads(order)
        return {"value": ORDERS[name](**arguments)}
    except BaseException as error:  # the host has to receive every failure
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


if __name__ == "__main__":
    main(sys.argv[1])
