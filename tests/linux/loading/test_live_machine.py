# SPDX-License-Identifier: MIT
"""An update in place from beginning to end, on a machine of files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import count
from pathlib import Path

import pytest

from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.boot_params import E820_COUNT, E820_ENTRY, E820_RAM, E820_TABLE
from crash_hotplug.core.decision import ANSWERED, Outcome, Wants
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.expected import header_to_write
from crash_hotplug.core.finding import Kind, Verdict
from crash_hotplug.core.kept_image import keep_image
from crash_hotplug.core.plan import NewSegment
from crash_hotplug.core.ranges import RangeList
from crash_hotplug.core.update import update
from crash_hotplug.core.verdict import assess
from crash_hotplug.linux.iomem import Iomem, read_iomem
from crash_hotplug.linux.loading import live_machine
from crash_hotplug.linux.loading.kdump_lock import LockBusyError
from crash_hotplug.linux.loading.live_machine import (
    LiveMachine,
    LiveObservation,
    Patience,
    run_patiently,
    why_live_image_not_updatable,
)
from crash_hotplug.linux.loading.system_calls import KEXEC_UPDATE_ELFCOREHDR, KexecError
from crash_hotplug.linux.machine_reader import read_machine
from crash_hotplug.linux.sysroot import Sysroot
from tests.core.test_image import kimage_bytes
from tests.linux.fake_kexec import (
    BACKUP,
    ENTRY,
    HEADER,
    INITRD,
    KERNEL,
    KIMAGE_PHYS,
    PURGATORY,
    RESERVED_END,
    RESERVED_START,
    SEGMENTS,
    ZERO_PAGE,
    FakeKexec,
)

FULL = Wants(verify_full=True)


def test_update_describes_a_hot_added_cpu_and_dimm_with_one_small_load(fake: FakeKexec) -> None:
    assert fake.verdict() is Verdict.NOT_ACCURATE
    before = {at: fake.read(at, 0x1000) for at in (KERNEL, INITRD, BACKUP, ZERO_PAGE)}
    report = fake.update()
    assert report.outcome is Outcome.UPDATED
    assert fake.verdict() is Verdict.ACCURATE
    assert [s.phys for s in fake.loads[0]] == [RESERVED_START, PURGATORY, HEADER]
    assert {at: fake.read(at, 0x1000) for at in before} == before
    assert fake.digest_fits()
    assert fake.flags == [0]


def test_later_updates_hash_nothing_and_see_the_whole_image(fake: FakeKexec) -> None:
    assert fake.update().outcome is Outcome.UPDATED
    said: list[str] = []
    assert fake.update(say=said.append).outcome is Outcome.UNCHANGED
    iomem = (fake.root / "proc" / "iomem").read_text().splitlines()
    fake.write_file("proc/iomem", "\n".join(line for line in iomem if not line.startswith("100000000")) + "\n")
    for _ in range(3):
        assert fake.update(say=said.append).outcome in (
            Outcome.UPDATED,
            Outcome.UNCHANGED,
        )
    assert said == []
    assert len(fake.loads) == 2
    image = fake.image()
    assert image.kimage is not None
    assert [s.phys for s in image.kimage.segments] == [
        RESERVED_START, INITRD, KERNEL, ZERO_PAGE, PURGATORY, HEADER, BACKUP,
    ]  # fmt: skip
    assert fake.digest_fits()


def test_update_leaves_purgatory_alone_if_the_digest_lacks_the_header(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path, header_in_digest=False)
    purgatory = fake.read(PURGATORY, 0x9000)
    assert fake.update(FULL).outcome is Outcome.UPDATED
    assert fake.read(PURGATORY, 0x9000) == purgatory


def test_backup_region_of_the_image_is_described_in_the_header(fake: FakeKexec) -> None:
    machine = read_machine(fake.sysroot)
    image = fake.image()
    assert image.backup_region_phys == BACKUP
    from_kernel = header_to_write(machine, image)
    assert from_kernel.backup_region is not None
    assert from_kernel.backup_region.p_offset == BACKUP


def test_loader_flags_are_passed_on(fake: FakeKexec) -> None:
    fake.write_file("sys/devices/system/memory/crash_hotplug", "1\n")
    assert fake.update().outcome is Outcome.UPDATED
    assert fake.flags == [KEXEC_UPDATE_ELFCOREHDR]


def kernel_replaces(fake: FakeKexec, times: int, may_update: bool = True) -> bytes:
    """Let the kernel put the header of before into the place of one that was just loaded; return that header.

    :param times: after how many loads, of those that leave the header to the kernel
    """
    fake.write_file("sys/devices/system/memory/crash_hotplug", f"{int(may_update)}\n")
    stale = fake.read(HEADER, PAGE)

    def after_load() -> None:
        if len(fake.loads) <= times and (fake.flags[-1] or not may_update):
            fake.write(HEADER, stale)

    fake.after_load = after_load
    return stale


def test_kernel_that_rewrites_each_header_inside_kexec_load_loses_the_leave_to_do_so(fake: FakeKexec) -> None:
    """linux-mm 1a15eb5ca092 does; without the flag it leaves the header alone."""
    stale = kernel_replaces(fake, times=8)
    report = fake.update()
    assert report.outcome is Outcome.UPDATED
    assert report.sentence.endswith("the kernel, which replaced the header, updates it no more")
    assert fake.flags == [KEXEC_UPDATE_ELFCOREHDR, KEXEC_UPDATE_ELFCOREHDR, 0]
    assert fake.read(HEADER, PAGE) != stale
    assert fake.update().outcome is Outcome.UNCHANGED


def test_kernel_that_replaced_the_header_once_goes_on_updating_it(fake: FakeKexec) -> None:
    """An event came between the call and the look at what it left."""
    kernel_replaces(fake, times=1)
    report = fake.update()
    assert (report.outcome, "no more" in report.sentence) == (Outcome.UPDATED, False)
    assert fake.flags == [KEXEC_UPDATE_ELFCOREHDR] * 2


def test_header_of_the_kernel_that_is_right_is_taken_for_what_it_is(fake: FakeKexec) -> None:
    """Memory comes between the call and the look at what it left, and the kernel's handler describes it."""
    fake.write_file("sys/devices/system/memory/crash_hotplug", "1\n")

    def after_load() -> None:
        fake.add_ranges(1)
        fake.write(HEADER, header_to_write(read_machine(fake.sysroot), fake.image()).to_bytes())

    fake.after_load = after_load
    report = fake.update()
    assert (report.outcome, report.sentence) == (Outcome.UPDATED, "the kernel wrote the header anew, and it is right")
    assert fake.flags == [KEXEC_UPDATE_ELFCOREHDR]


