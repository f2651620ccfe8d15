# SPDX-License-Identifier: MIT
"""In the guest: loads another image between the last check of an update and the kernel's lock.

The update is stopped at the entry of its kexec_load, kexec loads another image, and the update goes on.  Prints the
output of the update; exit code 1 unless the update detected the other image and repaired it by a reload.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys

from crash_hotplug.cli.main import main

_TRACEME, _PEEKUSER, _DETACH, _SYSCALL = 0, 3, 17, 24  # linux/ptrace.h
_ORIG_RAX = 15 * 8  # struct user_regs_struct of arch/x86/include/asm/user_64.h
_SYS_KEXEC_LOAD = 246
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long] * 4
_libc.ptrace.restype = ctypes.c_long


def start_update(output: int) -> int:
    """Start `crash-hotplug update` in a traced process, stopped at its beginning; return its process id."""
    child = os.fork()
    if child == 0:
        os.dup2(output, 1)
        os.dup2(output, 2)
        _libc.ptrace(_TRACEME, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        code = main(["update"])
        sys.stdout.flush()
        os._exit(code)
    os.waitpid(child, 0)
    return child


def run_to_kexec_load(child: int) -> bool:
    """Let the update run to the entry of its first kexec_load; return False where it ends before."""
    while True:
        _libc.ptrace(_SYSCALL, child, 0, 0)
        if os.WIFEXITED(os.waitpid(child, 0)[1]):
            return False
        if _libc.ptrace(_PEEKUSER, child, _ORIG_RAX, 0) == _SYS_KEXEC_LOAD:
            return True


def race(kexec: list[str]) -> tuple[str, int]:
    """Return the output of the update, and its exit code."""
    reading, writing = os.pipe()
    child = start_update(writing)
    os.close(writing)
    if not run_to_kexec_load(child):
        return "the update never called kexec_load", -1
    subprocess.run(kexec, check=True)
    _libc.ptrace(_DETACH, child, 0, 0)
    with os.fdopen(reading) as output:
        said = output.read().strip()
    return said, os.WEXITSTATUS(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    what, exit_code = race(sys.argv[1:])
    print(f"exit code {exit_code}: {what}")
    if exit_code != 0 or not what.startswith("reloaded: ") or "at the very moment of the update" not in what:
        sys.exit(1)
