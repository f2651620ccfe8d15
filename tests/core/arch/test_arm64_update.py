# SPDX-License-Identifier: MIT
"""Updates of an arm64 image in memory: what its capture kernel would start from after each."""

from __future__ import annotations

import struct

import pytest

from crash_hotplug.core.arch.arm64 import ARM64
from crash_hotplug.core.arch.device_tree import DeviceTree
from crash_hotplug.core.decision import Outcome, Report, Wants
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CannotTellError, CrashHotplugError
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.image import CrashImage, Kimage, Segment
from crash_hotplug.core.kept_image import keep_image, put_back
from crash_hotplug.core.loaded_image import read_loaded_image
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import KernelText, Machine
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.steps import run
from crash_hotplug.core.update import update
from crash_hotplug.core.verdict import assess
from tests.core.image_in_memory import RESERVED, FakeMachine, Memory, digest
from tests.machines import GIB, MIB, machine
from tests.trees import arm64_tree

PAGE = 4096
AUTO = Wants(may_unload=True)
KERNEL = Segment(RESERVED.start, 0x60_0000, 0x58_0000)
INITRD = Segment(RESERVED.start + 0x60_0000, 0x5000, 0x4F00)
TREE = Segment(INITRD.range.end, PAGE, 676)
PURGATORY = Segment(TREE.range.end, 0x4000, 0x3558)
HEADER = Segment(RESERVED.end - PAGE, PAGE, 0x400)
ENTRY = PURGATORY.phys + 0x6A0
ENTRY_AT, TREE_AT, TABLE_AT, DIGEST_AT = 0x200, 0x208, 0x3000, 0x3100
CODE = bytes.fromhex("c4000058e0000058e10 31faae20 31faae30 31faa80001fd6".replace(" ", ""))
"""ldr x4, kernel; ldr x0, device tree; mov x1, x2, x3, xzr; br x4, as the assembler writes it."""


def arm64_machine(ram: tuple[tuple[int, int], ...] = ((0, GIB),)) -> Machine:
    """Return an arm64 machine with memory at 0 for the ranges of the made machines."""
    text = KernelText(0xFFFF_8000_8000_0000, 0x1000_0000, 0x1E7_0000)
    made = machine(ram=ram, kernel_text=text, page_offset=0xFFFF_0000_0000_0000)
    return made._replace(architecture=ARM64, kernel_release="6.12.0-test")


NOW = arm64_machine()
GROWN = arm64_machine(((0, GIB), (4 * GIB, 4 * GIB + 512 * MIB)))


def _place(tree: DeviceTree) -> RangeList:
    """Return the place that a tree has for the header."""
    start = tree.elfcorehdr_phys or 0
    return RangeList([(start, start + (tree.elfcorehdr_room(start, None, []) or 0))])


def made_tree(header: Range, reserved: Range) -> bytes:
    """Return a captured device tree for this reserved region."""
    saved = (arm64_tree("arm64-6.12-c", 0) / "crash-image" / "dtb").read_bytes()
    blob = saved.replace(struct.pack(">QQ", 0x6360_0000, 256 << 20), struct.pack(">QQ", reserved.start, reserved.size))
    for captured, made in ((0x6547_0000, INITRD.phys), (0x6557_6096, INITRD.phys + INITRD.bufsz)):
        assert struct.pack(">Q", captured) in blob
        blob = blob.replace(struct.pack(">Q", captured), struct.pack(">Q", made))
    return DeviceTree(blob, 0).with_elfcorehdr_at(blob, 0, header)


