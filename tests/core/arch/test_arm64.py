# SPDX-License-Identifier: MIT
"""arm64: its headers, and what is read out of its kernel's code."""

from __future__ import annotations

import json
import struct

import pytest

from crash_hotplug.core.arch.architecture import KERNEL_FILE_HEAD, KernelFile
from crash_hotplug.core.arch.arm64 import ARM64, variable_read_by
from crash_hotplug.core.elf import PF_RWX, PT_LOAD, ProgramHeader
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.image import KNOWN_LAYOUTS, Kimage, Segment, parse_kimage
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.purgatory import digest_regions
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.trees import ARM64_NAMES, arm64_tree

DIRECT_MAP, TEXT = 0xFFFF_0000_0000_0000, 0xFFFF_8000_8000_0000


def load(virt: int, phys: int, size: int = 0x1000) -> ProgramHeader:
    return ProgramHeader(PT_LOAD, PF_RWX, phys, virt, phys, size, size, 0)


RAM = [load(DIRECT_MAP + n * 0x1_0000, 0x4000_0000 + n * 0x1_0000) for n in range(3)]
TEXT_LOAD = load(TEXT, 0x4000_0000)
NOT_RAM = load(TEXT, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("loads", "text"),
    [
        ([TEXT_LOAD, *RAM], [TEXT_LOAD]),
        ([TEXT_LOAD, NOT_RAM, *RAM, NOT_RAM], [TEXT_LOAD]),  # as in /proc/kcore
        ([TEXT_LOAD, load(TEXT + 0x1000, 0x4000_1000), *RAM], [TEXT_LOAD, load(TEXT + 0x1000, 0x4000_1000)]),
        (RAM, []),
        ([*RAM, NOT_RAM], []),
        ([], []),
    ],
)
def test_kernel_text_is_what_stands_before_ram_at_other_addresses(
    loads: list[ProgramHeader], text: list[ProgramHeader]
) -> None:
    assert ARM64.kernel_text_headers(loads) == text


@pytest.mark.parametrize("name", ARM64_NAMES)
def test_variable_is_found_in_the_code_of_kexec_crash_loaded(name: str) -> None:
    saved = arm64_tree(name, 0) / "crash-image"
    code, virt = (saved / "kexec_crash_loaded.code").read_bytes(), int((saved / "code-at").read_text(), 16)
    found = variable_read_by(code, virt)
    assert found is not None
    assert found % 8 == 0
    text = read_machine(Sysroot(str(arm64_tree(name, 0)))).kernel_text
    assert text is not None
    assert text.virt <= found < text.virt + text.size
    assert variable_read_by(code[:4], virt) is None
    assert variable_read_by(bytes(64), virt) is None
    assert variable_read_by((0xD65F03C0).to_bytes(4, "little") + code, virt) is None, "it returned before"


def test_variable_is_at_the_sum_of_page_and_both_offsets() -> None:
    """ADRP x0, one page below; ADD x1, x0, 0x10; LDR x2, [x1, 16]."""
    words = (0x9000_0000 | 3 << 29 | 0x7FFFF << 5, 0x9100_0000 | 0x10 << 10 | 1, 0xF940_0000 | 2 << 10 | 1 << 5 | 2)
    code = b"".join(word.to_bytes(4, "little") for word in words)
    assert variable_read_by(code, 0xFFFF_8000_8000_1008) == 0xFFFF_8000_8000_0020


@pytest.mark.parametrize("text_offset", [0, 0x8_0000])
def test_first_instruction_of_a_kernel_lies_at_its_text_offset(text_offset: int) -> None:
    """Kernels before 5.10 have one of 512 KiB."""
    head = bytes(8) + struct.pack("<Q", text_offset) + bytes(40) + b"ARM\x64" + bytes(4)
    memory = {0x4000_0000: b"\x7fELF".ljust(64, b"\0"), 0x4020_0000: head}
    kimage = Kimage(0x4000_0000, tuple(Segment(phys, 0x1000, 0x1000) for phys in memory))
    assert ARM64.movable_kernel is not None
    found = ARM64.movable_kernel.find(kimage, lambda phys, length: memory[phys][:length])
    assert found == (0x4020_0000, 0x4020_0000 + text_offset)


@pytest.mark.parametrize("name", ARM64_NAMES)
def test_kimage_of_a_capture_is_parsed_by_the_known_layout(name: str) -> None:
    saved = arm64_tree(name, 0)
    image = json.loads((saved / "crash-image" / "image.json").read_text())
    kimage = parse_kimage(
        (saved / "crash-image" / "kimage").read_bytes(), read_machine(Sysroot(str(saved))).crashkernel, KNOWN_LAYOUTS
    )
    assert [(hex(s.phys), hex(s.memsz)) for s in kimage.segments] == [
        (s["phys"], s["memsz"]) for s in image["segments"]
    ]
    assert (hex(kimage.entry_phys), hex(kimage.control_page_phys or 0)) == (image["entry"], image["control_page"])


