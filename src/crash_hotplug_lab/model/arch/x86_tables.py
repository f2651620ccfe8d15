# SPDX-License-Identifier: MIT
"""The tables of a crashed kernel that dump tools read: page tables, mem_section, the release, vmcoreinfo.

``makedumpfile`` walks the kernel's own page tables and its ``mem_section`` table before it saves a page.  This module
writes the minimum into the physical range of the model's kernel image: page tables for direct map and kernel text, one
``struct mem_section`` per 128 MiB section of RAM, ``init_uts_ns``.  All sections share one memmap of zeros:
makedumpfile takes a ``struct page`` of zeros for a page in use, so it leaves no page out.

Offsets and sizes are those in the vmcoreinfo of Debian's 6.1 kernel (tests/captures/6.1-c/vmcore.head).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.machine import KernelText
from crash_hotplug.core.ranges import RangeList

START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""``__START_KERNEL_map``: virtual address at which physical ``phys_base`` is mapped."""
SECTION_BITS = 27
_SECTIONS_PER_ROOT = 256
_MEM_SECTION_SIZE = 16
_ROOTS = 2048
_SECTION_PRESENT_WITH_MEM_MAP = 3
_STRUCT_PAGE_SIZE = 64
_PRESENT_TABLE = 0x63
_PRESENT_LARGE = 0xE3
_UTSNAME_FIELD = 65

# Offsets in the kernel image, which is 40 MiB long.
_PGD = 0x1A1_0000
_DIRECT_MAP_PUD = 0x1A1_1000
_KERNEL_PUD = 0x1A1_2000
_KERNEL_PMD = 0x1A1_3000
_ROOT_ARRAY = 0x1A2_0000
_ROOT_PAGES = 0x1A3_0000
_UTS_NAMESPACE = 0x1BF_9B60
_NODE_ONLINE_MAP = 0x1C3_B3C0
_ZERO_MEMMAP = 0x200_0000


@dataclass(frozen=True)
class KernelMemory:
    """The tables of the model's kernel."""

    text: KernelText
    page_offset: int
    """Virtual minus physical address of RAM; a multiple of 1 GiB."""
    release: str

    def contents(self) -> Iterator[tuple[int, bytes]]:
        """Yield (physical address, bytes) of the tables that never change after boot."""
        base = self.text.phys
        direct_index = (self.page_offset >> 39) & 511
        yield base + _PGD, _table({direct_index: base + _DIRECT_MAP_PUD, 511: base + _KERNEL_PUD})
        first = (self.page_offset >> 30) & 511
        gigabytes = {first + n: n << 30 for n in range(512 - first)}
        yield base + _DIRECT_MAP_PUD, _table(gigabytes, _PRESENT_LARGE)
        yield base + _KERNEL_PUD, _table({(START_KERNEL_MAP >> 30) & 511: base + _KERNEL_PMD})
        first = (self.text.virt >> 21) & 511
        large_pages = {first + n: self.text.phys + (n << 21) for n in range(-(-self.text.size >> 21))}
        yield base + _KERNEL_PMD, _table(large_pages, _PRESENT_LARGE)
        names = (b"Linux", b"model", self.release.encode(), b"#1 SMP crash-hotplug", b"x86_64", b"(none)")
        yield base + _UTS_NAMESPACE, b"".join(name[: _UTSNAME_FIELD - 1].ljust(_UTSNAME_FIELD, b"\0") for name in names)

    def section_table(self, ram: RangeList) -> Iterator[tuple[int, bytes]]:
        """Yield (physical address, bytes) of ``mem_section`` for the current physical RAM."""
        sections = {n for r in ram for n in range(r.start >> SECTION_BITS, (r.end - 1 >> SECTION_BITS) + 1)}
        roots: dict[int, bytearray] = {}
        for section in sections:
            root, index = divmod(section, _SECTIONS_PER_ROOT)
            page = roots.setdefault(root, bytearray(PAGE))
            memmap_virt = self.text.phys + _ZERO_MEMMAP + self.page_offset
            # The kernel stores the memmap less the section's first page number, so that a lookup is one addition.
            coded = memmap_virt - (section << (SECTION_BITS - 12)) * _STRUCT_PAGE_SIZE | _SECTION_PRESENT_WITH_MEM_MAP
            struct.pack_into("<Q", page, index * _MEM_SECTION_SIZE, coded & (1 << 64) - 1)
        pointers = bytearray(_ROOTS * 8)
        for place, (root, page) in enumerate(sorted(roots.items())):
            phys = self.text.phys + _ROOT_PAGES + place * PAGE
            struct.pack_into("<Q", pointers, root * 8, phys + self.page_offset)
            yield phys, bytes(page)
        yield self.text.phys + _ROOT_ARRAY, bytes(pointers)

    def vmcoreinfo(self, panic_time: int) -> bytes:
        """Return the text of the VMCOREINFO note with the symbols and offsets that makedumpfile needs."""
        phys_base = self.text.phys - (self.text.virt - START_KERNEL_MAP)
        symbols = {
            "init_uts_ns": self.text.virt + _UTS_NAMESPACE,
            "node_online_map": self.text.virt + _NODE_ONLINE_MAP,
            "swapper_pg_dir": self.text.virt + _PGD,
            "_stext": self.text.virt,
            "mem_section": self.text.phys + _ROOT_ARRAY + self.page_offset,
            "init_top_pgt": self.text.virt + _PGD,
        }
        lines = [f"OSRELEASE={self.release}", "PAGESIZE=4096"]
        lines += [f"SYMBOL({name})={virt:x}" for name, virt in symbols.items()]
        lines += _LAYOUT
        lines += [f"NUMBER(phys_base)={phys_base}", f"KERNELOFFSET={self.text.virt - 0xFFFF_FFFF_8100_0000:x}"]
        return "\n".join([*lines, f"CRASHTIME={panic_time}", ""]).encode()


