# SPDX-License-Identifier: MIT
"""Times the crash-kexec system calls of a child process and of its children, with ptrace.

A seccomp filter stops the process only at kexec_load(2) and kexec_file_load(2) of a crash image.  Everything else runs
at full speed, so wall and CPU time are those of an untraced process.  The kernel drops the loaded image at the start of
such a call (``do_kexec_load()`` of kernel/kexec.c, kexec_file_load of kernel/kexec_file.c) and holds the kexec lock
until its end; a panic in between leaves no dump.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.linux.kexec_state import LOADED
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import Sysroot

# linux/ptrace.h
_TRACEME, _CONT, _SYSCALL, _SETOPTIONS = 0, 7, 24, 0x4200
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80  # SYSGOOD, FORK, VFORK, CLONE, EXEC, SECCOMP
_EVENT_SECCOMP = 7
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_WALL = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000
_AUDIT_ARCH = 0xC0000000  # linux/audit.h: 64 bits, little endian; e_machine is below
_LOAD_WORD, _IF_EQUAL, _IF_SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4
_libc.ptrace.restype = ctypes.c_long


class Timing(NamedTuple):
    """The cost of one run; times in seconds."""

    wall: float
    cpu: float
    """User and system time of the process and of all its children that ended."""
    without_image: float
    """From the start of a call that drops the image to the end of the call after which an image is loaded."""
    calls: int
    """Number of crash-kexec system calls."""
    exit_code: int
    """The exit code of the process; the negative number of the signal that killed it."""


@dataclass
class _Watch:
    """The open call of each process, and the time without an image so far."""

    is_loaded: Callable[[], bool]
    dropped_at: float | None = None
    without_image: float = 0.0
    calls: int = 0
    inside: set[int] = field(default_factory=set)

    def entered(self, pid: int) -> None:
        """Note that a process enters a call."""
        self.inside.add(pid)
        self.calls += 1
        if self.dropped_at is None:
            self.dropped_at = time.perf_counter()

    def left(self, pid: int) -> None:
        """Note that a process returns from its call."""
        now = time.perf_counter()
        self.inside.discard(pid)
        if self.dropped_at is not None and self.is_loaded():
            self.without_image += now - self.dropped_at
            self.dropped_at = None

    def ended(self) -> None:
        """Note the end of the run: an image that is still missing counts as missing until now."""
        if self.dropped_at is not None:
            self.without_image += time.perf_counter() - self.dropped_at


def time_kexec_calls(work: Callable[[], int]) -> Timing:
    """Run *work* in a child process, which exits with the value that *work* returns or executes another program.

    :raise CrashHotplugError: this process may not trace
    """
    watch = _Watch(_is_loaded)
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        code = 126
        try:
            _libc.ptrace(_TRACEME, 0, 0, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
            _install_filter()
            code = work()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSTOPPED(status) or _libc.ptrace(_SETOPTIONS, child, 0, _OPTIONS):
        raise CrashHotplugError("system calls cannot be timed here: ptrace is forbidden")
    _libc.ptrace(_CONT, child, 0, 0)
    code, cpu = _watch_until_end(child, watch)
    ended = time.perf_counter()
    watch.ended()
    return Timing(ended - started, cpu, watch.without_image, watch.calls, code)


def _is_loaded() -> bool:
    """Return whether a crash image is loaded; True where the kernel does not tell."""
    for path in LOADED:
        said = Sysroot().read_text(path)
        if said is not None:
            return said != "0"
    return True


def _watch_until_end(child: int, watch: _Watch) -> tuple[int, float]:
    """Resume stopped processes until *child* ends; return its exit code and CPU time."""
    while True:
        pid, status, usage = os.wait4(-1, _WALL)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if pid == child:
                code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
                return code, usage.ru_utime + usage.ru_stime
            continue
        stopped_by, request = os.WSTOPSIG(status), _CONT
        if status >> 16 == _EVENT_SECCOMP:
            watch.entered(pid)
            request = _SYSCALL
            stopped_by = 0
        elif stopped_by == _SYSCALL_STOP:
            if pid in watch.inside:
                watch.left(pid)
            stopped_by = 0
        elif status >> 16 or stopped_by in (signal.SIGTRAP, signal.SIGSTOP):
            stopped_by = 0  # fork, execve, or a stop of ptrace itself
        _libc.ptrace(request, pid, 0, stopped_by)


def kexec_filter(architecture: Architecture) -> bytes:
    """Return a seccomp program, in classic BPF, that stops a tracee at the crash-kexec calls of an architecture.

    It reads ``struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}``.
    """
    instructions = (  # (code, instructions to skip if true, if false, operand)
        (_LOAD_WORD, 0, 0, 4),
        (_IF_EQUAL, 0, 7, _AUDIT_ARCH | architecture.machine_number),
        (_LOAD_WORD, 0, 0, 0),
        (_IF_EQUAL, 3, 0, architecture.kexec_load_number),
        (_IF_EQUAL, 0, 4, architecture.kexec_file_load_number),
        (_LOAD_WORD, 0, 0, 16 + 8 * 4),
        (_IF_SET, 3, 2, 0x2),  # KEXEC_FILE_ON_CRASH
        (_LOAD_WORD, 0, 0, 16 + 8 * 3),
        (_IF_SET, 1, 0, 0x1),  # KEXEC_ON_CRASH
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _TRACE),
    )
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)


def _install_filter() -> None:
    """Make only the crash-kexec calls of this process and its children stop."""
    program = kexec_filter(running_architecture())
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 16)
    if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0):
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0):
            raise CrashHotplugError("system calls cannot be timed here: seccomp is forbidden")
