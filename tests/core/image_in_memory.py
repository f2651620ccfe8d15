# SPDX-License-Identifier: MIT
"""A machine with a loaded crash image, in memory: physical bytes, a kexec_load that takes control pages, no files."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import (
    CMD_LINE_PTR,
    CMDLINE_SIZE,
    E820_COUNT,
    E820_ENTRY,
    E820_RAM,
    E820_TABLE,
    MAGIC,
    SETUP_MAGIC,
    ZeroPage,
)
from crash_hotplug.core.decision import Report, Wants
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import Say, Steps, run, say_nothing
from crash_hotplug.core.update import update
from crash_hotplug.core.verdict import assess
from tests.machines import GIB, MIB, machine

RESERVED = Range(512 * MIB, 768 * MIB)
SMALL, KERNEL, INITRD, ZERO_PAGE, PURGATORY, HEADER = (
    RESERVED.start, 0x2800_0000, 0x2900_0000, 0x2F00_0000, 0x2F10_0000, 0x2F20_0000,
)  # fmt: skip
ENTRY = PURGATORY + 0x730
COMMAND_LINE = ZERO_PAGE + 0x1000
SEGMENTS = (
    Segment(SMALL, PAGE, 0x30),
    Segment(KERNEL, 0x4_8000, 0x4_8000),
    Segment(INITRD, 0x2000, 0x1F00),
    Segment(ZERO_PAGE, 0x3000, 0x2800),
    Segment(PURGATORY, 0x3000, 0x2000),
    Segment(HEADER, PAGE, PAGE),
)
"""Without a backup region, as the kernel's own loader makes an image."""
TABLE_AT, DIGEST_AT = 0x400, 0x600
CONTROL_PAGES = 8
"""As many as 6.1 and 6.12 take with 1 GiB of RAM."""
MACHINE = machine()
GROWN = machine(ram=(*MACHINE.ram, (4096 * MIB, 4224 * MIB)))
"""The same with one more range of RAM, which the loaded header lacks."""
MANY = machine(ram=(*MACHINE.ram, *((at * GIB, at * GIB + MIB) for at in range(4, 104))))
"""So many ranges that the header has to move."""


def digest(memory: Memory, regions: Iterable[tuple[int, int]]) -> bytes:
    """Return the SHA-256 over (physical start, length) regions."""
    return hashlib.sha256(b"".join(memory.read(start, length) for start, length in regions)).digest()


