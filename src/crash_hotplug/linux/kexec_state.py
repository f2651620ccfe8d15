# SPDX-License-Identifier: MIT
"""The kernel's files about kexec: the loaded image, support of hot-plug, restrictions, and vmcoreinfo.

:func:`memory_encryption` belongs here: where memory is encrypted, /proc/kcore does not show the reserved region as the
capture kernel will see it.
"""

from __future__ import annotations

import re
import time

from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import NoteRegion
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.core.vmcoreinfo import parse_vmcoreinfo
from crash_hotplug.linux.kcore import Kcore
from crash_hotplug.linux.sysroot import LARGE, Sysroot

LOADED = ("/sys/kernel/kexec/crash_loaded", "/sys/kernel/kexec_crash_loaded")
"""Since 6.19 these files live in /sys/kernel/kexec/; the second path of each pair is the older place."""
RESERVED_SIZE = ("/sys/kernel/kexec/crash_size", "/sys/kernel/kexec_crash_size")
ELFCOREHDR_SIZE = ("/sys/kernel/kexec/crash_elfcorehdr_size", "/sys/kernel/crash_elfcorehdr_size")
CMA_RANGES = ("/sys/kernel/kexec/crash_cma_ranges",)
CPU_HOTPLUG = "/sys/devices/system/cpu/crash_hotplug"
MEMORY_HOTPLUG = "/sys/devices/system/memory/crash_hotplug"
LOAD_DISABLED = "/proc/sys/kernel/kexec_load_disabled"
LOAD_LIMIT = "/proc/sys/kernel/kexec_load_limit_panic"
LOCKDOWN = "/sys/kernel/security/lockdown"
VMCOREINFO = "/sys/kernel/vmcoreinfo"
CPUINFO = "/proc/cpuinfo"

STATE_FILES = (
    *LOADED,
    *RESERVED_SIZE,
    *ELFCOREHDR_SIZE,
    *CMA_RANGES,
    CPU_HOTPLUG,
    MEMORY_HOTPLUG,
    LOAD_DISABLED,
    LOAD_LIMIT,
    LOCKDOWN,
)
"""The files of :class:`KexecState`, for a snapshot."""
_FLAG_READS, _FLAG_PAUSE = 4, 0.003
"""The kernel's own handler holds the lock for less than a millisecond."""
_GUEST_FLAGS = {"tdx_guest": "Intel TDX", "sev_guest": "AMD SEV"}
_NOTE_HEADER = 24
"""Bytes before the text of vmcoreinfo: the note's three words and the name ``VMCOREINFO``."""


class KexecState(NamedTuple):
    """The kernel's state of kdump.  None means that the kernel (or the saved tree) does not have the file."""

    image_loaded: bool | None
    reserved_size: int | None
    """Bytes reserved by ``crashkernel=``."""
    elfcorehdr_size: int | None
    """Bytes of room that the kernel requests for an elfcorehdr (6.6 and newer)."""
    updates_cpus: bool | None
    """Whether the kernel itself updates this image when CPUs are added or removed; False also where it never does."""
    updates_memory: bool | None
    """The same for memory."""
    load_disabled: bool | None
    """``kernel.kexec_load_disabled``."""
    load_limit: int | None
    """``kernel.kexec_load_limit_panic``: crash images that may still be loaded; -1 for no limit (6.3 and newer)."""
    lockdown: str | None
    """``none``, ``integrity`` or ``confidentiality``."""


def read_kexec_state(sysroot: Sysroot) -> KexecState:
    """Read the state; a value whose file is masked or missing is None.

    :raise InputError: a file is not in the kernel's format
    """
    return KexecState(
        read_image_loaded(sysroot),
        _number(sysroot, RESERVED_SIZE),
        _number(sysroot, ELFCOREHDR_SIZE),
        _flag(sysroot, CPU_HOTPLUG),
        _flag(sysroot, MEMORY_HOTPLUG),
        _flag(sysroot, LOAD_DISABLED),
        _number(sysroot, (LOAD_LIMIT,)),
        _lockdown(sysroot),
    )


def read_image_loaded(sysroot: Sysroot) -> bool | None:
    """Return whether a crash image is loaded; None where the kernel (or the saved tree) does not tell.

    :raise InputError: the file is not in the kernel's format
    """
    loaded = _number(sysroot, LOADED)
    return None if loaded is None else loaded == 1


def kernel_updates_image(sysroot: Sysroot) -> bool:
    """Whether the kernel itself may update the loaded image when a CPU or memory is added or removed.

    The files say 0 as well while the kexec lock is taken (``crash_check_hotplug_support()`` in kernel/crash_core.c), as
    it is for a moment at each event, so a 0 is believed when it stays.

    :raise InputError: a file is not in the kernel's format
    """
    for attempt in range(_FLAG_READS):
        if attempt:
            time.sleep(_FLAG_PAUSE)
        flags = [_flag(sysroot, path) for path in (CPU_HOTPLUG, MEMORY_HOTPLUG)]
        if any(flags):
            return True
        if flags == [None, None]:
            return False
    return False


