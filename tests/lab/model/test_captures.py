# SPDX-License-Identifier: MIT
"""The model against captured machines: from the same addresses it writes the same bytes."""

from __future__ import annotations

from itertools import islice
from typing import cast

import pytest

from crash_hotplug.core.arch.boot_params import ZeroPage, e820_table
from crash_hotplug.core.dump.elf_vmcore import parse_elf_vmcore
from crash_hotplug.core.elf import ProgramHeader
from crash_hotplug.linux.crash_image import read_crash_image
from crash_hotplug.linux.iomem import read_iomem
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug.linux.vmcore_file import VmcoreFile
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.panic import panic
from tests.lab.model.captured import CAPTURES, captured_states
from tests.trees import tree, vmcore_head

SEGMENTS = {
    "6.1-c": (0x2E000000, 0x36A00000, 0x39E2D000, 0x39F4E000, 0x39F54000, 0x39F5D000, 0x39F61000),
    "6.12-ch": (0x33000000, 0x3B4ED000, 0x3B600000, 0x3EE71000, 0x3EE77000, 0x3EE80000, 0x3EF61000),
}
"""Physical addresses of the segments that ``kexec -d`` printed (kexec-segments in the captures)."""


def loaded(name: str, state: int) -> ModelMachine:
    return next(islice(captured_states(name), state, None))


@pytest.mark.parametrize("name", CAPTURES)
@pytest.mark.parametrize("state", range(4))
def test_header_is_the_captured_one_byte_for_byte(name: str, state: int) -> None:
    sysroot = Sysroot(str(tree(name, state)))
    real = read_crash_image(sysroot, read_iomem(sysroot).crashkernel)
    image = loaded(name, state).loaded_crash_image()
    assert image is not None
    assert image.elfcorehdr_phys == real.elfcorehdr_phys
    assert image.elfcorehdr == real.elfcorehdr


@pytest.mark.parametrize("name", CAPTURES)
def test_image_lies_where_the_captured_one_does(name: str) -> None:
    sysroot = Sysroot(str(tree(name, 0)))
    real = read_crash_image(sysroot, read_iomem(sysroot).crashkernel)
    image = loaded(name, 0).loaded_crash_image()
    assert image is not None
    assert cast("ZeroPage", image.boot)[1::2] == cast("ZeroPage", real.boot)[1::2]
    assert image.cmdline is not None
    assert real.cmdline is not None
    assert image.cmdline.strip() == real.cmdline.strip()


@pytest.mark.parametrize("name", CAPTURES)
def test_capture_kernel_gets_the_captured_memory_map(name: str) -> None:
    sysroot = Sysroot(str(tree(name, 0)))
    real = read_crash_image(sysroot, read_iomem(sysroot).crashkernel)
    image = loaded(name, 0).loaded_crash_image()
    assert image is not None
    assert e820_table(cast("ZeroPage", image.boot).page or b"") == e820_table(cast("ZeroPage", real.boot).page or b"")


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_lie_where_kexec_put_them(name: str) -> None:
    machine = loaded(name, 0)
    assert machine.crash_image is not None
    assert tuple(segment.phys for segment in machine.crash_image.kimage.segments) == SEGMENTS[name]


@pytest.mark.parametrize("name", CAPTURES)
def test_vmcore_has_the_layout_that_the_real_capture_kernel_showed(name: str) -> None:
    with VmcoreFile(str(vmcore_head(name))) as source:
        real = parse_elf_vmcore(source)
    came_to = panic(loaded(name, 3))
    assert came_to.vmcore is not None
    model = parse_elf_vmcore(came_to.vmcore)
    # vmcoreinfo is shorter in the model, so file offsets are compared from the first PT_LOAD on.
    assert without_file_start(model.headers.program_headers) == without_file_start(real.headers.program_headers)
    assert model.saved_cpus == real.saved_cpus


def without_file_start(program_headers: tuple[ProgramHeader, ...]) -> list[ProgramHeader]:
    loads = program_headers[1:]
    return [p._replace(p_offset=p.p_offset - loads[0].p_offset) for p in loads]
