# SPDX-License-Identifier: MIT
"""The two privileged system calls: kexec_load(2) and kexec_file_load(2) for a crash image."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.linux.running_architecture import running_architecture

KEXEC_ON_CRASH = 0x1
KEXEC_UPDATE_ELFCOREHDR = 0x4
"""The kernel may update the elfcorehdr of this image by itself (Linux 6.6 and newer, x86)."""
_ARCHITECTURE_SHIFT = 16
"""The flags have the image's ``e_machine`` in their upper half (``KEXEC_ARCH_MASK``)."""
FILE_UNLOAD, FILE_ON_CRASH, FILE_NO_INITRAMFS = 0x1, 0x2, 0x4
"""``KEXEC_FILE_UNLOAD``, ``KEXEC_FILE_ON_CRASH``, ``KEXEC_FILE_NO_INITRAMFS``."""
NO_FILE = -1

_REASONS = {
    errno.EPERM: "it is forbidden (no CAP_SYS_BOOT, lockdown, kernel.kexec_load_disabled, or a service's sandbox)",
    errno.EBUSY: "another process is loading an image",
    errno.ENOMEM: "there is not enough memory for it",
}
_LOAD_REASONS = {
    **_REASONS,
    errno.EADDRNOTAVAIL: "a segment lies outside the memory reserved for the capture kernel",
    errno.ENOSYS: "this kernel has no kexec_load (CONFIG_KEXEC is off, as in RHEL 10)",
    errno.EINVAL: "the kernel does not accept the segments or the flags",
}
_FILE_LOAD_REASONS = {
    **_REASONS,
    errno.EPERM: "it is forbidden (no CAP_SYS_BOOT, kernel.kexec_load_disabled, or a service's sandbox)",
    errno.EADDRNOTAVAIL: "the memory reserved for the capture kernel (crashkernel=) is missing or too small",
    errno.ENOSYS: "this kernel has no kexec_file_load",
    errno.ENOEXEC: "the file is not a kernel that the running kernel can load",
    errno.EKEYREJECTED: "the kernel's signature was not accepted",
    errno.ENOKEY: "the kernel's signature was made with a key that the running kernel does not know",
    errno.ENOPKG: "the running kernel does not have the algorithms of the kernel's signature",
    errno.ENODATA: "the kernel has no signature, and this machine requires one",
}


class SystemCallError(CrashHotplugError):
    """One of the two system calls failed."""

    def __init__(self, call: str, number: int, reasons: Mapping[int, str]) -> None:
        """Take the call's name, the error number, and the meaning of each number for this call."""
        self.number = number
        super().__init__(f"{call} failed: {reasons.get(number, os.strerror(number))}")


class KexecError(SystemCallError):
    """kexec_load(2) failed."""

    def __init__(self, number: int) -> None:
        """Take the error number."""
        super().__init__("kexec_load", number, _LOAD_REASONS)


class KexecFileLoadError(SystemCallError):
    """kexec_file_load(2) failed."""

    def __init__(self, number: int) -> None:
        """Take the error number."""
        super().__init__("kexec_file_load", number, _FILE_LOAD_REASONS)


class _KexecSegment(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_void_p),
        ("memsz", ctypes.c_size_t),
    )


def kexec_load(entry_phys: int, segments: Sequence[NewSegment], flags: int) -> None:
    """Load a crash image of these segments; the call leaves the rest of the reserved region unchanged.

    :param entry_phys: physical entry point, in purgatory
    :param flags: KEXEC_UPDATE_ELFCOREHDR or 0; KEXEC_ON_CRASH is added
    :raise KexecError: the kernel refused; it may have dropped the loaded image, so the caller has to check
    """
    buffers = [ctypes.create_string_buffer(s.data, len(s.data)) for s in segments]
    table = (_KexecSegment * len(segments))(
        *(_KexecSegment(ctypes.addressof(buffer), len(s.data), s.phys, s.memsz) for buffer, s in zip(buffers, segments))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(entry_phys), ctypes.c_ulong(len(segments)), table)
    # The kernel drops the loaded image before it copies the buffers, so no page of them may have to be read in then.
    # Where the limit of locked memory forbids that the call is made all the same.
    places = [(ctypes.c_void_p(ctypes.addressof(buffer)), ctypes.c_size_t(len(buffer))) for buffer in buffers]
    for place in places:
        libc.mlock(*place)
    architecture = running_architecture()
    kexec_flags = ctypes.c_ulong(architecture.machine_number << _ARCHITECTURE_SHIFT | KEXEC_ON_CRASH | flags)
    failed = libc.syscall(ctypes.c_long(architecture.kexec_load_number), *arguments, kexec_flags)
    number = ctypes.get_errno()
    for place in places:
        libc.munlock(*place)
    if failed:
        raise KexecError(number)


def kexec_file_load(kernel_fd: int, initrd_fd: int, cmdline: bytes | None, flags: int) -> None:
    """Load a crash image from open files, or unload it.

    :param initrd_fd: NO_FILE for none
    :param cmdline: ends with a null character; None to unload
    :raise KexecFileLoadError: the kernel refused; it may have dropped the loaded image
    """
    libc = ctypes.CDLL(None, use_errno=True)
    length = 0 if cmdline is None else len(cmdline)
    result = libc.syscall(
        ctypes.c_long(running_architecture().kexec_file_load_number),
        ctypes.c_int(kernel_fd),
        ctypes.c_int(initrd_fd),
        ctypes.c_ulong(length),
        ctypes.c_char_p(cmdline),
        ctypes.c_ulong(flags),
    )
    if result:
        raise KexecFileLoadError(ctypes.get_errno())
