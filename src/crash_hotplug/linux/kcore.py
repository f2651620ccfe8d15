# SPDX-License-Identifier: MIT
"""/proc/kcore: the live kernel's memory as an ELF core file, and its headers in a saved tree."""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property

from crash_hotplug.core.arch.architecture import Architecture
from crash_hotplug.core.elf import (
    ELF_HEADER_SIZE,
    PT_LOAD,
    ProgramHeader,
    parse_core_header,
    parse_program_headers,
    program_headers_end,
)
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.machine import KernelText
from crash_hotplug.linux.running_architecture import running_architecture
from crash_hotplug.linux.sysroot import Sysroot

PATH = "/proc/kcore"
_PHNUM = (56, 2)
"""Place and length of e_phnum in the ELF header."""


class Kcore:
    """An open /proc/kcore.  The contents can be read on a live machine only."""

    def __init__(self, sysroot: Sysroot) -> None:
        """Open it and read its headers.

        :raise CannotTellError: it is missing, or lockdown or privilege forbid it
        :raise InputError: it is not an ELF core file of a supported architecture
        """
        opened = sysroot.open(PATH)
        if opened is None:
            raise CannotTellError(f"{sysroot.locate(PATH)} does not exist")
        self._file = opened
        self._moved = False
        try:
            name = sysroot.locate(PATH)
            start = self._read_at(0, ELF_HEADER_SIZE)
            if not start and sysroot.is_live:  # systemd's InaccessiblePaths= puts an empty file there
                raise CannotTellError(f"{name} is empty: a container or a service's sandbox hides it")
            while True:
                header, self.architecture = parse_core_header(start, name)
                self.headers_bytes = self._read_at(0, program_headers_end(header))
                if self.headers_bytes.startswith(start):
                    break
                start = self.headers_bytes[:ELF_HEADER_SIZE]  # a range came or went between the two readings
            if sysroot.is_live:
                self.architecture = self._running(self.architecture)
            self._phnum = start[_PHNUM[0] : sum(_PHNUM)]
            self.program_headers = parse_program_headers(self.headers_bytes, header, name)
            loads = [p for p in self.program_headers if p.p_type == PT_LOAD]
            self._text = set(self.architecture.kernel_text_headers(loads))
            self._ram_headers = [p for p in loads if p.has_physical_address and not self.is_kernel_text(p)]
        except BaseException:
            self._file.close()
            raise

    @staticmethod
    def _running(named: Architecture) -> Architecture:
        running = running_architecture()
        if named.machine_number != running.machine_number:
            raise InputError(f"{PATH} is for {named.name}, this machine is {running.name}")
        return running

    def __enter__(self) -> Kcore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def has_moved(self) -> bool:
        """Whether the file's layout changed since it was opened, so that contents may have been read at wrong offsets.

        ``read_kcore_iter()`` of fs/proc/kcore.c computes where the contents start (behind the headers) at every read,
        and the next open after MEM_ONLINE rebuilds the list of ranges.  With one page more of headers, a descriptor
        that was opened before reads everything 4096 bytes too low.
        """
        return self._moved or self._read_at(0, len(self.headers_bytes)) != self.headers_bytes

    def read_virt(self, virt: int, length: int) -> bytes:
        """Return *length* bytes of kernel memory at a virtual address.

        :raise CannotTellError: no range of kcore has them, or reading fails
        """
        for p in self.program_headers:
            if p.p_type == PT_LOAD and p.p_vaddr <= virt and virt + length <= p.p_vaddr + p.p_memsz:
                return self._read_exactly(p.p_offset + virt - p.p_vaddr, length, f"virtual {virt:#x}")
        raise CannotTellError(f"/proc/kcore has no memory at virtual address {virt:#x}")

    def read_phys(self, phys: int, length: int) -> bytes:
        """Return *length* bytes of RAM at a physical address; errors as :meth:`read_virt`."""
        for p in self._ram_headers:
            if p.p_paddr <= phys and phys + length <= p.p_paddr + p.p_memsz:
                return self._read_exactly(p.p_offset + phys - p.p_paddr, length, f"physical {phys:#x}")
        raise CannotTellError(f"/proc/kcore has no memory at physical address {phys:#x}")

    def page_offset(self) -> int | None:
        """Return virtual minus physical address of RAM; None where the headers do not agree on one.

        Kernels before 4.13 write no physical addresses (464920104bf7).
        """
        offsets = {p.p_vaddr - p.p_paddr for p in self._ram_headers}
        return offsets.pop() if len(offsets) == 1 else None

    def kernel_text_at(self, virt: int) -> KernelText | None:
        """Return the range of the kernel text that holds a virtual address (``_text`` to ``_end``), or None."""
        for p in self.program_headers:
            if self.is_kernel_text(p) and p.has_physical_address and p.p_vaddr <= virt < p.p_vaddr + p.p_memsz:
                return KernelText(p.p_vaddr, p.p_paddr, p.p_memsz)
        return None

    def phys_of_kernel_virt(self, virt: int) -> int | None:
        """Return the physical address of a virtual one in the kernel text mapping, or None."""
        text = self.kernel_text_at(virt)
        return None if text is None else text.phys + virt - text.virt

    def phys_of_direct_map_virt(self, virt: int) -> int | None:
        """Return the physical address of a virtual one in the direct map of RAM, or None."""
        number = bisect_right(self._ram_starts, virt) - 1
        if number < 0:
            return None
        p = self._ram_by_virt[number]
        return p.p_paddr + virt - p.p_vaddr if virt < p.p_vaddr + p.p_memsz else None

    @cached_property
    def _ram_by_virt(self) -> list[ProgramHeader]:
        """The headers of RAM, sorted by virtual address: thousands of CPUs are looked up in thousands of ranges."""
        return sorted(self._ram_headers, key=lambda p: p.p_vaddr)

    @cached_property
    def _ram_starts(self) -> list[int]:
        return [p.p_vaddr for p in self._ram_by_virt]

    def is_kernel_text(self, p: ProgramHeader) -> bool:
        """Whether the program header lies where the kernel (or its modules) is linked."""
        return p in self._text

    def _read_exactly(self, offset: int, length: int, place: str) -> bytes:
        data = self._read_at(offset, length)
        if len(data) < length:
            raise CannotTellError(f"/proc/kcore does not give the memory at {place} address")
        # Where a DIMM came and went meanwhile, the layout is again the first one when has_moved() compares all headers.
        # One read(2) sees one layout (it holds kclist_lock), so their number is looked at after each.
        if self._read_at(*_PHNUM) != self._phnum:
            self._moved = True
            raise CannotTellError("memory came or went while /proc/kcore was read")
        return data

    def _read_at(self, offset: int, length: int) -> bytes:
        parts = []
        try:
            self._file.seek(offset)
            while length > 0:
                part = self._file.read(length)
                if not part:
                    break
                parts.append(part)
                length -= len(part)
        except (OSError, OverflowError, ValueError) as error:
            raise CannotTellError(f"/proc/kcore cannot be read at {offset:#x}: {error}") from error
        return b"".join(parts)
