# SPDX-License-Identifier: MIT
"""arm64."""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import Architecture, KernelFile, MovableKernel
from crash_hotplug.core.arch.device_tree import DeviceTree, find_device_tree
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.ranges import Range, RangeList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crash_hotplug.core.elf import ProgramHeader
    from crash_hotplug.core.image import Kimage

_ADRP, _ADRP_MASK = 0x9000_0000, 0x9F00_0000
_ADD, _ADD_MASK = 0x9100_0000, 0xFFC0_0000
_LDR, _LDR_MASK = 0xF940_0000, 0xFFC0_0000
_RET = 0xD65F_03C0
_IMAGE_HEADER, _IMAGE_MAGIC_AT, _IMAGE_MAGIC = 64, 56, b"ARM\x64"
_START = b"".join(
    word.to_bytes(4, "little")
    for word in (
        0x5800_00C4,  # ldr x4, behind this code: the kernel
        0x5800_00E0,  # ldr x0, behind that: the device tree
        0xAA1F_03E1,  # mov x1, xzr
        0xAA1F_03E2,  # mov x2, xzr
        0xAA1F_03E3,  # mov x3, xzr
        0xD61F_0080,  # br x4
    )
)


def _kernel_text_headers(loads: Sequence[ProgramHeader]) -> Sequence[ProgramHeader]:
    """Return the PT_LOADs at the front whose virtual addresses are not those of RAM, which stands at the end.

    No fixed virtual range tells them apart: the end of the direct map depends on page size and VA_BITS.
    """
    known = [p for p in loads if p.has_physical_address]
    offsets = [p.p_vaddr - p.p_paddr for p in known]
    if not known or offsets[0] == offsets[-1]:
        return []
    return [p for p, offset in zip(known, offsets) if offset == offsets[0]]


def _control_pages(_ram: RangeList) -> int:
    """Return the most control pages for a crash image: one for code, one for a copy of vmcoreinfo, two to spare.

    A crash image has no page tables of its own (``machine_kexec_post_load()`` of arch/arm64/kernel/machine_kexec.c).
    """
    return 4


def variable_read_by(code: bytes, virt: int) -> int | None:
    """Return the virtual address of the variable that a small function loads 64 bits of; None where it loads none.

    Kernels without CONFIG_KALLSYMS_ALL do not show ``kexec_crash_image``, but they show ``kexec_crash_loaded()``, which
    returns whether it is set: ADRP, perhaps ADD, and LDR through the same register.

    :param code: the first bytes of the function
    :param virt: its virtual address
    """
    pages: dict[int, int] = {}
    for number in range(len(code) // 4):
        word = int.from_bytes(code[4 * number : 4 * number + 4], "little")
        source, target, immediate = word >> 5 & 31, word & 31, word >> 10 & 0xFFF
        if word & _ADRP_MASK == _ADRP:
            pages_away = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            pages_away -= (pages_away & 1 << 20) << 1
            pages[target] = ((virt + 4 * number) >> 12) + pages_away << 12
        elif word & _ADD_MASK == _ADD and source in pages:
            pages[target] = pages[source] + immediate
        elif word & _LDR_MASK == _LDR and source in pages:
            return pages[source] + 8 * immediate & (1 << 64) - 1
        elif word == _RET:
            break
    return None


def _find_kernel(kimage: Kimage, read_phys: Callable[[int, int], bytes]) -> tuple[int, int] | None:
    """Find the kernel by the header of its image (Documentation/arch/arm64/booting.rst)."""
    for segment in kimage.segments:
        head = read_phys(segment.phys, _IMAGE_HEADER)
        if head[_IMAGE_MAGIC_AT : _IMAGE_MAGIC_AT + 4] == _IMAGE_MAGIC:
            return segment.phys, segment.phys + int.from_bytes(head[8:16], "little")  # text_offset
    return None


def _start_code(kernel_phys: int, device_tree_phys: int) -> bytes:
    """Return code that jumps to the kernel as a boot loader does: x0 is the device tree, x1 to x3 are 0."""
    return _START + kernel_phys.to_bytes(8, "little") + device_tree_phys.to_bytes(8, "little")


def _saved_device_tree(read: Callable[[str], bytes | None], address: Callable[[str], int | None]) -> DeviceTree:
    return DeviceTree(read("dtb"), address("dtb"))


def _read_image(head: bytes, size: int, name: str) -> KernelFile:
    """Check an Image, or a compressed one, which kexec-tools unpacks (Documentation/arch/arm64/booting.rst).

    :raise InputError: it is neither, or has less than half of what it takes in memory: an Image has all but its .bss
    """
    for magic, at, kind in ((b"\x1f\x8b", 0, "compressed (gzip)"), (b"zimg", 4, "compressed (EFI zboot)")):
        if head[at : at + len(magic)] == magic:
            return KernelFile(size, f"it is {kind}")
    if head[_IMAGE_MAGIC_AT : _IMAGE_MAGIC_AT + 4] != _IMAGE_MAGIC:
        raise InputError(f"{name} is not an arm64 kernel image")
    whole = int.from_bytes(head[16:24], "little")
    if size < whole // 2:
        raise InputError(f"{name} is truncated: it has {size} bytes, and takes {whole} in memory")
    return KernelFile(whole, None)


ARM64 = Architecture(
    name="aarch64",
    machine_number=183,
    excluded_low_memory=Range(0, 0),
    backup_region_source=Range(0, 0),
    maps_kernel_text=True,
    kernel_padding=4096,
    kexec_load_number=104,
    kexec_file_load_number=294,
    kernel_text_headers=_kernel_text_headers,
    control_pages=_control_pages,
    find_boot_description=find_device_tree,
    saved_boot_description=_saved_device_tree,
    variable_read_by=variable_read_by,
    updated_by_kernel_since=None,
    # As powerpc's handler (849599b702ef), the handler that was posted for arm64 leaves out a block that goes offline.
    describes_offline_blocks=False,
    reads_gone_memory=False,  # synchronous external abort
    # 0d124e96051b ("arm64: kdump : take off the protection on crashkernel memory region") removed
    # arch_kexec_protect_crashkres().
    unmaps_image_before=(6, 4),
    reservation_advice=None,
    read_kernel_file=_read_image,
    movable_kernel=MovableKernel(2 << 20, _find_kernel, _start_code),
)