@pytest.mark.parametrize("name", [name for name in ARM64_NAMES if name.endswith("-c")])
def test_purgatory_of_a_capture_names_every_other_segment(name: str) -> None:
    saved = arm64_tree(name, 0)
    reserved = read_machine(Sysroot(str(saved))).crashkernel
    kimage = parse_kimage((saved / "crash-image" / "kimage").read_bytes(), reserved, KNOWN_LAYOUTS)
    purgatory = next(s for s in kimage.segments if s.phys <= kimage.entry_phys < s.phys + s.memsz)
    regions = digest_regions((saved / "crash-image" / "purgatory").read_bytes(), kimage, reserved)
    assert regions is not None
    assert {s.phys for s in regions} == {s.phys for s in kimage.segments} - {purgatory.phys}


@pytest.mark.parametrize(("name", "loader"), [("arm64-6.12-c", Loader.KEXEC_TOOLS), ("arm64-6.12f-s", Loader.KERNEL)])
def test_header_built_from_nothing_equals_the_loaded_one(name: str, loader: Loader) -> None:
    machine = read_machine(Sysroot(str(arm64_tree(name, 0))))
    loaded = (arm64_tree(name, 0) / "crash-image" / "elfcorehdr").read_bytes()
    built = expected_elfcorehdr(machine, loader)
    assert built.to_bytes(built.architecture.padding(loader)) == loaded


def test_header_built_from_nothing_differs_from_a_broken_one_in_its_faults_only() -> None:
    """kexec-tools on Debian's 6.1 writes a text of 0xffff800009ac0000 bytes, and RAM without PAGE_OFFSET."""
    machine = read_machine(Sysroot(str(arm64_tree("arm64-6.1-c", 0))))
    loaded = parse_elfcorehdr((arm64_tree("arm64-6.1-c", 0) / "crash-image" / "elfcorehdr").read_bytes())
    built = expected_elfcorehdr(machine, Loader.KEXEC_TOOLS)
    assert (built.elf_header, len(built.program_headers)) == (loaded.elf_header, len(loaded.program_headers))
    differing = [
        (p.p_type, [field for field in p._fields if getattr(p, field) != getattr(q, field)])
        for p, q in zip(built.program_headers, loaded.program_headers)
        if p != q
    ]
    text = (PT_LOAD, ["p_offset", "p_vaddr", "p_paddr", "p_filesz", "p_memsz"])
    assert differing == [text, *[(PT_LOAD, ["p_vaddr"])] * 7]


def test_system_calls_have_the_numbers_of_the_generic_table() -> None:
    """include/uapi/asm-generic/unistd.h; arm64 has no other."""
    assert (ARM64.machine_number, ARM64.kexec_load_number, ARM64.kexec_file_load_number) == (183, 104, 294)


def image_head(magic: bytes = b"ARM\x64", at: int = 56, size: int = 0x200_0000) -> bytes:
    head = bytearray(KERNEL_FILE_HEAD)
    head[16:24] = size.to_bytes(8, "little")
    head[at : at + len(magic)] = magic
    return bytes(head)


@pytest.mark.parametrize(
    ("head", "size", "found"),
    [
        (image_head(), 0x1F0_0000, KernelFile(0x200_0000, None)),
        (image_head(b"\x1f\x8b", 0), 0x80_0000, KernelFile(0x80_0000, "it is compressed (gzip)")),
        (image_head(b"zimg", 4), 0x80_0000, KernelFile(0x80_0000, "it is compressed (EFI zboot)")),
    ],
)
def test_kernel_file_says_what_it_takes_and_whether_kexec_file_load_takes_it(
    head: bytes, size: int, found: KernelFile
) -> None:
    assert ARM64.read_kernel_file(head, size, "Image") == found


@pytest.mark.parametrize(
    ("head", "size", "sentence"),
    [
        (image_head(b"HdrS", 0x202), 0x80_0000, "Image is not an arm64 kernel image"),
        (b"", 0, "Image is not an arm64 kernel image"),
        (image_head(), 0xF0_0000, "Image is truncated: it has 15728640 bytes, and takes 33554432 in memory"),
    ],
)
def test_kernel_file_of_another_kind_is_refused(head: bytes, size: int, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ARM64.read_kernel_file(head, size, "Image")
