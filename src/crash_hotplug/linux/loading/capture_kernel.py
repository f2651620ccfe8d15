# SPDX-License-Identifier: MIT
"""Load a capture kernel: by kexec_file_load, or through kexec-tools where only kexec_load works."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import ExitStack
from enum import Enum
from typing import Callable, NamedTuple

from crash_hotplug.core.arch.architecture import KERNEL_FILE_HEAD, KernelFile
from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import check_capture_kernel_fits
from crash_hotplug.linux.kexec_state import read_kexec_state
from crash_hotplug.linux.loading.system_calls import (
    FILE_NO_INITRAMFS,
    FILE_ON_CRASH,
    FILE_UNLOAD,
    NO_FILE,
    KexecFileLoadError,
    kexec_file_load,
)
from crash_hotplug.linux.programs import SEARCH, run_tool, why_failed
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import Sysroot

_COMMAND_LINE_MAX = 2048
"""COMMAND_LINE_SIZE of x86 and arm64."""
_ONLY_KEXEC_LOAD = (errno.ENOSYS, errno.ENOEXEC)
"""Errors of kexec_file_load after which kexec_load may still work: not built in, unknown format."""
_SIGNATURE_REFUSED = (errno.EKEYREJECTED, errno.ENODATA, errno.ENOKEY, errno.ENOPKG)
"""Errors of kexec_file_load where the machine requires a signature.  kexec_load checks none, so it works nevertheless.
Under lockdown the error is EPERM, and kexec_load is forbidden as well."""


class Strategy(str, Enum):
    """Which loader loads a capture kernel."""

    AUTO = "auto"
    """kexec_file_load, and kexec-tools where only kexec_load works."""
    FILE = "file"
    """kexec_file_load, called by this program."""
    KEXEC_TOOLS = "kexec-tools"
    """``kexec -p -c``."""


class CaptureKernel(NamedTuple):
    """The files of a capture kernel, by path, and the way to start it."""

    kernel: str
    initrd: str | None
    cmdline: str
    """Without ``elfcorehdr=``, which the loader adds."""
    allow_unsigned: bool = False
    """Whether kexec-tools may load it although its signature was refused."""


class LoaderCalls(NamedTuple):
    """The calls that load an image; a test passes other ones."""

    file_load: Callable[[int, int, bytes | None, int], None] = kexec_file_load
    find_kexec: Callable[[], str | None] = lambda: shutil.which("kexec", path=SEARCH)
    run: Callable[[list[str]], subprocess.CompletedProcess[str]] = run_tool


def check_files(files: CaptureKernel, room: int, machine: Machine) -> None:
    """Make every check of the files that is possible before the loaded image is dropped.

    :param room: bytes of room that the elfcorehdr is to have
    :raise InputError: a file, the command line or the room is invalid
    :raise NoRoomError: the reserved region is too small
    """
    if "\0" in files.cmdline:
        raise InputError("the capture kernel's command line has a null character")
    check_capture_kernel_fits(_read_kernel_file(files.kernel).init_size, _initrd_size(files), room, machine)


def load_capture_kernel(
    files: CaptureKernel,
    strategy: Strategy,
    hotplug_size: int | None = None,
    calls: LoaderCalls = LoaderCalls(),
    sysroot: Sysroot | None = None,
) -> str:
    """Load a crash image; it replaces the loaded one.

    :param hotplug_size: bytes of room for the elfcorehdr, for a kexec that has ``--hotplug-size``
    :return: the system call or the command that loaded it, for people
    :raise InputError: a file is invalid; nothing was changed
    :raise CrashHotplugError: the load was refused; the previous image may have been dropped
    """
    if strategy is Strategy.KEXEC_TOOLS:
        return _through_kexec_tools(files, hotplug_size, "", calls, sysroot)
    why_not = _read_kernel_file(files.kernel).why_no_file_load
    if why_not is not None:
        sentence = f"kexec_file_load cannot take {files.kernel}: {why_not}"
        if strategy is Strategy.FILE:
            raise InputError(sentence)
        return _through_kexec_tools(files, hotplug_size, sentence, calls, sysroot)
    try:
        _file_load(files, calls)
    except KexecFileLoadError as error:
        is_refused = error.number in _SIGNATURE_REFUSED
        if strategy is Strategy.FILE or not (is_refused or error.number in _ONLY_KEXEC_LOAD):
            raise
        if is_refused and not files.allow_unsigned:
            allow = "with --allow-unsigned, crash-hotplug load uses kexec -p -c, which checks no signature"
            raise CrashHotplugError(f"{error}; {allow}") from error
        return _through_kexec_tools(files, hotplug_size, str(error), calls, sysroot)
    return "kexec_file_load"


def unload_crash_image(calls: LoaderCalls = LoaderCalls()) -> None:
    """Unload the crash image of any loader.

    :raise KexecFileLoadError: the kernel refused
    """
    calls.file_load(NO_FILE, NO_FILE, None, FILE_UNLOAD | FILE_ON_CRASH)


def _file_load(files: CaptureKernel, calls: LoaderCalls) -> None:
    """Load by kexec_file_load; the kernel adds ``elfcorehdr=`` and drops the loaded image first."""
    data = files.cmdline.encode("utf-8", "surrogateescape") + b"\0"
    if len(data) > _COMMAND_LINE_MAX - len("elfcorehdr=0x0000000000000000 "):
        raise InputError(f"the capture kernel's command line has {len(data) - 1} bytes: that is too long")
    with ExitStack() as opened:
        kernel_fd = _open(files.kernel, opened)
        _check_kernel_file(kernel_fd, files.kernel)
        initrd_fd = NO_FILE if files.initrd is None else _open(files.initrd, opened)
        flags = FILE_ON_CRASH | (FILE_NO_INITRAMFS if files.initrd is None else 0)
        calls.file_load(kernel_fd, initrd_fd, data, flags)


def _through_kexec_tools(
    files: CaptureKernel, hotplug_size: int | None, reason: str, calls: LoaderCalls, sysroot: Sysroot | None
) -> str:
    """Load with ``kexec -p -c``, which checks the files before the previous image is dropped."""
    program = calls.find_kexec()
    if program is None:
        raise CrashHotplugError(f"{reason + '; ' if reason else ''}kexec-tools is not installed")
    known = calls.run([program, "--help"]).stdout
    options = ["-p", "-c"]
    # kexec-tools 2.0.29 and Linux 6.6: the kernel may then update the header by itself.
    if "--hotplug " in known and read_kexec_state(sysroot or Sysroot()).elfcorehdr_size is not None:
        options.append("--hotplug")
    if "--hotplug-size" in known and hotplug_size is not None:
        options.append(f"--hotplug-size={hotplug_size}")
    initrd = [] if files.initrd is None else [f"--initrd={files.initrd}"]
    done = calls.run([program, *options, files.kernel, *initrd, f"--append={files.cmdline}"])
    if done.returncode:
        raise CrashHotplugError(f"kexec {' '.join(options)} failed: {why_failed(done)}")
    return f"kexec {' '.join(options)}{': ' + reason if reason else ''}"


def _read_kernel_file(kernel: str) -> KernelFile:
    """Return what a kernel's file says of itself.

    :raise InputError: it cannot be read, or is no kernel of this architecture
    """
    with ExitStack() as opened:
        return _check_kernel_file(_open(kernel, opened), kernel)


def _check_kernel_file(descriptor: int, kernel: str) -> KernelFile:
    try:
        head, size = os.pread(descriptor, KERNEL_FILE_HEAD, 0), os.fstat(descriptor).st_size
    except OSError as error:
        raise InputError(f"{kernel} cannot be read: {error.strerror}") from error
    return running_architecture().read_kernel_file(head, size, kernel)


def _initrd_size(files: CaptureKernel) -> int:
    if files.initrd is None:
        return 0
    with ExitStack() as opened:
        return os.fstat(_open(files.initrd, opened)).st_size


def _open(path: str, opened: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    opened.callback(os.close, descriptor)
    return descriptor