def test_header_that_nobody_may_have_replaced_has_failed(fake: FakeKexec) -> None:
    kernel_replaces(fake, times=8, may_update=False)
    report = fake.update()
    assert (report.outcome, "is not the one that is there" in report.sentence) == (Outcome.FAILED, True)
    assert fake.flags == [0]


def test_full_verification_finds_a_broken_kernel_before_any_panic(fake: FakeKexec) -> None:
    fake.flip_bit(KERNEL + 100)
    report = fake.update(FULL)
    assert report.outcome is Outcome.FAILED
    assert "does not fit the loaded image" in report.sentence
    assert fake.loads == []


def test_broken_image_is_not_taken_over(fake: FakeKexec) -> None:
    """Taking it over would write a digest that fits and so hide the damage."""
    fake.flip_bit(INITRD + 5)
    assert fake.update().outcome is Outcome.CANNOT_TELL
    assert fake.loads == []


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n", "lockdown (integrity)"),
        ("sys/kernel/security/lockdown", "none integrity [confidentiality]\n", "lockdown (confidentiality)"),
        ("proc/sys/kernel/kexec_load_disabled", "1\n", "kexec_load_disabled forbids"),
        ("proc/sys/kernel/kexec_load_limit_panic", "0\n", "kexec_load_limit_panic allows no more"),
        ("proc/cpuinfo", "flags\t\t: fpu tdx_guest\n", "memory is encrypted (Intel TDX)"),
    ],
)
def test_refused_update_names_the_restriction(fake: FakeKexec, path: str, text: str, sentence: str) -> None:
    fake.write_file(path, text)
    report = fake.update()
    assert report.outcome is Outcome.REFUSED
    assert sentence in report.sentence
    assert fake.loads == []


