# SPDX-License-Identifier: MIT
"""A kernel with a loaded crash image, as files: kexec_load writes into them, so that an update runs on any machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Callable

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import E820_COUNT, E820_ENTRY, E820_RAM, E820_TABLE, RAMDISK, e820_table
from crash_hotplug.core.decision import Report, Wants
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.image import KIMAGE_BYTES_NEEDED, CrashImage, Segment
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import Say, say_nothing
from crash_hotplug.core.update import update
from crash_hotplug.core.verdict import assess
from crash_hotplug.linux.crash_image import find_crash_image
from crash_hotplug.linux.loading.live_machine import LiveMachine, run_patiently
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.test_image import kimage_bytes
from tests.linux.fake_kcore import DIRECT_MAP, RAM_HEADER_AT, TEXT_OFFSET, TEXT_VIRT, write_kcore
from tests.trees import tree

POINTER_VIRT = TEXT_VIRT + 0x2000
POINTER_OFFSET = TEXT_OFFSET + POINTER_VIRT - TEXT_VIRT
"""Of the pointer in the file."""
KIMAGE_PHYS = 0x200_0000
RESERVED_START, RESERVED_END = 0x2E00_0000, 0x3A00_0000
CONTROL_PAGES = 8
"""As 6.1 and 6.12 take with 1 GiB of RAM."""
ENTRY = 0x39F5_4730
PURGATORY, KERNEL, INITRD, BACKUP = 0x39F5_4000, 0x3680_0000, 0x3670_0000, 0x39F6_1000
ZERO_PAGE, HEADER = 0x39F4_E000, 0x39F5_D000
SEGMENTS = (
    Segment(RESERVED_START, 0x1000, 0x30),
    Segment(INITRD, 0x2000, 0x1F00),
    Segment(KERNEL, 0x8000, 0x7000),
    Segment(ZERO_PAGE, 0x6000, 0x5099),
    Segment(PURGATORY, 0x9000, 0x70E0),
    Segment(HEADER, 0x4000, 0x800),
    Segment(BACKUP, 0x9F000, 0x9EC00),
)
"""Places and sizes as kexec-tools chose them for the capture 6.1-c; kernel and initrd are small here."""
TABLE_AT, DIGEST_AT = 0x1000, 0x1120
_RAM_OFFSET = 0x100_0000


def with_direct_map(header: bytes) -> bytes:
    """Return a captured header with the direct-map addresses of the fake kcore."""
    parsed = parse_elfcorehdr(header)
    moved = {p: p._replace(p_vaddr=p.p_paddr + DIRECT_MAP) for p in parsed.ram_headers}
    entries = tuple(moved.get(p, p) for p in parsed.program_headers)
    return parsed._replace(program_headers=entries).to_bytes(1024)


def keep_ram_of_segments(boot_params: bytearray) -> None:
    """Let the capture kernel have only the RAM of the reserved region that its segments take."""
    taken = RangeList(segment.range for segment in SEGMENTS if segment.phys not in (HEADER, BACKUP))
    other = [(r, kind) for r, kind in e820_table(bytes(boot_params)) if not RESERVED_START <= r.start < RESERVED_END]
    table = [*other, *((r, E820_RAM) for r in taken)]
    boot_params[E820_COUNT] = len(table)
    for number, (r, kind) in enumerate(table):
        E820_ENTRY.pack_into(boot_params, E820_TABLE + number * E820_ENTRY.size, r.start, r.size, kind)


class FakeKexec:
    """The tree of a machine whose /proc/kcore is a file that can be written."""

    def __init__(
        self,
        path: Path,
        state: int = 1,
        header_in_digest: bool = True,
        has_free_place: bool = True,
        more_ram: Sequence[Range] = (),
    ) -> None:
        """Copy a capture's tree and load an image into it.

        :param has_free_place: whether the capture kernel's memory map leaves a place for a larger header
        :param more_ram: physical ranges that have a program header in /proc/kcore, and no contents
        """
        self.root = path / "machine"
        self._ram_offset = _RAM_OFFSET
        shutil.copytree(tree("6.1-c", state), self.root)
        saved = self.root / "crash-image"
        self.header = with_direct_map((saved / "elfcorehdr").read_bytes())
        boot_params = bytearray((saved / "boot_params").read_bytes())
        struct.pack_into("<II", boot_params, RAMDISK, INITRD, 0x1F00)
        if not has_free_place:
            keep_ram_of_segments(boot_params)
        zero_page = bytes(boot_params).ljust(0x5000, b"\0") + (saved / "cmdline").read_bytes()
        self._kcore = self.root / "proc" / "kcore"
        (self.root / "proc" / "kallsyms").write_text(
            (self.root / "proc" / "kallsyms").read_text() + f"{POINTER_VIRT:016x} B kexec_crash_image\n"
        )
        physical = {
            RESERVED_START: b"\x01" * 0x30,
            INITRD: b"initrd" * 1000,
            KERNEL: b"kernel" * 4000,
            ZERO_PAGE: zero_page,
            HEADER: self.header,
        }
        pointer = (DIRECT_MAP + KIMAGE_PHYS).to_bytes(8, "little")
        write_kcore(self._kcore, physical, {POINTER_VIRT: pointer}, more_ram)
        self.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS))
        self.write(PURGATORY, self.purgatory(header_in_digest))
        self.loads: list[tuple[NewSegment, ...]] = []
        self.flags: list[int] = []
        self.sysroot = Sysroot(str(self.root))
        self.before_load: Callable[[], None] = lambda: None
        """Called right before a kexec_load changes anything; acts as another process, or raises the kernel's error."""
        self.after_load: Callable[[], None] = lambda: None
        """Called when a kexec_load is over."""
        self.locks: Callable[[], AbstractContextManager[None]] = nullcontext

    def machine(self, hardware: str = "x86_64") -> LiveMachine:
        """Return this machine as an update sees it."""
        return LiveMachine(self.sysroot, self.kexec_load, self._take_locks, hardware)

    def _take_locks(self) -> AbstractContextManager[None]:
        return self.locks()

    def update(self, wants: Wants = Wants(), say: Say = say_nothing) -> Report:
        """Update in place."""
        return run_patiently(update(self.machine(), wants, say), 0.2)

    def image(self) -> CrashImage:
        """Read the loaded image."""
        return find_crash_image(self.sysroot, read_machine(self.sysroot).crashkernel)

    def verdict(self) -> Verdict:
        """Judge the loaded header."""
        return assess(read_machine(self.sysroot), self.image()).comparison.verdict

    def make_possible(self, number: int) -> None:
        """Let the machine have so many possible CPUs, with notes one page apart."""
        present = read_machine(self.sysroot).present_cpus
        size = next(cpu.crash_notes.size for cpu in present if cpu.crash_notes is not None)
        absent = range(len(present), number)
        notes = {str(n): {"phys": hex(0x2000_0000 - n * PAGE), "size": size} for n in absent}
        self.write_file("possible-cpus.json", json.dumps({"crash_notes": notes}))
        self.write_file("sys/devices/system/cpu/possible", f"0-{number - 1}\n")

    def add_ranges(self, number: int) -> None:
        """Add so many separate memory ranges."""
        text = (self.root / "proc" / "iomem").read_text()
        starts = range(1 << 33, (1 << 33) + (number << 28), 1 << 28)
        lines = [f"{at:x}-{at + (1 << 27) - 1:x} : System RAM" for at in starts]
        self.write_file("proc/iomem", text.rstrip("\n") + "\n" + "\n".join(lines) + "\n")

    def kexec_load(self, entry_phys: int, segments: Sequence[NewSegment], flags: int) -> None:
        """Act as kexec_load: drop the image, copy each segment, take control pages, make a struct kimage of the list.

        Control pages are the lowest pages of the reserved region that no listed segment covers, whatever was there.
        """
        self.before_load()
        self.unload()
        self.write_file("sys/kernel/kexec_crash_loaded", "1\n")
        for s in segments:
            self.write(s.phys, s.data.ljust(s.memsz, b"\0"))
        listed = tuple(Segment(s.phys, s.memsz, len(s.data)) for s in segments)
        self.point_to(DIRECT_MAP + KIMAGE_PHYS)
        taken = RangeList(s.range for s in listed)
        free = (page for page in range(RESERVED_START, RESERVED_END, PAGE) if not taken.contains(page))
        control_pages = list(islice(free, CONTROL_PAGES))
        for page in control_pages:
            self.write(page, b"\xcc" * PAGE)
        data = kimage_bytes(entry=entry_phys, segments=listed, control_page=control_pages[-1] + PAGE)
        assert len(data) == KIMAGE_BYTES_NEEDED
        self.write(KIMAGE_PHYS, data)
        self.loads.append(tuple(segments))
        self.flags.append(flags)
        self.after_load()

    def read(self, phys: int, length: int) -> bytes:
        """Return physical memory."""
        with self._kcore.open("rb") as file:
            file.seek(self._ram_offset + phys)
            return file.read(length)

    def flip_bit(self, phys: int) -> None:
        """Break a byte."""
        self.write(phys, bytes([self.read(phys, 1)[0] ^ 1]))

    def unload(self) -> None:
        """Take the image away."""
        self.write_file("sys/kernel/kexec_crash_loaded", "0\n")
        self.point_to(0)

    def shift_kcore(self) -> None:
        """Let the contents of RAM lie one page higher in the file, as one page more of headers does."""
        with self._kcore.open("r+b") as file:
            extents = []
            at = os.lseek(file.fileno(), self._ram_offset, os.SEEK_DATA)
            while at >= 0:
                end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
                file.seek(at)
                extents.append((at, file.read(end - at)))
                try:
                    at = os.lseek(file.fileno(), end, os.SEEK_DATA)
                except OSError:  # ENXIO: no data behind it
                    at = -1
            for at, data in extents:
                file.seek(at)
                file.write(bytes(len(data)))
            for at, data in extents:
                file.seek(at + PAGE)
                file.write(data)
            self._ram_offset += PAGE
            file.seek(RAM_HEADER_AT + 8)  # p_offset
            file.write(self._ram_offset.to_bytes(8, "little"))

    def load_again(self) -> None:
        """Let the image that was unloaded be loaded again."""
        self.write_file("sys/kernel/kexec_crash_loaded", "1\n")
        self.point_to(DIRECT_MAP + KIMAGE_PHYS)

    def point_to(self, kimage_virt: int) -> None:
        """Let ``kexec_crash_image`` be this virtual address."""
        self.write_kernel_data(POINTER_VIRT, kimage_virt.to_bytes(8, "little"))

    def write_kernel_data(self, virt: int, data: bytes) -> None:
        """Write into the kernel's text mapping."""
        self._write_at(TEXT_OFFSET + virt - TEXT_VIRT, data)

    def write_file(self, path: str, text: str) -> None:
        """Write one of the tree's files."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def digest_fits(self) -> bool:
        """Whether purgatory would start the capture kernel."""
        purgatory = self.read(PURGATORY, 0x9000)
        table = struct.iter_unpack("<QQ", purgatory[TABLE_AT : TABLE_AT + 256])
        digest = hashlib.sha256(b"".join(self.read(start, length) for start, length in table))
        return digest.digest() == purgatory[DIGEST_AT : DIGEST_AT + 32]

    def purgatory(self, header_in_digest: bool) -> bytes:
        """Return purgatory with the digest of the image as it is in memory now."""
        named = [s for s in SEGMENTS if s.phys != PURGATORY and (header_in_digest or s.phys != HEADER)]
        table = b"".join(struct.pack("<QQ", s.phys, s.memsz) for s in named).ljust(256, b"\0")
        digest = hashlib.sha256(b"".join(self.read(s.phys, s.memsz) for s in named)).digest()
        data = bytearray(b"\x90" * 0x70E0).ljust(0x9000, b"\0")
        data[TABLE_AT : TABLE_AT + 256] = table
        data[DIGEST_AT : DIGEST_AT + 32] = digest
        data[0x2000:0x2018] = struct.pack("<QQQ", BACKUP, 0x1000, 0x9EC00)
        return bytes(data)

    def write(self, phys: int, data: bytes) -> None:
        """Write physical memory."""
        self._write_at(self._ram_offset + phys, data)

    def _write_at(self, offset: int, data: bytes) -> None:
        with self._kcore.open("r+b") as file:
            file.seek(offset)
            file.write(data)
