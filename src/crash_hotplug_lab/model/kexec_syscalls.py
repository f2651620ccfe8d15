# SPDX-License-Identifier: MIT
"""``kexec_load`` and ``kexec_file_load`` for crash images, step by step, with the kernel's checks and error numbers.

The order decides the outcome of a panic (kernel/kexec.c, kernel/kexec_file.c): the kernel takes the lock, frees the old
image, checks the new segments and copies them over the old image, and sets ``kexec_crash_image`` at the end.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace

from crash_hotplug.core.image import Kimage
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.kimage import (
    KexecSegment,
    ModelKimage,
    alloc_control_pages,
    check_segment_count,
    check_segments,
)
from crash_hotplug_lab.model.loader import CaptureKernel, LoadPlan
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.profile import CrashHotplug, MachineProfile

KEXEC_ON_CRASH = 0x1
KEXEC_PRESERVE_CONTEXT = 0x2
KEXEC_UPDATE_ELFCOREHDR = 0x4
KEXEC_CRASH_HOTPLUG_SUPPORT = 0x8
KEXEC_ARCH_MASK = 0xFFFF0000


def kexec_load(machine: ModelMachine, entry_phys: int, segments: Sequence[KexecSegment], flags: int) -> Steps[None]:
    """Load a crash image, or unload it with no segments.  Only the listed segments are written.

    :raise ModelError: EINVAL, EBUSY, EADDRNOTAVAIL, ENOMEM.  A new image that is refused by the checks of its segments
        has already replaced the old one: no image is loaded then.
    """
    _check_flags(machine.profile, flags)
    check_segment_count(len(segments))
    yield Step("kexec_load: segment list copied")
    if machine.kexec_locked:
        raise ModelError(errno.EBUSY, "another kexec call or a panic holds the kexec lock")
    machine.kexec_locked = True
    try:
        yield Step("kexec_load: lock taken")
        machine.crash_image = None  # before the checks of the new one: do_kexec_load()
        yield Step("kexec_load: old image freed")
        if segments:
            supported = bool(flags & (KEXEC_UPDATE_ELFCOREHDR | KEXEC_CRASH_HOTPLUG_SUPPORT))
            made = ModelKimage(0, Kimage(entry_phys, ()), file_mode=False, hotplug_support=supported)
            yield from _install(machine, "kexec_load", made, segments)
    finally:
        machine.kexec_locked = False
    yield Step("kexec_load: lock dropped")


def kexec_file_load(machine: ModelMachine, files: CaptureKernel | None) -> Steps[None]:
    """Load a crash image from files, or unload it without files; the kernel builds every segment.

    :raise ModelError: EBUSY, EADDRNOTAVAIL, ENOMEM
    :raise CannotTellError: the reserved region is too small
    """
    if machine.kexec_locked:
        raise ModelError(errno.EBUSY, "another kexec call or a panic holds the kexec lock")
    machine.kexec_locked = True
    try:
        yield Step("kexec_file_load: lock taken")
        machine.crash_image = None
        yield Step("kexec_file_load: old image freed")
        if files is not None:
            plan = machine.profile.arch.plan_of_kernel(machine.profile, machine.kernel_view(), files)
            machine.whole_headers.add(plan.header.to_bytes())
            yield Step("kexec_file_load: segments built")
            supported = machine.profile.crash_hotplug is not CrashHotplug.NONE
            kimage = Kimage(plan.entry_phys, ())
            made = ModelKimage(0, kimage, file_mode=True, hotplug_support=supported, argument_phys=plan.argument_phys)
            yield from _install(machine, "kexec_file_load", made, plan.segments)
    finally:
        machine.kexec_locked = False
    yield Step("kexec_file_load: lock dropped")


def _check_flags(profile: MachineProfile, flags: int) -> None:
    known = KEXEC_ON_CRASH | KEXEC_PRESERVE_CONTEXT
    if profile.version >= (6, 6):
        known |= KEXEC_UPDATE_ELFCOREHDR
    if profile.version >= (6, 10):
        known |= KEXEC_CRASH_HOTPLUG_SUPPORT
    if flags & ~KEXEC_ARCH_MASK & ~known:
        raise ModelError(errno.EINVAL, f"{profile.kernel_release} does not know the flags {flags:#x}")
    if flags & KEXEC_ARCH_MASK not in (0, profile.arch.record.machine_number << 16):
        raise ModelError(errno.EINVAL, "the image is for another architecture")
    if not flags & KEXEC_ON_CRASH:
        raise ModelError(errno.EINVAL, "the model loads crash images only")


def _install(machine: ModelMachine, call: str, made: ModelKimage, segments: Sequence[KexecSegment]) -> Steps[None]:
    """Copy the segments, and install the image *made*, which has no number and no segments yet."""
    listed = tuple(segment.segment for segment in segments)
    reserved = machine.profile.reserved
    check_segments(made.kimage.entry_phys, listed, reserved, machine.ram)
    control_end = reserved.start
    for pages in machine.profile.arch.control_pages(machine.ram):
        control = alloc_control_pages(listed, Range(control_end, reserved.end), pages.size)
        control_end = control.end
        if pages.is_written:
            machine.memory.write(control.start, b"\xcc" * control.size)
    yield Step(f"{call}: segments checked, control pages allocated")
    for number, segment in enumerate(segments):
        yield from _copy_segment(machine, f"{call}: segment {number}", segment)
    machine.images_loaded += 1
    kimage = made.kimage._replace(segments=listed, control_page_phys=control_end)
    machine.crash_image = replace(made, number=machine.images_loaded, kimage=kimage)
    yield Step(f"{call}: image installed")


def _copy_segment(machine: ModelMachine, name: str, segment: KexecSegment) -> Steps[None]:
    """Copy the contents and zero the rest; the elfcorehdr in two halves, so that a panic can occur between them."""
    if segment.buf.startswith(b"\x7fELF"):
        machine.memory.write(segment.phys, segment.buf[: len(segment.buf) // 2])
        yield Step(f"{name} half copied")
    machine.memory.write(segment.phys, segment.buf)
    machine.memory.zero(segment.phys + len(segment.buf), segment.memsz - len(segment.buf))
    yield Step(f"{name} copied")


def crash_flags(profile: MachineProfile, hotplug: bool) -> int:
    """Return the flags of a crash image's kexec_load.

    :param hotplug: whether the kernel may update the header (``--hotplug``; 6.6 and newer)
    """
    flags = profile.arch.record.machine_number << 16 | KEXEC_ON_CRASH
    return flags | KEXEC_UPDATE_ELFCOREHDR if hotplug and profile.version >= (6, 6) else flags


def load_plan(machine: ModelMachine, plan: LoadPlan, flags: int) -> Steps[None]:
    """Load the image of a plan by kexec_load; errors as :func:`kexec_load`."""
    machine.whole_headers.add(plan.header.to_bytes())
    yield from kexec_load(machine, plan.entry_phys, plan.segments, flags)