def test_other_architectures_are_refused(fake: FakeKexec) -> None:
    report = run_patiently(update(fake.machine("riscv64")))
    assert (report.outcome, "riscv64: an update in place is known to be safe on" in report.sentence) == (
        Outcome.REFUSED,
        True,
    )


def test_amd_memory_encryption_is_detected_in_vmcoreinfo(fake: FakeKexec) -> None:
    vmcoreinfo = read_machine(fake.sysroot).vmcoreinfo
    assert vmcoreinfo is not None
    note = bytes(12) + b"VMCOREINFO\0\0"
    fake.write(vmcoreinfo.phys, note + b"OSRELEASE=6.1.0\nNUMBER(sme_mask)=140737488355328\n\0")
    report = fake.update()
    assert (report.outcome, "AMD SME or SEV" in report.sentence) == (Outcome.REFUSED, True)
    fake.write(vmcoreinfo.phys, note + b"NUMBER(sme_mask)=0\n".ljust(64, b"\0"))
    assert fake.update().outcome is Outcome.UPDATED


def test_masked_iomem_is_cannot_tell(fake: FakeKexec) -> None:
    fake.write_file("proc/iomem", "00000000-00000000 : System RAM\n")
    report = fake.update()
    assert (report.outcome, "run as root" in report.sentence) == (Outcome.CANNOT_TELL, True)


def test_unknown_layout_of_struct_kimage_is_cannot_tell(fake: FakeKexec) -> None:
    fake.write(KIMAGE_PHYS, b"\xff" * 1024)
    report = fake.update()
    assert (report.outcome, "layout of struct kimage" in report.sentence) == (Outcome.CANNOT_TELL, True)
    assert fake.loads == []


def test_update_without_a_hole_for_control_pages_is_refused(fake: FakeKexec) -> None:
    """So much RAM needs more page tables than the reserved region has room for."""
    text = (fake.root / "proc" / "iomem").read_text()
    fake.write_file("proc/iomem", f"{text}{1 << 46:x}-{(1 << 46) + 0xFFF:x} : System RAM\n")
    report = fake.update()
    assert (report.outcome, "has no hole of" in report.sentence) == (Outcome.REFUSED, True)
    assert fake.loads == []


@pytest.mark.parametrize("missing", ["proc/kcore", "proc/kallsyms"])
def test_missing_proc_file_is_cannot_tell(fake: FakeKexec, missing: str) -> None:
    (fake.root / missing).unlink()
    report = fake.update()
    assert report.outcome is Outcome.CANNOT_TELL
    assert fake.loads == []


def test_update_without_an_image_is_not_loaded(fake: FakeKexec) -> None:
    fake.unload()
    assert fake.update().outcome is Outcome.NOT_LOADED


def test_taken_lock_is_reported(fake: FakeKexec) -> None:
    def taken() -> AbstractContextManager[None]:
        raise LockBusyError("the lock is taken: process 4711 (kdumpctl) is loading a crash image")

    fake.locks = taken
    assert fake.machine().try_lock() is False
    report = fake.update()
    assert (report.outcome, "process 4711 (kdumpctl)" in report.sentence) == (Outcome.LOCK_BUSY, True)


@pytest.mark.parametrize(("busy", "outcome"), [(2, Outcome.UPDATED), (1000, Outcome.FAILED)])
def test_busy_kernel_is_asked_again(fake: FakeKexec, busy: int, outcome: Outcome) -> None:
    answers = [16] * busy

    def answer() -> None:
        if answers:
            raise KexecError(answers.pop())

    fake.before_load = answer
    assert fake.update().outcome is outcome
    assert len(answers) < busy
    assert (fake.update().outcome is Outcome.UNCHANGED) == (outcome is Outcome.UPDATED)


@pytest.mark.parametrize(("limit", "attempts"), [("5", 1), ("-1", 3)])
def test_busy_kernel_is_not_asked_again_where_each_attempt_counts(fake: FakeKexec, limit: str, attempts: int) -> None:
    fake.write_file("proc/sys/kernel/kexec_load_limit_panic", f"{limit}\n")
    asked: list[int] = []

    def answer() -> None:
        asked.append(1)
        if len(asked) < 3:
            raise KexecError(16)

    fake.before_load = answer
    assert fake.update().outcome is (Outcome.LOCK_BUSY if limit == "5" else Outcome.UPDATED)
    assert len(asked) == attempts