def why_locked_down(state: KexecState) -> str | None:
    """Return the sentence that lockdown forbids kexec_load(2); None where it does not."""
    if state.lockdown in (None, "none"):
        return None
    return f"lockdown ({state.lockdown}) forbids kexec_load"


def why_no_load(state: KexecState) -> str | None:
    """Return the sentence about the sysctl that forbids both system calls; None where none does."""
    if state.load_disabled:
        return "kernel.kexec_load_disabled forbids loading until the next boot"
    if state.load_limit == 0:
        return "kernel.kexec_load_limit_panic allows no more loads"
    return None


def read_cma_ranges(sysroot: Sysroot) -> RangeList | None:
    """Return the physical ranges of ``crashkernel=SIZE,cma``, which the kernel leaves out of the header.

    Kernels from 6.19 on show them; None on older ones, whether they have such ranges or not.

    :raise CannotTellError: they may not be read: without them a header would describe the capture kernel's memory
    :raise InputError: the file is not in the kernel's format
    """
    text = sysroot.read_text(CMA_RANGES[0])
    if text is None:
        return None
    ranges = []
    for line in text.splitlines():
        matched = re.fullmatch(r"([0-9a-f]{1,16})-([0-9a-f]{1,16})", line.strip())
        if matched is None or int(matched[2], 16) < int(matched[1], 16):
            raise InputError(f"{sysroot.locate(CMA_RANGES[0])} is not a list of START-END ranges")
        ranges.append(Range(int(matched[1], 16), int(matched[2], 16) + 1))
    return RangeList(ranges)


def read_vmcoreinfo_place(sysroot: Sysroot) -> NoteRegion | None:
    """Read "ADDRESS SIZE"; both are hexadecimal, with and without 0x: ``0x11ee000 1024`` is 0x1024 bytes.

    :return: None where the file is missing or masked
    :raise InputError: it is not of that form
    """
    text = _text(sysroot, VMCOREINFO)
    if text is None:
        return None
    matched = re.fullmatch(r"(?:0x)?([0-9a-f]{1,16}) ([0-9a-f]{1,8})", text)
    if matched is None:
        raise InputError(f"{sysroot.locate(VMCOREINFO)} is not of the form ADDRESS SIZE: {text[:40]!r}")
    return NoteRegion(int(matched[1], 16), int(matched[2], 16))


def read_vmcoreinfo(kcore: Kcore, place: NoteRegion) -> bytes:
    """Return the text of vmcoreinfo, as a panic would leave it.

    :raise CannotTellError: the memory cannot be read
    """
    return kcore.read_phys(place.phys, place.size)[_NOTE_HEADER:].split(b"\0")[0]


def memory_encryption(sysroot: Sysroot, kcore: Kcore, vmcoreinfo: NoteRegion | None) -> str | None:
    """Return the name of the encryption that is in use, or None.

    AMD's SME and SEV show in vmcoreinfo's ``sme_mask``, Intel's TDX as a flag in /proc/cpuinfo.  AMD's flags there say
    only what the processor supports.

    :raise CannotTellError: vmcoreinfo cannot be read
    """
    data = sysroot.read(CPUINFO, LARGE) or b""
    flags = re.search(rb"^flags\s*:(.*)$", data, re.MULTILINE)
    present = set(flags[1].decode("ascii", "replace").split()) if flags else set()
    for flag, name in _GUEST_FLAGS.items():
        if flag in present:
            return name
    if vmcoreinfo is None:
        raise CannotTellError("vmcoreinfo cannot be read, so it is not known whether memory is encrypted")
    return "AMD SME or SEV" if parse_vmcoreinfo(read_vmcoreinfo(kcore, vmcoreinfo)).sme_mask else None


def _text(sysroot: Sysroot, path: str) -> str | None:
    try:
        return sysroot.read_text(path)
    except CannotTellError:
        return None


def _number(sysroot: Sysroot, paths: tuple[str, ...]) -> int | None:
    for path in paths:
        text = _text(sysroot, path)
        if text is not None:
            if not re.fullmatch(r"-?\d{1,19}", text):
                raise InputError(f"{sysroot.locate(path)} is not a number: {text[:20]!r}")
            return int(text)
    return None


def _flag(sysroot: Sysroot, path: str) -> bool | None:
    value = _number(sysroot, (path,))
    return None if value is None else value != 0


def _lockdown(sysroot: Sysroot) -> str | None:
    # Brackets mark the active mode: "none [integrity] confidentiality".
    matched = re.search(r"\[(none|integrity|confidentiality)\]", _text(sysroot, LOCKDOWN) or "")
    return matched[1] if matched else None
