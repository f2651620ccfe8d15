"""The one privileged system call: kexec_load(2) for a crash image."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.update_plan import NewSegment

KEXEC_ON_CRASH = 0x1
KEXEC_UPDATE_ELFCOREHDR = 0x4
"""The kernel may update the elfcorehdr of this image by itself (Linux 6.6 and newer, x86)."""
_ARCH_X86_64 = 62 << 16
_SYS_KEXEC_LOAD = 246
"""On x86_64."""

_REASONS = {
    errno.EPERM: "it is forbidden (no CAP_SYS_BOOT, lockdown, kernel.kexec_load_disabled, or a service's sandbox)",
    errno.EBUSY: "somebody else is loading an image",
    errno.EADDRNOTAVAIL: "a segment lies outside the memory reserved for the capture kernel",
    errno.ENOMEM: "there is not enough memory for it",
    errno.ENOSYS: "this kernel has no kexec_load (CONFIG_KEXEC is off, as in RHEL 10)",
    errno.EINVAL: "the kernel does not accept the segments or the flags",
}


class KexecError(CrashHotplugError):
    """kexec_load(2) failed."""

    def __init__(self, number: int) -> None:
        """Take the error number."""
        self.number = number
        super().__init__(f"kexec_load failed: {_REASONS.get(number, os.strerror(number))}")


class _KexecSegment(ctypes.Structure):
    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("bufsz", ctypes.c_size_t),
        ("mem", ctypes.c_void_p),
        ("memsz", ctypes.c_size_t),
    )


class KexecBusyError(KexecError):
    """Somebody else holds the kernel's kexec lock; nothing was changed."""


def load_crash_image(entry_phys: int, segments: Sequence[NewSegment], flags: int) -> None:
    """Load a crash image of these segments; memory of the reserved region that none of them covers is left alone.

    :param entry_phys: physical entry point, in purgatory
    :param flags: KEXEC_UPDATE_ELFCOREHDR or 0; what makes it a crash image is added
    :raise KexecError: the kernel refused; an image that was loaded may be gone, so the caller looks again
    """
    buffers = [ctypes.create_string_buffer(s.data, len(s.data)) for s in segments]
    table = (_KexecSegment * len(segments))(
        *(_KexecSegment(ctypes.addressof(buffer), len(s.data), s.phys, s.memsz) for buffer, s in zip(buffers, segments))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_ulong(entry_phys), ctypes.c_ulong(len(segments)), table)
    if libc.syscall(ctypes.c_long(_SYS_KEXEC_LOAD), *arguments, ctypes.c_ulong(_ARCH_X86_64 | KEXEC_ON_CRASH | flags)):
        number = ctypes.get_errno()
        raise KexecBusyError(number) if number == errno.EBUSY else KexecError(number)