def _table(entries: dict[int, int], flags: int = _PRESENT_TABLE) -> bytes:
    """Return a page table of 512 entries; *entries* maps indices to physical addresses."""
    page = bytearray(PAGE)
    for index, phys in entries.items():
        struct.pack_into("<Q", page, index * 8, phys | flags)
    return bytes(page)


_LAYOUT = (
    "OFFSET(uts_namespace.name)=0",
    f"LENGTH(mem_section)={_ROOTS}",
    f"SIZE(mem_section)={_MEM_SECTION_SIZE}",
    "OFFSET(mem_section.section_mem_map)=0",
    f"NUMBER(SECTION_SIZE_BITS)={SECTION_BITS}",
    "NUMBER(MAX_PHYSMEM_BITS)=46",
    f"SIZE(page)={_STRUCT_PAGE_SIZE}",
    "SIZE(list_head)=16",
    "SIZE(nodemask_t)=128",
    "OFFSET(page.flags)=0",
    "OFFSET(page._refcount)=52",
    "OFFSET(page.mapping)=24",
    "OFFSET(page.lru)=8",
    "OFFSET(page._mapcount)=48",
    "OFFSET(page.private)=40",
    "OFFSET(page.compound_dtor)=16",
    "OFFSET(page.compound_order)=17",
    "OFFSET(page.compound_head)=8",
    "OFFSET(list_head.next)=0",
    "OFFSET(list_head.prev)=8",
    "NUMBER(NR_FREE_PAGES)=0",
    "NUMBER(PG_lru)=4",
    "NUMBER(PG_private)=13",
    "NUMBER(PG_swapcache)=10",
    "NUMBER(PG_swapbacked)=19",
    "NUMBER(PG_slab)=9",
    "NUMBER(PG_head_mask)=65536",
    "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)=-129",
    "NUMBER(HUGETLB_PAGE_DTOR)=2",
    "NUMBER(PAGE_OFFLINE_MAPCOUNT_VALUE)=-257",
    "NUMBER(pgtable_l5_enabled)=0",
    "NUMBER(KERNEL_IMAGE_SIZE)=1073741824",
    "NUMBER(sme_mask)=0",
)