class Memory:
    """Physical memory: zeros where nothing was written."""

    def __init__(self) -> None:
        """Begin with zeros."""
        self._pages: dict[int, bytearray] = {}

    def read(self, phys: int, length: int) -> bytes:
        """Return bytes at a physical address."""
        first, last = phys // PAGE, (phys + length + PAGE - 1) // PAGE
        data = b"".join(bytes(self._pages.get(number, bytes(PAGE))) for number in range(first, last))
        return data[phys % PAGE : phys % PAGE + length]

    def write(self, phys: int, data: bytes) -> None:
        """Write bytes at a physical address."""
        for at in range(phys // PAGE, (phys + len(data) - 1) // PAGE + 1):
            page = self._pages.setdefault(at, bytearray(PAGE))
            start, end = max(phys, at * PAGE), min(phys + len(data), (at + 1) * PAGE)
            page[start - at * PAGE : end - at * PAGE] = data[start - phys : end - phys]

    def flip(self, phys: int) -> None:
        """Change one bit."""
        self.write(phys, bytes([self.read(phys, 1)[0] ^ 1]))


def boot_params(e820: Sequence[tuple[Range, int]], longest_cmdline: int = 2047) -> bytes:
    """Return a zero page whose command line is at :data:`COMMAND_LINE`."""
    page = bytearray(PAGE)
    page[MAGIC : MAGIC + 4] = SETUP_MAGIC
    struct.pack_into("<I", page, CMD_LINE_PTR, COMMAND_LINE)
    struct.pack_into("<I", page, CMDLINE_SIZE, longest_cmdline)
    page[E820_COUNT] = len(e820)
    for number, (part, kind) in enumerate(e820):
        E820_ENTRY.pack_into(page, E820_TABLE + number * E820_ENTRY.size, part.start, part.size, kind)
    return bytes(page)


def zero_page(image: CrashImage) -> ZeroPage:
    """Return the zero page of an image that has one."""
    assert isinstance(image.boot, ZeroPage)
    return image.boot


def with_zero_page(image: CrashImage, **changed: object) -> CrashImage:
    """Return an image with other fields of its zero page."""
    return image._replace(boot=zero_page(image)._replace(**changed))  # type: ignore[arg-type]


def changed_image(image: CrashImage, **changed: object) -> CrashImage:
    """Return an image with other fields, its own or those of its zero page."""
    own = changed.keys() <= set(CrashImage._fields)
    return image._replace(**changed) if own else with_zero_page(image, **changed)  # type: ignore[arg-type]


class FakeMachine:
    """A machine with an image loaded by the kernel's loader; implements CrashMachine and, by itself, Observation."""

    control_pages = CONTROL_PAGES
    reserved = RESERVED
    """Where the kernel takes control pages."""

    def __init__(
        self,
        header_in_digest: bool = True,
        cmdline: str = f"quiet elfcorehdr={HEADER:#x}",
        segments: Sequence[Segment] = SEGMENTS,
    ) -> None:
        """Load the image.

        :param header_in_digest: whether purgatory's digest covers the elfcorehdr
        """
        self.memory = Memory()
        self.now: Machine = MACHINE
        header = expected_elfcorehdr(MACHINE, Loader.KERNEL)
        ram = [Range(RESERVED.start, HEADER), Range(HEADER + PAGE, RESERVED.end)]
        self.memory.write(SMALL, b"\x01" * 0x30)
        self.memory.write(KERNEL, bytes(range(1, 251)) * (0x4_8000 // 250))
        self.memory.write(INITRD, b"initrd" * 1000)
        self.memory.write(ZERO_PAGE, boot_params([(part, E820_RAM) for part in ram]))
        self.memory.write(COMMAND_LINE, cmdline.encode())
        self.memory.write(HEADER, header.to_bytes(PAGE))
        named = [(s.phys, s.memsz) for s in segments if s.phys != PURGATORY and (header_in_digest or s.phys != HEADER)]
        table = b"".join(struct.pack("<QQ", *region) for region in named)
        self.memory.write(PURGATORY, b"\x90" * 0x300)
        self.memory.write(PURGATORY + TABLE_AT, table)
        self.memory.write(PURGATORY + DIGEST_AT, digest(self.memory, named))
        self.kimage: Kimage | None = Kimage(ENTRY, tuple(segments), RESERVED.start + 9 * PAGE)
        self.updated_by_kernel = False
        self.serial = 0
        self.locked = False
        self.refused: str | None = None
        self.taken_for = 0
        """How often the lock is still found taken."""
        self.marks: list[str | None] = []
        self.unloaded_marks: list[str | None] = []
        self.torn: str | None = None
        self.calls: list[tuple[int, tuple[NewSegment, ...], bool]] = []
        self.before_load: Callable[[], None] = lambda: None
        """Called right before a kexec_load changes anything; may raise the kernel's error."""
        self.after_load: Callable[[], None] = lambda: None
        self.on_confirm: Callable[[], None] = lambda: None
        self.opened = self.closed = 0
        self.control_page: int | None = None
        """The control page that the next image shows instead of the right one."""

    # CrashMachine

    def why_refused(self) -> str | None:
        """Return :attr:`refused`."""
        return self.refused

    def try_lock(self) -> bool:
        """Take the lock."""
        self.taken_for -= 1
        self.locked = self.taken_for < 0
        return self.locked

    def why_locked(self) -> str:
        """Name the holder."""
        return "kdumpctl has the lock"

    def unlock(self) -> None:
        """Give the lock back."""
        self.locked = False

    def image_loaded(self) -> bool | None:
        """Whether an image is loaded."""
        return self.kimage is not None

    def observe(self) -> FakeMachine:
        """Begin an observation."""
        self.opened += 1
        return self

    def kexec_load(self, entry_phys: int, segments: Sequence[NewSegment], updated_by_kernel: bool) -> Steps[None]:
        """Copy each segment and fill the lowest pages that none of them covers with control pages."""
        yield from ()
        self.before_load()
        if not segments:
            self.kimage = None
            self.after_load()
            return
        for s in segments:
            self.memory.write(s.phys, s.data.ljust(s.memsz, b"\0"))
        listed = tuple(Segment(s.phys, s.memsz, len(s.data)) for s in segments)
        taken = RangeList(s.range for s in listed)
        free = (page for page in range(self.reserved.start, self.reserved.end, PAGE) if not taken.contains(page))
        control_pages = list(islice(free, self.control_pages))
        for page in control_pages:
            self.memory.write(page, b"\xcc" * PAGE)
        control_page = control_pages[-1] + PAGE if self.control_page is None else self.control_page
        self.kimage = Kimage(entry_phys, listed, control_page)
        self.updated_by_kernel = updated_by_kernel
        self.serial += 1
        self.calls.append((entry_phys, tuple(segments), updated_by_kernel))
        self.after_load()

    # Observation

    def identity(self) -> bytes:
        """Return a number for each load."""
        return b"" if self.kimage is None else b"image %d" % self.serial

    def image(self) -> CrashImage:
        """Read the loaded image."""
        if self.kimage is None:
            raise CannotTellError("no image")
        image = read_loaded_image(
            self.now.architecture, self.kimage, self.now.crashkernel, None, self.read_phys, self.updated_by_kernel
        )
        return image._replace(torn=self.torn)

    def machine(self) -> Machine:
        """Return what a header has to describe."""
        return self.now

    def mark_torn(self, sentence: str | None) -> None:
        """Remember it."""
        self.marks.append(sentence)
        self.torn = sentence

    def mark_unloaded(self, sentence: str | None) -> None:
        """Remember it."""
        self.unloaded_marks.append(sentence)

    def read_phys(self, phys: int, length: int) -> bytes:
        """Read physical memory."""
        return self.memory.read(phys, length)

    def confirm(self) -> None:
        """Check the observation."""
        self.on_confirm()

    def close(self) -> None:
        """End the observation."""
        self.closed += 1

    # what tests ask

    def digest_fits(self) -> bool:
        """Whether purgatory would start the capture kernel."""
        table = struct.iter_unpack("<QQ", self.memory.read(PURGATORY + TABLE_AT, 256))
        return digest(self.memory, table) == self.memory.read(PURGATORY + DIGEST_AT, 32)


def patiently(fake: FakeMachine, wants: Wants = Wants(), say: Say = say_nothing, waits: int = 0) -> Report:
    """Update; wait so often, and no longer."""
    left = iter([True] * waits)
    report = run(update(fake, wants, say), lambda: next(left, False))
    assert not fake.locked
    assert fake.opened == fake.closed
    return report


def is_accurate(fake: FakeMachine) -> bool:
    return assess(fake.now, fake.image()).comparison.verdict is Verdict.ACCURATE and fake.digest_fits()