def test_refusing_kernel_is_a_sentence(fake: FakeKexec) -> None:
    def refuse() -> None:
        raise KexecError(1)

    fake.before_load = refuse
    report = fake.update()
    assert report.outcome is Outcome.FAILED
    assert "it is forbidden" in report.sentence
    assert "no crash image is loaded now" not in report.sentence


def test_kernel_that_drops_the_image_and_refuses_is_reported(fake: FakeKexec) -> None:
    def drop_and_refuse() -> None:
        fake.unload()
        raise KexecError(12)

    fake.before_load = drop_and_refuse
    report = fake.update()
    assert (report.outcome, report.sentence.endswith("no crash image is loaded now: load one")) == (
        Outcome.FAILED,
        True,
    )


def test_image_that_the_kernel_dropped_is_loaded_again_at_once(fake: FakeKexec) -> None:
    def drop_and_refuse_once() -> None:
        fake.unload()
        fake.before_load = lambda: None
        raise KexecError(12)

    fake.before_load = drop_and_refuse_once
    assert fake.update().outcome is Outcome.UPDATED
    assert fake.verdict() is Verdict.ACCURATE
    assert fake.digest_fits()


def test_image_that_another_process_loaded_after_a_failed_call_is_left_alone(fake: FakeKexec) -> None:
    def drop_refuse_and_let_another_load() -> None:
        fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS[1:]))
        fake.before_load = lambda: None
        raise KexecError(12)

    loaded = iter([True, False])
    machine = fake.machine()
    fake.before_load = drop_refuse_and_let_another_load
    machine.image_loaded = lambda: next(loaded, True)  # type: ignore[method-assign]
    names = [step.name for step in update(machine)]
    assert "update: image changed, looks again" in names


CMA = "sys/kernel/kexec/crash_cma_ranges"


CMA_RANGE = RangeList([(0x2800_0000, 0x2E00_0000)])


def give_cma_to_capture_kernel(fake: FakeKexec) -> None:
    """Write the CMA range into the image's E820 table, as kexec_file_load does."""
    page = bytearray(fake.read(ZERO_PAGE, PAGE))
    count = page[E820_COUNT]
    entry = E820_ENTRY.pack(0x2800_0000, 0x600_0000, E820_RAM)
    page[E820_TABLE + count * E820_ENTRY.size : E820_TABLE + (count + 1) * E820_ENTRY.size] = entry
    page[E820_COUNT] = count + 1
    fake.write(ZERO_PAGE, bytes(page))
    fake.write(PURGATORY, fake.purgatory(True))


def test_cma_range_below_the_reserved_region_holds_no_control_pages(fake: FakeKexec) -> None:
    fake.write_file(CMA, "28000000-2dffffff\n")
    give_cma_to_capture_kernel(fake)
    assert fake.update().outcome is Outcome.UPDATED
    assert RESERVED_START in [s.phys for s in fake.loads[0]]
    assert fake.digest_fits()
    described = parse_elfcorehdr(fake.image().elfcorehdr).ram
    assert not described.intersect(CMA_RANGE)
    assert described.contains(0x27FF_F000)


def test_cma_range_that_the_capture_kernel_does_not_get_is_described(fake: FakeKexec) -> None:
    """kexec-tools leaves crash_cma_ranges out of the E820 table, so the capture kernel keeps out of that memory."""
    fake.write_file(CMA, "28000000-2dffffff\n")
    findings = assess(read_machine(fake.sysroot), fake.image()).comparison.findings
    assert Kind.CRASHKERNEL_DESCRIBED not in [finding.kind for finding in findings]
    assert fake.update().outcome is Outcome.UPDATED
    assert RESERVED_START in [s.phys for s in fake.loads[0]]
    assert parse_elfcorehdr(fake.image().elfcorehdr).ram.covers(CMA_RANGE)
    assert assess(read_machine(fake.sysroot), fake.image()).comparison.findings == []


