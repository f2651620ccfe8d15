# SPDX-License-Identifier: MIT
"""x86_64."""

from __future__ import annotations

from crash_hotplug.core.arch.architecture import Architecture, KernelFile
from crash_hotplug.core.arch.boot_params import ZeroPage, check_bzimage, find_zero_page, init_size, why_no_file_load
from crash_hotplug.core.ranges import Range, RangeList

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from crash_hotplug.core.elf import ProgramHeader

_KERNEL_TEXT_VIRT = Range(0xFFFF_FFFF_8000_0000, 1 << 64)
"""``__START_KERNEL_map`` up to the end of the address space (Documentation/arch/x86/x86_64/mm.rst)."""
_CONTROL_PAGES_BESIDES_MAP = 2 + 1 + 1 + 4 + 4 + 16
"""Control code, its alignment to its own size, top-level table, page tables of the trampoline, levels above the
identity map, and sixteen for firmware tables (ACPI, EFI) that are mapped besides RAM."""


def _kernel_text_headers(loads: Sequence[ProgramHeader]) -> Sequence[ProgramHeader]:
    """Return the PT_LOADs at the virtual addresses where the kernel, or a module, is linked."""
    return [p for p in loads if _KERNEL_TEXT_VIRT.start <= p.p_vaddr < _KERNEL_TEXT_VIRT.end]


def _control_pages(ram: RangeList) -> int:
    """Return the most control pages for a crash image.

    ``init_pgtable()`` of arch/x86/kernel/machine_kexec_64.c maps all RAM: without 1 GiB pages that is one page per
    started GiB and one per started 512 GiB.
    """
    top = ram[-1].end if ram else 0
    return _CONTROL_PAGES_BESIDES_MAP + -(-top // (1 << 30)) + -(-top // (1 << 39))


def _saved_zero_page(read: Callable[[str], bytes | None], address: Callable[[str], int | None]) -> ZeroPage:
    cmdline = read("cmdline")
    return ZeroPage(
        read("boot_params"),
        address("boot_params"),
        None if cmdline is None else cmdline.decode("ascii", "replace").strip("\0\n"),
        address("cmdline"),
    )


def _read_bzimage(head: bytes, size: int, name: str) -> KernelFile:
    check_bzimage(head, size, name)
    return KernelFile(init_size(head), why_no_file_load(head))


X86_64 = Architecture(
    name="x86_64",
    machine_number=62,
    # elf_header_exclude_ranges() in arch/x86/kernel/crash.c: the low 1M is always reserved by the capture kernel.
    excluded_low_memory=Range(0, 1 << 20),
    # BACKUP_SRC_START and BACKUP_SRC_END of kexec-tools: purgatory copies the RAM found there elsewhere.
    backup_region_source=Range(0, 640 << 10),
    maps_kernel_text=True,
    kernel_padding=4096,
    kexec_load_number=246,
    kexec_file_load_number=320,
    kernel_text_headers=_kernel_text_headers,
    control_pages=_control_pages,
    find_boot_description=find_zero_page,
    saved_boot_description=_saved_zero_page,
    # Every distribution's kernel has CONFIG_KALLSYMS_ALL.
    variable_read_by=lambda _code, _virt: None,
    updated_by_kernel_since="6.6",
    describes_offline_blocks=True,
    reads_gone_memory=True,
    unmaps_image_before=None,
    reservation_advice="rules of thumb for x86_64: kdump-utils reserves 256 MiB for 2 to 64 GiB of RAM and 512 MiB "
    "above, kdump-tools 128 MiB (Debian 12)",
    read_kernel_file=_read_bzimage,
    movable_kernel=None,
)
