"""kexec_file_load(2): the kernel itself loads a crash kernel, and makes its elfcorehdr."""

from __future__ import annotations

import ctypes
import errno
import os

from crash_hotplug.core.capture_kernel import SETUP_HEADER_END, check_bzimage
from crash_hotplug.core.errors import CrashHotplugError, InputError

_SYS_KEXEC_FILE_LOAD = 320
"""On x86_64."""
_UNLOAD, _ON_CRASH, _NO_INITRAMFS = 0x1, 0x2, 0x4
_NO_FILE = -1
_COMMAND_LINE_MAX = 2048
"""COMMAND_LINE_SIZE of x86."""

_REASONS = {
    errno.EPERM: "it is forbidden (no CAP_SYS_BOOT, kernel.kexec_load_disabled, or a service's sandbox)",
    errno.EBUSY: "somebody else is loading an image",
    errno.EADDRNOTAVAIL: "the memory reserved for the capture kernel (crashkernel=) is missing or too small",
    errno.ENOMEM: "there is not enough memory for it",
    errno.ENOSYS: "this kernel has no kexec_file_load",
    errno.ENOEXEC: "the file is no kernel that this one can load",
    errno.EKEYREJECTED: "the kernel's signature was not accepted",
    errno.ENOKEY: "the kernel's signature was made with a key that is not known here",
    errno.ENODATA: "the kernel has no signature, and this machine asks for one",
}


class KexecFileLoadError(CrashHotplugError):
    """kexec_file_load(2) failed."""

    def __init__(self, number: int) -> None:
        """Take the error number."""
        self.number = number
        super().__init__(f"kexec_file_load failed: {_REASONS.get(number, os.strerror(number))}")


def file_load_crash_image(kernel: str, initrd: str | None, cmdline: str) -> None:
    """Load a crash image; the one that is loaded now is dropped first, so the files are checked before.

    :param cmdline: the capture kernel's; the kernel adds ``elfcorehdr=``
    :raise InputError: a file cannot be read or is no bzImage, or the command line is too long
    :raise KexecFileLoadError: the kernel refused
    """
    data = cmdline.encode("utf-8", "surrogateescape") + b"\0"
    if len(data) > _COMMAND_LINE_MAX - len("elfcorehdr=0x0000000000000000 "):
        raise InputError(f"the capture kernel's command line has {len(data) - 1} bytes: that is too long")
    kernel_fd = _open(kernel)
    try:
        check_bzimage(os.pread(kernel_fd, SETUP_HEADER_END, 0), os.fstat(kernel_fd).st_size, kernel)
        initrd_fd = _NO_FILE if initrd is None else _open(initrd)
        try:
            _call(kernel_fd, initrd_fd, data, _ON_CRASH | (_NO_INITRAMFS if initrd is None else 0))
        finally:
            if initrd_fd != _NO_FILE:
                os.close(initrd_fd)
    finally:
        os.close(kernel_fd)


def unload_crash_image() -> None:
    """Unload the crash image, whoever loaded it.

    :raise KexecFileLoadError: the kernel refused
    """
    _call(_NO_FILE, _NO_FILE, None, _UNLOAD | _ON_CRASH)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _call(kernel_fd: int, initrd_fd: int, cmdline: bytes | None, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    length = 0 if cmdline is None else len(cmdline)
    result = libc.syscall(
        ctypes.c_long(_SYS_KEXEC_FILE_LOAD),
        ctypes.c_int(kernel_fd),
        ctypes.c_int(initrd_fd),
        ctypes.c_ulong(length),
        ctypes.c_char_p(cmdline),
        ctypes.c_ulong(flags),
    )
    if result:
        raise KexecFileLoadError(ctypes.get_errno())