def test_cma_range_is_left_out_where_memmap_hides_what_the_capture_kernel_gets(fake: FakeKexec) -> None:
    fake.write_file(CMA, "28000000-2dffffff\n")
    with_cmdline(fake, b"memmap=exactmap")
    findings = assess(read_machine(fake.sysroot), fake.image()).comparison.findings
    assert Kind.CRASHKERNEL_DESCRIBED in [finding.kind for finding in findings]


def test_cma_range_that_only_the_e820_table_shows_is_not_described(fake: FakeKexec) -> None:
    """Linux 6.17 and 6.18 have no crash_cma_ranges."""
    give_cma_to_capture_kernel(fake)
    findings = assess(read_machine(fake.sysroot), fake.image()).comparison.findings
    assert Kind.CRASHKERNEL_DESCRIBED in [finding.kind for finding in findings]
    assert fake.update().outcome is Outcome.UPDATED
    described = parse_elfcorehdr(fake.image().elfcorehdr).ram
    assert not described.intersect(CMA_RANGE)


def with_cmdline(fake: FakeKexec, more: bytes) -> None:
    at = ZERO_PAGE + 0x5000
    text = fake.read(at, 0x400).split(b"\0")[0]
    fake.write(at, text + b" " + more + b"\0")
    fake.write(PURGATORY, fake.purgatory(True))


def test_image_with_luks_keys_is_refused(fake: FakeKexec) -> None:
    with_cmdline(fake, b"dmcryptkeys=0x39f00000")
    report = fake.update()
    assert (report.outcome, "LUKS keys" in report.sentence) == (Outcome.REFUSED, True)
    assert fake.loads == []


def test_header_does_not_move_where_memmap_says_what_is_ram(fake: FakeKexec) -> None:
    with_cmdline(fake, b"memmap=exactmap memmap=190M@736M")
    fake.add_ranges(400)
    report = fake.update()
    assert (report.outcome, "has memmap=" in report.sentence) == (Outcome.NO_ROOM, True)
    assert fake.loads == []


@pytest.mark.parametrize("control_page", [0, RESERVED_END + PAGE])
def test_control_pages_that_cannot_be_checked_refuse_the_update(fake: FakeKexec, control_page: int) -> None:
    fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS, control_page=control_page))
    report = fake.update()
    assert (report.outcome, "control pages of the loaded image" in report.sentence) == (Outcome.REFUSED, True)
    assert fake.loads == []


def test_image_that_changes_again_and_again_fails_the_update(fake: FakeKexec) -> None:
    changes = iter(range(1000))
    steps = update(fake.machine())
    report = None
    while report is None:
        try:
            if next(steps).name == "update: planned":
                fake.write(KIMAGE_PHYS + 0x28, bytes([next(changes) % 200 + 1]))
        except StopIteration as stop:
            report = stop.value
    assert report.outcome is Outcome.FAILED
    assert "another process loaded or unloaded" in report.sentence
    assert fake.loads == []


def test_new_image_at_the_same_address_is_detected_by_its_segments(fake: FakeKexec) -> None:
    """The kernel frees the previous struct kimage before it allocates the next: often the pointer stays the same."""
    steps = update(fake.machine())
    names = []
    for step in steps:
        if step.name == "update: planned" and "update: planned" not in names:
            fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS[1:]))
        names.append(step.name)
        if step.name == "update: image changed, looks again":
            break
    assert names[-1] == "update: image changed, looks again"
    steps.close()
    assert fake.loads == []


@pytest.mark.parametrize("place", [KERNEL + 0x3000, INITRD, BACKUP + 0x50000, ZERO_PAGE + 0x5FFF])
def test_image_loaded_during_the_call_is_detected_as_torn(fake: FakeKexec, place: int) -> None:
    assert fake.update().outcome is Outcome.UPDATED
    fake.add_ranges(3)
    other = b"another image's".ljust(0x4000, b"!")[: 1 if place % 0x1000 else None]
    fake.before_load = lambda: fake.write(place, other)
    report = fake.update()
    assert (report.outcome, "the loaded image is torn" in report.sentence) == (Outcome.TORN, True)


