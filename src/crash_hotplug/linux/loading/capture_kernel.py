"""Load a capture kernel: by kexec_file_load, or where that will not do through kexec-tools."""

from __future__ import annotations

import errno
import os
from enum import Enum
from typing import NamedTuple

from crash_hotplug.core.capture_kernel import SETUP_HEADER_END, check_bzimage, why_no_file_load
from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.linux.loading.kexec_file_load import KexecFileLoadError, file_load_crash_image
from crash_hotplug.linux.loading.kexec_tools import find_kexec, load_with_kexec_tools

_ONLY_KEXEC_LOAD = (errno.ENOSYS, errno.ENOEXEC, errno.EKEYREJECTED, errno.ENODATA, errno.ENOKEY, errno.ENOPKG)
"""Answers of kexec_file_load after which kexec_load may still do: not built in, no such format, no accepted signature.
Under lockdown the answer is EPERM, and kexec_load is forbidden as well."""


class Strategy(str, Enum):
    """Which loader loads a capture kernel."""

    AUTO = "auto"
    """kexec_file_load, and kexec-tools where only kexec_load will do."""
    FILE = "file"
    """kexec_file_load, by ourselves."""
    KEXEC_TOOLS = "kexec-tools"
    """``kexec -p -c``."""


class CaptureKernel(NamedTuple):
    """What is loaded: paths and a command line."""

    kernel: str
    initrd: str | None
    cmdline: str
    """Without ``elfcorehdr=``, which the loader adds."""


def read_setup_header(kernel: str) -> bytes:
    """Return the first bytes of a kernel's file, for core/capture_kernel.py.

    :raise InputError: it cannot be read, or is no bzImage
    """
    try:
        descriptor = os.open(kernel, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            head, size = os.pread(descriptor, SETUP_HEADER_END, 0), os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise InputError(f"{kernel} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    check_bzimage(head, size, kernel)
    return head


def initrd_size(files: CaptureKernel) -> int:
    """Return the bytes of the initial RAM disk; 0 without one.

    :raise InputError: it cannot be read
    """
    if files.initrd is None:
        return 0
    try:
        if not os.access(files.initrd, os.R_OK):
            raise InputError(f"{files.initrd} cannot be read")
        return os.stat(files.initrd).st_size
    except (OSError, ValueError) as error:
        raise InputError(f"{files.initrd} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def load_capture_kernel(files: CaptureKernel, strategy: Strategy, hotplug_size: int | None = None) -> str:
    """Load a crash image; the one that is loaded is replaced.

    :param hotplug_size: bytes of room for the elfcorehdr, for a kexec that can be told
    :return: what loaded it, for people
    :raise InputError: a file is not what it should be; nothing was changed
    :raise CrashHotplugError: it was refused; the former image may be gone
    """
    if strategy is Strategy.KEXEC_TOOLS:
        return _through_kexec_tools(files, hotplug_size, "")
    why_not = why_no_file_load(read_setup_header(files.kernel))
    if why_not is not None:
        if strategy is Strategy.FILE:
            raise InputError(f"kexec_file_load cannot take {files.kernel}: {why_not}")
        return _through_kexec_tools(files, hotplug_size, f"kexec_file_load cannot take {files.kernel}: {why_not}")
    try:
        file_load_crash_image(files.kernel, files.initrd, files.cmdline)
    except KexecFileLoadError as error:
        if strategy is Strategy.FILE or error.number not in _ONLY_KEXEC_LOAD:
            raise
        return _through_kexec_tools(files, hotplug_size, str(error))
    return "kexec_file_load"


def _through_kexec_tools(files: CaptureKernel, hotplug_size: int | None, reason: str) -> str:
    program = find_kexec()
    if program is None:
        raise CrashHotplugError(f"{reason + '; ' if reason else ''}kexec-tools is not installed")
    options = load_with_kexec_tools(program, files.kernel, files.initrd, files.cmdline, hotplug_size)
    return f"kexec {' '.join(options)}{': ' + reason if reason else ''}"