class Arm64Machine(FakeMachine):
    """A machine whose image kexec-tools loaded, or arm64's kexec_file_load, which makes no purgatory."""

    control_pages = 2

    def __init__(self, has_purgatory: bool = True, reserved: Range = RESERVED) -> None:
        """Load the image."""
        super().__init__()
        self.memory, self.now = Memory(), NOW._replace(crashkernel=RangeList([reserved]))
        kernel = bytearray(bytes(range(1, 252)) * (KERNEL.bufsz // 251 + 1))[: KERNEL.bufsz]
        kernel[56:60], kernel[8:16] = b"ARM\x64", bytes(8)
        self.kernel = bytes(kernel).ljust(KERNEL.memsz, b"\0")
        self.header = Segment(reserved.end - PAGE, PAGE, 0x400)
        self.memory.write(KERNEL.phys, self.kernel)
        self.memory.write(INITRD.phys, b"initrd" * 3000)
        self.memory.write(TREE.phys, made_tree(Range(self.header.phys, self.header.phys + 0x400), reserved))
        loaded = expected_elfcorehdr(self.now, Loader.KEXEC_TOOLS)
        self.memory.write(self.header.phys, loaded.to_bytes())
        segments = [KERNEL, INITRD, TREE, self.header]
        entry = KERNEL.phys
        if has_purgatory:
            regions = [(s.phys, s.memsz) for s in segments]
            self.memory.write(PURGATORY.phys, b"\x1f\x20\x03\xd5" * 100)
            self.memory.write(PURGATORY.phys + ENTRY_AT, struct.pack("<QQ", KERNEL.phys, TREE.phys))
            self.memory.write(PURGATORY.phys + TABLE_AT, b"".join(struct.pack("<QQ", *region) for region in regions))
            self.memory.write(PURGATORY.phys + DIGEST_AT, digest(self.memory, regions))
            segments.append(PURGATORY)
            entry = ENTRY
        self._seen: Kimage | None = None
        self.kimage: Kimage | None = Kimage(entry, tuple(segments), KERNEL.range.end + 0x1_0000)

    def identity(self) -> bytes:
        """Return a number for each load; the image that was identified can be read after it was unloaded."""
        if self.kimage is not None:
            self._seen = self.kimage
        return super().identity()

    def image(self) -> CrashImage:
        """Read the image that was identified last, loaded or not."""
        kimage = self._seen or self.kimage
        if kimage is None:
            raise CannotTellError("no image")
        return read_loaded_image(self.now.architecture, kimage, self.now.crashkernel, None, self.read_phys)

    def updated(self, wants: Wants = Wants()) -> Report:
        """Update the image."""
        return run(update(self, wants))

    def panic(self) -> bytes | None:
        """Start what is loaded: return the header that the capture kernel reads; None where it does not start."""
        assert self.kimage is not None
        if self.kimage.entry_phys == ENTRY:
            table = list(struct.iter_unpack("<QQ", self.memory.read(PURGATORY.phys + TABLE_AT, 256)))
            if digest(self.memory, table) != self.memory.read(PURGATORY.phys + DIGEST_AT, 32):
                return None
            kernel, tree = struct.unpack("<QQ", self.memory.read(PURGATORY.phys + ENTRY_AT, 16))
        else:
            page = self.memory.read(self.kimage.entry_phys, 40)
            assert page[:24] == CODE
            kernel, tree = struct.unpack("<QQ", page[24:])
            if kernel == ENTRY:
                self.kimage = self.kimage._replace(entry_phys=ENTRY)
                return self.panic()
        if self.memory.read(kernel, len(self.kernel)) != self.kernel or kernel % (2 << 20):
            return None
        blob = DeviceTree(self.memory.read(tree, TREE.bufsz), tree)
        place = blob.elfcorehdr_phys
        initrd = self.memory.read(INITRD.phys, 18000)
        if place is None or initrd != b"initrd" * 3000 or blob.ram.union(_place(blob)) != self.now.crashkernel:
            return None
        room = blob.elfcorehdr_room(place, None, [])
        copies = 2 if self.now.unmaps_image else 1
        start = (self.kimage.entry_phys, self.kimage.entry_phys + copies * PAGE)
        taken = [(kernel, kernel + KERNEL.memsz), INITRD.range, TREE.range, start]
        if RangeList(taken).intersect(RangeList([(place, place + (room or 0))])):
            return None
        return self.memory.read(place, room or 0)

    def dump_is_complete(self) -> bool:
        """Whether a panic now is dumped completely."""
        header = self.panic()
        return header is not None and header.startswith(expected_elfcorehdr(self.now, Loader.KEXEC_TOOLS).to_bytes())

    def listed(self) -> list[int]:
        """Return the physical addresses that the last kexec_load listed."""
        return [s.phys for s in self.calls[-1][1]]


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_image_starts_as_it_was_loaded_and_lacks_what_came_later(has_purgatory: bool) -> None:
    """Negative control of the tests below.  Without purgatory struct kimage has the device tree's address."""
    fake = Arm64Machine(has_purgatory)
    if has_purgatory:
        assert fake.dump_is_complete()
        fake.now = GROWN
        assert not fake.dump_is_complete()
    image = fake.image()
    assert (image.loader, image.elfcorehdr_phys) == (Loader.KEXEC_TOOLS, HEADER.phys)
    fake.now = NOW
    assert assess(fake.now, image).comparison.verdict is Verdict.ACCURATE


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_first_update_moves_the_kernel_and_later_ones_list_little(has_purgatory: bool) -> None:
    fake = Arm64Machine(has_purgatory)
    fake.now = GROWN
    assert fake.updated().outcome is Outcome.UPDATED
    assert fake.dump_is_complete()
    first = fake.calls[-1][1]
    assert any("the kernel, moved from 0x20000000" in s.why for s in first)
    assert not any(s.phys == INITRD.phys for s in first), "the initrd stays"
    assert assess(fake.now, fake.image()).comparison.verdict is Verdict.ACCURATE
    fake.now = arm64_machine(((0, GIB),))
    assert fake.updated().outcome is Outcome.UPDATED
    assert fake.dump_is_complete()
    assert len(fake.listed()) == 2, "the header, and what starts the kernel"
    assert sum(s.memsz for s in fake.calls[-1][1]) <= 5 * PAGE
    assert fake.updated(Wants(verify_full=True)).outcome is Outcome.UNCHANGED


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_flipped_bit_of_a_kept_segment_is_found_by_the_digest(has_purgatory: bool) -> None:
    fake = Arm64Machine(has_purgatory)
    fake.now = GROWN
    fake.updated()
    fake.memory.flip(INITRD.phys + 5)
    assert "digest does not fit" in fake.updated(Wants(verify_full=True)).sentence


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_image_without_a_hole_for_the_kernel_is_listed_whole(has_purgatory: bool) -> None:
    """The region is as large as the image and little more."""
    fake = Arm64Machine(has_purgatory, Range(RESERVED.start, RESERVED.start + 0x68_0000))
    fake.now = GROWN._replace(crashkernel=fake.now.crashkernel)
    assert fake.updated().outcome is Outcome.UPDATED
    assert fake.dump_is_complete()
    assert {KERNEL.phys, INITRD.phys, TREE.phys} < set(fake.listed())
    assert fake.updated(Wants(always_writes=True, verify_full=True)).outcome is Outcome.UPDATED
    assert fake.dump_is_complete()


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_header_that_outgrew_the_size_in_the_device_tree_moves(has_purgatory: bool) -> None:
    fake = Arm64Machine(has_purgatory)
    fake.now = arm64_machine(((0, GIB), *((n * GIB, n * GIB + MIB) for n in range(4, 30))))
    report = fake.updated()
    assert (report.outcome, "at a new place" in report.sentence) == (Outcome.UPDATED, True)
    assert fake.dump_is_complete()
    header = fake.panic()
    assert header is not None
    assert parse_elfcorehdr(header).size > 0x400
    assert fake.image().why_header_not_found is None
    fake.now = NOW
    assert fake.updated().outcome is Outcome.UPDATED
    assert (fake.dump_is_complete(), len(fake.listed())) == (True, 2)


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_kernel_that_moved_stays_when_the_header_moves_later(has_purgatory: bool) -> None:
    fake = Arm64Machine(has_purgatory)
    fake.now = GROWN
    fake.updated()
    fake.now = arm64_machine(((0, GIB), *((n * GIB, n * GIB + MIB) for n in range(4, 30))))
    assert "at a new place" in fake.updated().sentence
    assert not any("the kernel, moved" in s.why for s in fake.calls[-1][1])
    assert fake.dump_is_complete()


def test_kernel_whose_address_purgatory_has_twice_is_not_moved() -> None:
    fake = Arm64Machine()
    fake.now = GROWN
    fake.memory.write(PURGATORY.phys + 0x300, struct.pack("<Q", KERNEL.phys))
    report = fake.updated()
    assert (report.outcome, fake.calls) == (Outcome.CANNOT_TELL, [])
    assert "has the kernel's address 2 times" in report.sentence


def test_kernel_that_does_not_read_the_same_twice_is_not_moved() -> None:
    """Without a digest that is all that shows a page that /proc/kcore gave as zeros."""
    fake = Arm64Machine(has_purgatory=False)
    fake.now = GROWN
    read, asked = fake.memory.read, [0]

    def reads_zeros_once(phys: int, length: int) -> bytes:
        if (phys, length) == (KERNEL.phys, KERNEL.memsz):
            asked[0] += 1
            if asked[0] == 1:
                return read(phys, PAGE) + bytes(PAGE) + read(phys + 2 * PAGE, length - 2 * PAGE)
        return read(phys, length)

    fake.read_phys = reads_zeros_once  # type: ignore[method-assign]
    assert fake.updated().outcome is Outcome.UPDATED
    assert (asked[0] >= 2, fake.dump_is_complete()) == (True, True)


def test_kernel_stays_where_another_segment_would_have_to_be_listed_all_the_same() -> None:
    """A segment at the bottom of the region: control pages come from the hole behind it."""
    fake = Arm64Machine(has_purgatory=False)
    bottom = Segment(RESERVED.start - 2 * MIB, PAGE, PAGE)
    assert fake.kimage is not None
    fake.kimage = fake.kimage._replace(segments=(bottom, *fake.kimage.segments))
    fake.reserved = Range(bottom.phys, RESERVED.end)
    fake.now = GROWN._replace(crashkernel=RangeList([fake.reserved]))
    assert fake.updated().outcome is Outcome.UPDATED
    assert bottom.phys in fake.listed()
    assert not any("the kernel, moved" in s.why for s in fake.calls[-1][1])


class UnmappingMachine(Arm64Machine):
    """A machine of a kernel before 6.4: what is listed cannot be read while it is loaded."""

    def __init__(self, has_purgatory: bool = True, reserved: Range = RESERVED) -> None:
        """Load the image."""
        super().__init__(has_purgatory, reserved)
        self.grow(NOW)

    def grow(self, now: Machine = GROWN) -> None:
        """Plug a DIMM, or unplug it."""
        self.now = now._replace(kernel_release="6.1.0-test", crashkernel=self.now.crashkernel)

    def read_phys(self, phys: int, length: int) -> bytes:
        """Read through /proc/kcore."""
        unmapped = () if self.kimage is None else self.kimage.segments
        pages = range(phys // PAGE * PAGE, phys + length, PAGE)
        data = b"".join(
            bytes(PAGE) if any(s.phys <= page < s.range.end for s in unmapped) else self.memory.read(page, PAGE)
            for page in pages
        )
        return data[phys % PAGE : phys % PAGE + length]


def test_unmapped_image_is_cannot_tell_in_place() -> None:
    fake = UnmappingMachine()
    fake.grow()
    report = fake.updated()
    assert (report.outcome, fake.calls) == (Outcome.CANNOT_TELL, [])
    assert "shows zeros in place of the loaded crash image" in report.sentence


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_unmapped_image_is_unloaded_once_and_readable_from_then_on(has_purgatory: bool) -> None:
    fake = UnmappingMachine(has_purgatory)
    fake.grow()
    report = fake.updated(AUTO)
    assert (report.outcome, "for a moment no image was loaded" in report.sentence) == (Outcome.UPDATED, True)
    assert (fake.unloaded_marks[0] is not None, fake.unloaded_marks[-1]) == (True, None)
    assert assess(fake.now, fake.image()).comparison.verdict is Verdict.ACCURATE
    assert fake.updated(AUTO).outcome is Outcome.UNCHANGED
    calls = len(fake.calls)
    fake.grow(NOW)
    report = fake.updated()
    assert (report.outcome, "no image" in report.sentence) == (Outcome.UPDATED, False)
    assert [len(call[1]) for call in fake.calls[calls:]] == [2, 1], "the header and its start; then the start alone"
    assert fake.updated(Wants(verify_full=True)).outcome is Outcome.UNCHANGED
    assert fake.dump_is_complete()


@pytest.mark.parametrize("has_purgatory", [True, False])
def test_start_page_starts_purgatory_where_there_is_one(has_purgatory: bool) -> None:
    fake = UnmappingMachine(has_purgatory)
    fake.grow()
    fake.updated(AUTO)
    assert fake.kimage is not None
    (started,) = struct.unpack("<Q", fake.memory.read(fake.kimage.entry_phys + len(CODE), 8))
    assert (started == ENTRY) is has_purgatory


def test_unmapped_image_that_is_right_is_written_to_be_readable() -> None:
    fake = UnmappingMachine()
    assert fake.updated(AUTO).outcome is Outcome.UPDATED
    assert fake.image().elfcorehdr.startswith(expected_elfcorehdr(fake.now, Loader.KEXEC_TOOLS).to_bytes())
    assert fake.updated(AUTO).outcome is Outcome.UNCHANGED
    assert fake.dump_is_complete()


def test_unmapped_image_of_an_encrypted_machine_is_not_unloaded() -> None:
    fake = UnmappingMachine()
    fake.now = fake.now._replace(memory_encryption="AMD SME")
    report = fake.updated(AUTO)
    assert (report.outcome, fake.calls, fake.unloaded_marks) == (Outcome.REFUSED, [], [])
    assert fake.kimage is not None
    assert "memory is encrypted (AMD SME)" in report.sentence


def test_start_page_is_not_listed_alone_where_control_pages_would_overwrite_the_image() -> None:
    """The region has no hole for the kernel: the image stays unmapped, but it is whole."""
    fake = UnmappingMachine(has_purgatory=False, reserved=Range(RESERVED.start, RESERVED.start + 0x68_0000))
    fake.grow()
    report = fake.updated(AUTO)
    assert (report.outcome, "what was loaded cannot be verified" in report.sentence) == (Outcome.FAILED, True)
    assert [len(call[1]) > 1 for call in fake.calls] == [True]
    assert fake.dump_is_complete()


def test_image_whose_start_is_unmapped_is_kept_with_the_copy_of_its_start() -> None:
    fake = UnmappingMachine()
    fake.grow()
    fake.updated(AUTO)
    assert fake.kimage is not None
    start = fake.kimage.entry_phys
    assert not any(fake.read_phys(start, PAGE))
    kept = keep_image(fake)
    assert kept is not None
    assert next(s.data for s in kept.segments if s.phys == start) == fake.memory.read(start, PAGE)
    fake.kimage = None
    assert run(put_back(fake, kept)) == "the previous image was put back"
    assert fake.updated(AUTO).outcome is Outcome.UPDATED, "it is right and has room, but cannot be read"
    assert fake.updated().outcome is Outcome.UNCHANGED
    assert fake.dump_is_complete()


def test_flipped_bit_of_an_image_that_was_unmapped_is_found_by_the_digest() -> None:
    fake = UnmappingMachine()
    fake.grow()
    fake.updated(AUTO)
    fake.memory.flip(INITRD.phys + 5)
    assert "digest does not fit" in fake.updated(Wants(verify_full=True)).sentence


def test_unmapped_image_is_put_back_where_the_load_fails() -> None:
    fake = UnmappingMachine()
    fake.grow()
    before, refused = fake.kimage, [3]

    def refuse() -> None:
        if fake.kimage is None and refused[0]:
            refused[0] -= 1
            raise CrashHotplugError("the kernel refuses")

    fake.before_load = refuse
    report = fake.updated(AUTO)
    assert (report.outcome, "the previous image was put back" in report.sentence) == (Outcome.FAILED, True)
    assert before is not None
    assert fake.kimage is not None
    assert {s.phys for s in fake.kimage.segments} == {s.phys for s in before.segments}
    fake.grow(NOW)
    assert fake.dump_is_complete()
    assert fake.unloaded_marks[-1] is None


def test_damaged_image_is_not_put_back() -> None:
    fake = UnmappingMachine()
    fake.grow()
    fake.memory.flip(INITRD.phys + 5)
    report = fake.updated(AUTO)
    assert (report.outcome, fake.kimage) == (Outcome.FAILED, None)
    assert "no crash image is loaded now" in report.sentence
    assert len(fake.unloaded_marks) == 1, "the next start of the service reloads"


def test_image_that_another_process_loads_after_the_unload_is_looked_at_anew() -> None:
    fake = UnmappingMachine()
    fake.grow()
    theirs = fake.kimage

    def load_theirs() -> None:
        fake.kimage, fake.serial = theirs, fake.serial + 100
        fake.after_load = lambda: None

    fake.after_load = load_theirs
    assert fake.updated(AUTO).outcome is Outcome.UPDATED
    assert fake.dump_is_complete()


def test_kernel_with_pages_of_64_kib_gets_segments_of_whole_pages() -> None:
    fake = Arm64Machine(has_purgatory=False)
    large = 65536
    fake.now = GROWN._replace(architecture=ARM64._replace(page_size=large))
    fake.updated(Wants(gives_room=True))
    new = [s for s in fake.calls[-1][1] if s.phys not in {KERNEL.phys, INITRD.phys, TREE.phys}]
    assert len(new) == 3
    assert [s.why for s in new if s.phys % large or (s.memsz % large and "kernel" not in s.why)] == []
    assert fake.now.control_bytes == 16 * GROWN.control_bytes