def test_torn_image_is_never_called_accurate_until_it_is_verified_or_loaded(fake: FakeKexec) -> None:
    kernel = fake.read(KERNEL, 0x8000)
    assert fake.update().outcome is Outcome.UPDATED
    fake.add_ranges(1)
    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    assert fake.update().outcome is Outcome.TORN
    fake.before_load = lambda: None
    assert fake.verdict() is Verdict.NOT_ACCURATE
    assert fake.update().outcome is Outcome.TORN
    assert fake.update(FULL).outcome is Outcome.FAILED  # the digest shows it
    fake.write(KERNEL, kernel)
    assert fake.verdict() is Verdict.NOT_ACCURATE
    assert fake.update(FULL).outcome is Outcome.UNCHANGED
    assert fake.verdict() is Verdict.ACCURATE


def test_mark_of_a_torn_image_is_about_that_image_only(fake: FakeKexec) -> None:
    fake.before_load = lambda: fake.write(KERNEL, b"another kernel")
    assert fake.update().outcome is Outcome.TORN
    fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS))  # another load
    assert fake.image().torn is None


def test_first_update_recomputes_the_digest_after_the_call(tmp_path: Path) -> None:
    """A byte between two samples, changed at the very moment of the call, is seen by the whole digest only."""
    fake = FakeKexec(tmp_path)
    fake.before_load = lambda: fake.flip_bit(BACKUP + 0x1000 + 5)
    report = fake.update()
    assert (report.outcome, "does not fit" in report.sentence) == (Outcome.TORN, True)


def test_header_missing_after_the_call_is_detected(fake: FakeKexec) -> None:
    fake.after_load = lambda: fake.write(HEADER, fake.header)
    report = fake.update()
    assert report.outcome is Outcome.FAILED
    assert "reload the crash image" in report.sentence


def test_image_that_cannot_be_read_back_is_a_failure(fake: FakeKexec) -> None:
    """After the call nothing is "cannot tell, and nothing was done"."""
    fake.after_load = (fake.root / "proc" / "kcore").unlink
    report = fake.update()
    assert (report.outcome, report.sentence.endswith("reload the crash image")) == (Outcome.FAILED, True)


def test_image_unloaded_during_the_call_is_reported(fake: FakeKexec) -> None:
    fake.after_load = fake.unload
    report = fake.update()
    assert (report.outcome, "was unloaded" in report.sentence) == (Outcome.FAILED, True)


@pytest.mark.parametrize("step", ["identity read", "image read", "machine read", "planned", "kept segments sampled"])
def test_memory_that_comes_online_during_an_update_shifts_nothing(fake: FakeKexec, step: str) -> None:
    """The kernel reads kcore at other offsets from then on: purgatory was written back shifted by a page."""
    assert fake.update().outcome is Outcome.UPDATED
    purgatory = fake.read(PURGATORY, 0x9000)
    fake.write(KIMAGE_PHYS - 0x1000, fake.read(KIMAGE_PHYS, 0x1000))  # so that the identity alone tells nothing
    fake.add_ranges(3)
    steps = update(fake.machine())
    shifted, report = False, None
    while report is None:
        try:
            if next(steps).name == f"update: {step}" and not shifted:
                fake.shift_kcore()
                shifted = True
        except StopIteration as stop:
            report = stop.value
    assert shifted
    assert report.outcome is Outcome.UPDATED
    assert fake.read(PURGATORY, 0x9000) == purgatory
    assert fake.digest_fits()
    assert fake.verdict() is Verdict.ACCURATE


def show_zeros_at(machine: LiveMachine, place: int, is_hidden: Callable[[], bool] = lambda: True) -> None:
    """Let /proc/kcore show zeros for the page at *place*, as for one that is offline or poisoned."""
    observe = machine.observe

    def observe_zeros() -> LiveObservation:
        observation = observe()
        read_phys = observation.read_phys

        def read(phys: int, length: int) -> bytes:
            data = read_phys(phys, length)
            start, end = max(place, phys) - phys, min(place + PAGE, phys + length) - phys
            return data[:start] + bytes(end - start) + data[end:] if start < end and is_hidden() else data

        observation.read_phys = read  # type: ignore[method-assign]
        return observation

    machine.observe = observe_zeros  # type: ignore[method-assign]


