# SPDX-License-Identifier: MIT
"""The arm64 model against captured machines: from the same addresses it loads the same image."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import run
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from crash_hotplug_lab.model.arch.arm64 import ARM64
from crash_hotplug_lab.model.arch.arm64_loaders import (
    ELFCOREHDR,
    INITRD_END,
    INITRD_START,
    USABLE_MEMORY,
    sealed_capture_kernel,
)
from crash_hotplug_lab.model.arch.flat_tree import read_tree
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.profile import FirmwareRange, profile_of
from crash_hotplug_lab.model.user_space import Kexec, LoadCall
from tests.trees import arm64_tree

CAPTURES = ("arm64-6.12-c", "arm64-6.12f-s")


def saved(name: str, file: str) -> bytes:
    return (arm64_tree(name, 0) / "crash-image" / file).read_bytes()


def image(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(saved(name, "image.json"))
    return found


def loaded(name: str) -> ModelMachine:
    """Return a model machine with the captured one's addresses, and an image with files of the same sizes."""
    sysroot = Sysroot(str(arm64_tree(name, 0)))
    text = sysroot.read_text("/proc/iomem") or ""
    lines = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) : (reserved|System RAM)$", text, re.M)
    firmware = tuple(FirmwareRange(Range(int(start, 16), int(end, 16) + 1), kind) for start, end, kind in lines)
    notes = tuple(note.phys for note in parse_elfcorehdr(saved(name, "elfcorehdr")).cpu_notes)
    machine = boot(profile_of(ARM64, read_machine(sysroot), notes, firmware))
    sizes = {segment["role"]: segment for segment in image(name)["segments"]}
    files = replace(
        sealed_capture_kernel(),
        initrd=b"." * int(sizes["initrd"]["bufsz"], 16),
        kernel_memsz=int(sizes["kernel"]["memsz"], 16),
    )
    run(Kexec(files, LoadCall.KEXEC_FILE_LOAD if name.endswith("-s") else LoadCall.KEXEC_LOAD).load(machine))
    return machine


@pytest.mark.parametrize("name", CAPTURES)
def test_header_is_the_captured_one_byte_for_byte(name: str) -> None:
    found = loaded(name).loaded_crash_image()
    assert found is not None
    assert found.elfcorehdr.rstrip(b"\0") == saved(name, "elfcorehdr").rstrip(b"\0")


@pytest.mark.parametrize("name", CAPTURES)
def test_segments_and_control_pages_lie_where_the_captured_ones_do(name: str) -> None:
    made, real = loaded(name).crash_image, image(name)
    assert made is not None
    segments = [(hex(s.phys), hex(s.memsz)) for s in made.kimage.segments]
    assert segments == [(s["phys"], s["memsz"]) for s in real["segments"]]
    assert made.kimage.control_page_phys == int(real["control_page"], 16)
    assert made.argument_phys == int(real["dtb_mem"], 16)


@pytest.mark.parametrize("name", CAPTURES)
def test_device_tree_has_the_captured_places(name: str) -> None:
    machine, real = loaded(name), image(name)
    tree = read_tree(machine.memory, int(real["dtb"], 16))
    for key in (ELFCOREHDR, USABLE_MEMORY, INITRD_START, INITRD_END):
        assert (tree.value(key) or b"").hex() == real["chosen"][key]
    assert (tree.value("linux,booted-from-kexec") is not None) is name.endswith("-s")
