# SPDX-License-Identifier: MIT
"""The arguments with which the two system calls are made, as the kernel would read them."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

import pytest

from crash_hotplug.core.plan import NewSegment
from crash_hotplug.linux.loading.system_calls import (
    FILE_NO_INITRAMFS,
    FILE_ON_CRASH,
    KEXEC_UPDATE_ELFCOREHDR,
    NO_FILE,
    KexecError,
    KexecFileLoadError,
    kexec_file_load,
    kexec_load,
)

SEGMENTS = (NewSegment(0x2E00_0000, b"first\0\0", 0x1000, ""), NewSegment(0x39F5_D000, b"\x7fELF" * 9, 0x4000, ""))


class Libc:
    """A C library whose kernel notes the arguments of each call and answers with an error number."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.calls: list[tuple[Any, ...]] = []
        self.segments: list[tuple[bytes, int, int]] = []
        self.locked: dict[int, int] = {}
        self.locked_during_the_call: list[tuple[int, int]] = []

    def mlock(self, address: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        self.locked[address.value or 0] = size.value
        return 0

    def munlock(self, address: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        assert self.locked.pop(address.value or 0) == size.value
        ctypes.set_errno(errno.ENOMEM)  # of a call that nobody asks about
        return 0

    def syscall(self, *arguments: Any) -> int:  # noqa: ANN401 ctypes objects of any kind
        if arguments[0].value == 246:
            for segment in arguments[3]:
                self.segments.append((ctypes.string_at(segment.buf, segment.bufsz), segment.mem, segment.memsz))
                self.locked_during_the_call.append((segment.bufsz, self.locked.get(segment.buf, 0)))
        self.calls.append(tuple(a.value for a in arguments if isinstance(a, ctypes._SimpleCData)))
        ctypes.set_errno(self.error)
        return -1 if self.error else 0


@pytest.fixture
def libc(monkeypatch: pytest.MonkeyPatch) -> Libc:
    libc = Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda _name, use_errno: libc)
    return libc


def test_kexec_load_passes_number_entry_segments_and_flags(libc: Libc) -> None:
    kexec_load(0x39F5_4760, SEGMENTS, KEXEC_UPDATE_ELFCOREHDR)
    # The number of x86_64 (arch/x86/entry/syscalls/syscall_64.tbl); KEXEC_ARCH_X86_64, KEXEC_ON_CRASH, and the flag.
    assert libc.calls == [(246, 0x39F5_4760, 2, 0x3E_0000 | 0x1 | 0x4)]
    assert libc.segments == [(s.data, s.phys, s.memsz) for s in SEGMENTS]


def test_kexec_load_reports_the_kernels_error(libc: Libc) -> None:
    libc.error = errno.EADDRNOTAVAIL
    with pytest.raises(KexecError, match="outside the memory reserved") as raised:
        kexec_load(0x39F5_4760, SEGMENTS, 0)
    assert raised.value.number == errno.EADDRNOTAVAIL
    assert libc.calls[0][-1] == 0x3E_0000 | 0x1
    assert libc.locked == {}


def test_kexec_load_locks_the_buffers_into_memory_for_the_call(libc: Libc) -> None:
    """The kernel has dropped the loaded image when it copies them: no page may have to be read then."""
    kexec_load(0x39F5_4760, SEGMENTS, 0)
    assert libc.locked_during_the_call == [(7, 7), (36, 36)]
    assert libc.locked == {}


def test_kexec_file_load_passes_number_files_and_command_line(libc: Libc) -> None:
    kexec_file_load(3, NO_FILE, b"quiet\0", FILE_ON_CRASH | FILE_NO_INITRAMFS)
    assert libc.calls == [(320, 3, -1, 6, b"quiet", 0x2 | 0x4)]


def test_kexec_file_load_reports_the_kernels_error(libc: Libc) -> None:
    libc.error = errno.ENOKEY
    with pytest.raises(KexecFileLoadError, match="a key that the running kernel does not know"):
        kexec_file_load(3, 4, b"quiet\0", FILE_ON_CRASH)