@pytest.mark.parametrize("place", [RESERVED_START, PURGATORY])
def test_zeros_that_kcore_shows_for_a_moment_are_not_written(fake: FakeKexec, place: int) -> None:
    """A page that is offline or poisoned reads as zeros; the segment is listed only to keep its place."""
    assert fake.update().outcome is Outcome.UPDATED
    fake.add_ranges(2)
    machine, before = fake.machine(), fake.read(place, 0x9000)
    is_hidden = False
    show_zeros_at(machine, place, lambda: is_hidden)
    names = []
    for step in update(machine):
        is_hidden = step.name == "update: machine read" and step.name not in names  # while the first plan is made
        names.append(step.name)
    assert names.count("update: image changed, looks again") == 1
    assert fake.read(place, len(before)) == before
    assert fake.verdict() is Verdict.ACCURATE
    assert fake.digest_fits()


@pytest.mark.parametrize("first", [True, False])
def test_zeros_that_kcore_shows_all_the_time_are_not_written(fake: FakeKexec, first: bool) -> None:
    if not first:
        assert fake.update().outcome is Outcome.UPDATED
        fake.add_ranges(2)
    machine, before, loads = fake.machine(), fake.read(RESERVED_START, PAGE), len(fake.loads)
    show_zeros_at(machine, RESERVED_START)
    assert run_patiently(update(machine), 0.2).outcome not in ANSWERED
    assert len(fake.loads) == loads
    assert fake.read(RESERVED_START, PAGE) == before


def test_page_that_is_zero_is_written_once_the_digest_proves_it(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path)
    fake.write(RESERVED_START, bytes(PAGE))
    fake.write(PURGATORY, fake.purgatory(True))
    assert fake.update().outcome is Outcome.UPDATED
    fake.add_ranges(2)
    said: list[str] = []
    assert fake.update(say=said.append).outcome is Outcome.UPDATED
    assert [sentence for sentence in said if "reads as zeros" in sentence] == said != []
    assert fake.digest_fits()


@pytest.mark.parametrize("place", [RESERVED_START, ZERO_PAGE + PAGE])
@pytest.mark.parametrize("moves", [False, True])
def test_zeros_that_begin_or_end_between_two_readings_are_not_written(tmp_path: Path, place: int, moves: bool) -> None:
    """The digest is computed over the very bytes that the first update writes back, not over another reading."""
    for number in range(12):
        for begins in (True, False):
            fake = FakeKexec(tmp_path / f"{number}-{begins}")
            fake.write(ZERO_PAGE + PAGE, b"setup" * 800)
            fake.write(PURGATORY, fake.purgatory(True))
            if moves:
                fake.add_ranges(300)
            before, readings = fake.read(place, PAGE), count()
            machine = fake.machine()
            show_zeros_at(machine, place, lambda: (next(readings) >= number) is begins)  # noqa: B023
            outcome = run_patiently(update(machine), 0.2).outcome
            assert fake.read(place, PAGE) == before
            assert outcome is not Outcome.UPDATED or fake.digest_fits()


def test_memory_that_comes_online_during_the_call_does_not_disturb_the_check(fake: FakeKexec) -> None:
    fake.after_load = fake.shift_kcore
    assert fake.update().outcome is Outcome.UPDATED
    assert fake.digest_fits()


def test_header_is_not_called_right_from_memory_that_moved_meanwhile(fake: FakeKexec) -> None:
    assert fake.update().outcome is Outcome.UPDATED
    names: list[str] = []
    for step in update(fake.machine()):
        if step.name == "update: machine read" and step.name not in names:
            fake.shift_kcore()
        names.append(step.name)
    assert names.count("update: image changed, looks again") == 1
    assert names.count("update: machine read") == 2


def test_kept_image_is_not_shifted_by_memory_that_comes_online(fake: FakeKexec) -> None:
    machine = fake.machine()
    original, opened = machine.observe, []

    def observe() -> LiveObservation:
        observation = original()
        opened.append(observation.identity())
        fake.shift_kcore()
        return observation

    machine.observe = observe  # type: ignore[method-assign]
    assert keep_image(machine) is None
    assert len(opened) == 1


@pytest.mark.parametrize("cmdline", [b"quiet", b"elfcorehdr=4K", b"elfcorehdr=4K elfcorehdr=949620K"])
@pytest.mark.parametrize("state", [0, 1])
def test_image_whose_command_line_does_not_name_its_header_is_refused(
    tmp_path: Path, cmdline: bytes, state: int
) -> None:
    """A right header would not help it: only a reload writes the command line anew."""
    fake = FakeKexec(tmp_path, state=state)
    fake.write(ZERO_PAGE + 0x5000, cmdline.ljust(200, b"\0"))
    assert fake.verdict() is Verdict.NOT_ACCURATE
    report = fake.update()
    assert report.outcome is Outcome.REFUSED
    assert "only a reload corrects that" in report.sentence
    assert fake.loads == []


