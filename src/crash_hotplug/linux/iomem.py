# SPDX-License-Identifier: MIT
"""/proc/iomem: the physical ranges that are RAM, and those reserved for the capture kernel."""

from __future__ import annotations

import re

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.records import NamedTuple
from crash_hotplug.linux.sysroot import LARGE, Sysroot

PATH = "/proc/iomem"
_ATTEMPTS = 16
_LONGEST_LINE = 128
"""Bytes; a page is not filled to its end."""
_LINE = re.compile(r"^ *([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.*)$", re.MULTILINE)


class Iomem(NamedTuple):
    """The contents of /proc/iomem, as half-open physical ranges."""

    ram: RangeList
    crashkernel: RangeList
    kernel_code_phys: int | None
    """Physical address of ``_text``."""
    virtio_mem: RangeList = RangeList()
    """The RAM that the virtio-mem driver added, which is RAM above as well."""


def read_iomem(sysroot: Sysroot) -> Iomem:
    """Read /proc/iomem.

    :raise CannotTellError: it is missing, or its addresses are masked (all 0 without CAP_SYS_ADMIN)
    :raise InputError: it is not in the kernel's format
    """
    text = sysroot.read_text(PATH, LARGE)
    # The kernel prints one page at a time, and the resources may change between two: then it is read until two agree.
    for _attempt in range(_ATTEMPTS):
        if text is None or len(text) < PAGE - _LONGEST_LINE or not sysroot.is_live:
            break
        before, text = text, sysroot.read_text(PATH, LARGE)
        if text == before:
            break
    else:
        raise CannotTellError(f"{sysroot.locate(PATH)} changed again and again while it was read")
    if text is None:
        raise CannotTellError(f"{sysroot.locate(PATH)} does not exist, so the machine's memory is not known")
    return parse_iomem(text, sysroot.locate(PATH))


def parse_iomem(text: str, name: str = PATH) -> Iomem:
    """Parse the text of /proc/iomem; errors as :func:`read_iomem`."""
    ram: list[tuple[int, int]] = []
    virtio_mem: list[tuple[int, int]] = []
    crashkernel: list[tuple[int, int]] = []
    kernel_code: int | None = None
    masked = True
    lines = _LINE.findall(text)
    if text and len(lines) != text.count("\n") + (not text.endswith("\n")):
        number = next(n for n, line in enumerate(text.split("\n"), 1) if not _LINE.fullmatch(line))
        raise InputError(f"{name}, line {number}, is not of the form START-END : NAME")
    for number, (first, last, resource) in enumerate(lines, 1):
        start, end = int(first, 16), int(last, 16) + 1
        if end <= start:
            raise InputError(f"{name}, line {number}: the range ends before it starts")
        masked = masked and end == 1
        # Driver-added RAM is "System RAM (kmem)" or "System RAM (virtio_mem)"; the kernel describes it too.
        if resource.startswith("System RAM"):
            ram.append((start, end))
            if resource == "System RAM (virtio_mem)":
                virtio_mem.append((start, end))
        elif resource.startswith("Crash kernel"):
            crashkernel.append((start, end))
        elif resource == "Kernel code" and kernel_code is None:
            kernel_code = start
    if masked and text:
        raise CannotTellError(f"every address in {name} is 0: the kernel hides them without CAP_SYS_ADMIN; run as root")
    if not ram:
        raise InputError(f"{name} lists no System RAM")
    return Iomem(RangeList(ram), RangeList(crashkernel), kernel_code, RangeList(virtio_mem))
