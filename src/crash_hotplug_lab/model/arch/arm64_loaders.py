# SPDX-License-Identifier: MIT
"""The crash images of the two loaders on arm64, kexec-tools and the kernel: the segments and their places.

Both put the kernel at the bottom of the reserved region.  tests/lab/model/test_captures.py compares the places with
captured machines.
"""

from __future__ import annotations

import hashlib
import struct

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.ranges import Range
from crash_hotplug_lab.model.arch.flat_tree import Property, build_tree, cells
from crash_hotplug_lab.model.loader import (
    KERNEL_ALIGNMENT,
    CaptureKernel,
    LoadPlan,
    Region,
    pages,
    plan_with_purgatory,
    segment,
    small_capture_kernel,
)
from crash_hotplug_lab.model.memory import PhysicalMemory
from crash_hotplug_lab.model.profile import MachineProfile

ELFCOREHDR, USABLE_MEMORY = "linux,elfcorehdr", "linux,usable-memory-range"
INITRD_START, INITRD_END = "linux,initrd-start", "linux,initrd-end"
BOOTED_FROM_KEXEC = "linux,booted-from-kexec"
"""The property by which the kernel's loader marks its tree."""
IMAGE_HEADER = struct.Struct("<IIQQQQQQ4sI")
"""code0, code1, text_offset, image_size, flags, three reserved words, magic, another (booting.rst of arm64)."""
IMAGE_MAGIC = b"ARM\x64"
_BRANCH = 0x1400_0010
"""``b``, behind the header."""
_BSS = 1 << 20
"""Bytes; no real kernel is smaller, and the update tells it from a purgatory by that."""
_PURGATORY_PAGES = 4
_ELFCOREHDR_ALIGNMENT = 64 << 10
_TREE_ALIGNMENT = 2 << 20
_SEAL = struct.Struct("<Q32s")
"""Length of a file and SHA-256 of what follows its first page, at the end of that page."""


def sealed_capture_kernel(number: int = 4) -> CaptureKernel:
    """Return a kernel with the header of an Image and an initrd, of a few pages that tell whether they are whole.

    :param number: pages of the kernel
    """
    files = small_capture_kernel(number)
    image_size = files.kernel_memsz + _BSS
    head = IMAGE_HEADER.pack(_BRANCH, 0, 0, image_size, 0, 0, 0, 0, IMAGE_MAGIC, 0)
    append = "console=ttyAMA0 quiet irqpoll nr_cpus=1 reset_devices acpi_no_memhotplug"
    kernel = head + files.kernel[len(head) :]
    return CaptureKernel(_sealed(kernel), _sealed(files.initrd), image_size, append)


def _sealed(file: bytes) -> bytes:
    seal = _SEAL.pack(len(file), hashlib.sha256(file[PAGE:]).digest())
    return file[: PAGE - _SEAL.size] + seal + file[PAGE:]


def is_whole(memory: PhysicalMemory, phys: int) -> bool:
    """Whether a file of :func:`sealed_capture_kernel` at a physical address is whole: else its code would crash."""
    length, digest = _SEAL.unpack(memory.read(phys + PAGE - _SEAL.size, _SEAL.size))
    if not PAGE <= length <= 1 << 30:
        return False
    return hashlib.sha256(memory.read(phys + PAGE, length - PAGE)).digest() == bytes(digest)


def plan_of_kexec_tools(
    profile: MachineProfile, machine: Machine, files: CaptureKernel, _hotplug_room: int | None
) -> LoadPlan:
    """Return the image of ``kexec -p -c`` (kexec-tools' ``load_crashdump_segments()`` and ``image_arm64_load()``).

    :param machine: the machine as /proc and /sys show it
    :raise CannotTellError: the image does not fit into the reserved region
    """
    region = Region(profile.reserved)
    header = expected_elfcorehdr(machine, Loader.KEXEC_TOOLS)
    room = len(header.to_bytes(1024))
    header_at = region.place_high(room)
    kernel_at = region.place_low(pages(files.kernel_memsz), KERNEL_ALIGNMENT)
    initrd_at = region.place_low(len(files.initrd))
    chosen = [
        *_initrd(initrd_at, files),
        (USABLE_MEMORY, cells(profile.reserved.start, profile.reserved.size)),
        (ELFCOREHDR, cells(header_at, room)),
        ("bootargs", files.append.encode() + b"\0"),
    ]
    tree = build_tree(chosen)
    tree_at = region.place_low(len(tree))
    purgatory_at = region.place_low(_PURGATORY_PAGES * PAGE)
    elfcorehdr = segment(header_at, header.to_bytes(1024), room)
    hashed = [
        segment(kernel_at, files.kernel, files.kernel_memsz),
        segment(initrd_at, files.initrd),
        segment(tree_at, tree),
        elfcorehdr,
    ]
    return plan_with_purgatory(purgatory_at, _PURGATORY_PAGES, (kernel_at, tree_at), hashed, elfcorehdr, header)


def plan_of_kernel(profile: MachineProfile, machine: Machine, files: CaptureKernel) -> LoadPlan:
    """Return the image that ``kexec_file_load`` builds (``image_load()`` and ``load_other_segments()`` of arm64).

    It has no purgatory: the kernel itself is the entry point, and gets the device tree's address.

    :param machine: the machine as the kernel knows it
    :raise CannotTellError: the image does not fit into the reserved region
    """
    region = Region(profile.reserved)
    header = expected_elfcorehdr(machine, Loader.KERNEL)
    headers = header.to_bytes(machine.architecture.kernel_padding)
    kernel_at = region.place_low(pages(files.kernel_memsz), KERNEL_ALIGNMENT)
    header_at = region.place_high(len(headers), _ELFCOREHDR_ALIGNMENT)
    initrd_at = region.place_low(len(files.initrd))
    chosen = [
        (BOOTED_FROM_KEXEC, b""),
        (USABLE_MEMORY, cells(profile.reserved.start, profile.reserved.size)),
        (ELFCOREHDR, cells(header_at, len(headers))),
        *_initrd(initrd_at, files),
        ("bootargs", files.append.encode() + b"\0"),
    ]
    reserved = Range(initrd_at, initrd_at + len(files.initrd)), Range(header_at, header_at + len(headers))
    tree = build_tree(chosen, reserved)
    tree_at = region.place_high(len(tree), _TREE_ALIGNMENT)
    segments = (
        segment(kernel_at, files.kernel, files.kernel_memsz),
        segment(header_at, headers),
        segment(initrd_at, files.initrd),
        segment(tree_at, tree),
    )
    return LoadPlan(kernel_at, segments, header, tree_at)


def _initrd(initrd_at: int, files: CaptureKernel) -> list[Property]:
    return [(INITRD_END, cells(initrd_at + len(files.initrd))), (INITRD_START, cells(initrd_at))]