def test_command_line_that_changed_during_the_call_is_a_torn_image(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = fake.kexec_load

    def also_writes(entry_phys: int, segments: Sequence[NewSegment], flags: int) -> None:
        load(entry_phys, segments, flags)
        fake.write(ZERO_PAGE + 0x5000, b"quiet".ljust(200, b"\0"))

    monkeypatch.setattr("crash_hotplug.core.update.sample_pages", lambda *_: {})
    monkeypatch.setattr(fake, "kexec_load", also_writes)
    report = fake.update()
    assert report.outcome is Outcome.TORN
    assert "has no elfcorehdr=" in report.sentence


def test_kcore_that_is_no_elf_file_after_the_call_is_a_failure(fake: FakeKexec) -> None:
    fake.after_load = lambda: fake._write_at(0, bytes(64))
    report = fake.update()
    assert (report.outcome, report.sentence.endswith("reload the crash image")) == (Outcome.FAILED, True)


class Locks:
    """The locks of the wrappers, and the moments at which they were held."""

    def __init__(self) -> None:
        self.held = 0
        self.taken = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.held += 1
        self.taken += 1
        try:
            yield
        finally:
            self.held -= 1


def test_update_holds_the_lock_during_the_call_and_gives_it_back(fake: FakeKexec) -> None:
    locks, during = Locks(), list[int]()
    fake.locks = locks
    fake.before_load = lambda: during.append(locks.held)
    machine = fake.machine()  # while it lives, nothing else gives the lock back
    assert run_patiently(update(machine)).outcome is Outcome.UPDATED
    assert (during, locks.held, locks.taken) == ([1], 0, 1)
    fake.unload()
    assert run_patiently(update(machine)).outcome is Outcome.NOT_LOADED
    assert (locks.held, locks.taken) == (0, 2)


def test_update_that_fails_gives_the_lock_back(fake: FakeKexec) -> None:
    locks = Locks()
    fake.locks = locks

    def refuse() -> None:
        raise KexecError(1)

    fake.before_load = refuse
    assert fake.update().outcome is Outcome.FAILED
    assert (locks.held, locks.taken) == (0, 1)


def test_observation_that_ends_closes_kcore(fake: FakeKexec) -> None:
    observation = fake.machine().observe()
    observation.close()
    assert observation._kcore._file.closed


def test_observation_reads_iomem_once(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image and machine are then of one reading."""
    reads: list[int] = []

    def counted(sysroot: Sysroot) -> Iomem:
        reads.append(1)
        return read_iomem(sysroot)

    monkeypatch.setattr(live_machine, "read_iomem", counted)
    with closing(fake.machine().observe()) as observation:
        observation.identity()
        observation.image()
        observation.machine()
    assert reads == [1]


def test_patience_pauses_longer_each_time_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", sleep)
    patience = Patience()
    while patience():
        pass
    assert 10 <= now[0] < 10.5
    assert pauses[:6] == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32]
    assert set(pauses[6:]) == {0.5}


def test_time_of_the_call_is_measured(fake: FakeKexec) -> None:
    machine = fake.machine()
    fake.before_load = lambda: time.sleep(0.02)
    assert run_patiently(update(machine)).outcome is Outcome.UPDATED
    assert machine.kexec_seconds >= 0.02


def test_reason_why_an_image_is_not_updatable_is_that_of_machine_or_image(fake: FakeKexec) -> None:
    image, machine = fake.image(), read_machine(fake.sysroot)
    assert why_live_image_not_updatable(fake.machine(), image, machine) is None
    assert "riscv64: an update" in (why_live_image_not_updatable(fake.machine("riscv64"), image, machine) or "")
    fake.write_file("proc/cpuinfo", "flags\t\t: fpu tdx_guest\n")
    assert "memory is encrypted" in (why_live_image_not_updatable(fake.machine(), image, machine) or "")
