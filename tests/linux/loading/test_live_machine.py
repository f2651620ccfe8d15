"""An update in place from beginning to end, on a machine of files."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from crash_hotplug.core import update_plan
from crash_hotplug.core.assessment import assess
from crash_hotplug.core.compare import Verdict
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.update import ImageChangedError, Outcome
from crash_hotplug.core.UNKNOWN import MixedImageError
from crash_hotplug_lab.model.policies import InPlace
from crash_hotplug.core.boot_params import e820_table
from crash_hotplug.core.image import elfcorehdr_room
from crash_hotplug.core.plan import room_for
from crash_hotplug.core.plan import NewSegment, UpdatePlan
from crash_hotplug.linux.crash_image import find_crash_image
from crash_hotplug.linux.loading import live_machine
from crash_hotplug.linux.loading.kdump_lock import LockBusyError
from crash_hotplug.linux.loading.system_calls import KEXEC_UPDATE_ELFCOREHDR, KexecError
from crash_hotplug.core.update import KexecBusyError
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug_lab.model.user_space import LOOK
from crash_hotplug.core.reload import make_ready
from crash_hotplug.linux.loading.update_once import update_in_place
from crash_hotplug.linux.machine_reader import read_machine
from tests.core.test_image import kimage_bytes
from tests.linux.fake_kexec import (
    BACKUP,
    ENTRY,
    HEADER,
    INITRD,
    KERNEL,
    KIMAGE_PHYS,
    PURGATORY,
    RESERVED_START,
    SEGMENTS,
    ZERO_PAGE,
    FakeKexec,
    cannot_move,
    connect,
    make_possible,
)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKexec:
    fake = FakeKexec(tmp_path)
    connect(fake, monkeypatch)
    return fake


def live(fake: FakeKexec, verify_full: bool = False) -> LiveMachine:
    return LiveMachine(fake.sysroot, verify_full)


def verdict(fake: FakeKexec) -> Verdict:
    machine = read_machine(fake.sysroot)
    return assess(machine, find_crash_image(fake.sysroot, machine.crashkernel)).comparison.verdict


def test_a_hot_added_cpu_and_dimm_are_described_by_one_small_load(fake: FakeKexec) -> None:
    assert verdict(fake) is Verdict.NOT_ACCURATE
    before = {at: fake.read(at, 0x1000) for at in (KERNEL, INITRD, BACKUP, ZERO_PAGE)}
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.UPDATED
    assert verdict(fake) is Verdict.ACCURATE
    assert [s.phys for s in fake.loads[0]] == [RESERVED_START, PURGATORY, HEADER]
    assert {at: fake.read(at, 0x1000) for at in before} == before
    assert fake.digest_fits()
    assert fake.flags == [0]


def test_the_next_updates_hash_nothing_and_see_the_whole_image(fake: FakeKexec) -> None:
    assert update_in_place(live(fake)).outcome is Outcome.UPDATED
    said: list[str] = []
    assert update_in_place(LiveMachine(fake.sysroot, say=said.append)).outcome is Outcome.UNCHANGED
    iomem = (fake.root / "proc" / "iomem").read_text().splitlines()
    fake.write_file("proc/iomem", "\n".join(line for line in iomem if not line.startswith("100000000")) + "\n")
    for _ in range(3):
        assert update_in_place(LiveMachine(fake.sysroot, say=said.append)).outcome in (
            Outcome.UPDATED,
            Outcome.UNCHANGED,
        )
    assert said == []
    assert len(fake.loads) == 2
    image = find_crash_image(fake.sysroot, read_machine(fake.sysroot).crashkernel)
    assert image.kimage is not None
    assert [s.phys for s in image.kimage.segments] == [
        RESERVED_START, INITRD, KERNEL, ZERO_PAGE, PURGATORY, HEADER, BACKUP,
    ]  # fmt: skip
    assert fake.digest_fits()


def test_an_image_whose_digest_never_had_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeKexec(tmp_path, header_in_digest=False)
    connect(fake, monkeypatch)
    purgatory = fake.read(PURGATORY, 0x9000)
    assert update_in_place(live(fake, verify_full=True)).outcome is Outcome.UPDATED
    assert fake.read(PURGATORY, 0x9000) == purgatory


def test_the_backup_region_that_the_kernel_dropped_is_described_again(fake: FakeKexec) -> None:
    machine = read_machine(fake.sysroot)
    image = find_crash_image(fake.sysroot, machine.crashkernel)
    assert image.backup_region_phys == BACKUP
    from_kernel = InPlace().header(machine, image, LOOK)
    assert from_kernel.backup_region is not None
    assert from_kernel.backup_region.p_offset == BACKUP


def test_flags_that_the_loader_gave_are_passed_on(fake: FakeKexec) -> None:
    fake.write_file("sys/devices/system/memory/crash_hotplug", "1\n")
    assert update_in_place(live(fake)).outcome is Outcome.UPDATED
    assert fake.flags == [KEXEC_UPDATE_ELFCOREHDR]


def test_full_verification_finds_a_broken_kernel_before_any_panic(fake: FakeKexec) -> None:
    fake.flip_bit(KERNEL + 100)
    report = update_in_place(live(fake, verify_full=True))
    assert report.outcome is Outcome.FAILED
    assert "does not fit the loaded image" in report.sentence
    assert fake.loads == []


def test_a_broken_image_is_not_taken_over(fake: FakeKexec) -> None:
    """Taking it over would write a digest that fits: what was broken would be hidden."""
    fake.flip_bit(INITRD + 5)
    assert update_in_place(live(fake)).outcome is Outcome.CANNOT_TELL
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
def test_what_forbids_it_is_said(fake: FakeKexec, path: str, text: str, sentence: str) -> None:
    fake.write_file(path, text)
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.REFUSED
    assert sentence in report.sentence
    assert fake.loads == []


def test_another_architecture_is_refused(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_machine, "machine_name", lambda: "aarch64")
    report = update_in_place(live(fake))
    assert (report.outcome, "x86_64 only" in report.sentence) == (Outcome.REFUSED, True)


def test_amds_encryption_is_told_by_vmcoreinfo(fake: FakeKexec) -> None:
    vmcoreinfo = read_machine(fake.sysroot).vmcoreinfo
    assert vmcoreinfo is not None
    note = bytes(12) + b"VMCOREINFO\0\0"
    fake.write(vmcoreinfo.phys, note + b"OSRELEASE=6.1.0\nNUMBER(sme_mask)=140737488355328\n\0")
    report = update_in_place(live(fake))
    assert (report.outcome, "AMD SME or SEV" in report.sentence) == (Outcome.REFUSED, True)
    fake.write(vmcoreinfo.phys, note + b"NUMBER(sme_mask)=0\n".ljust(64, b"\0"))
    assert update_in_place(live(fake)).outcome is Outcome.UPDATED


def test_without_privilege_nothing_can_be_told(fake: FakeKexec) -> None:
    fake.write_file("proc/iomem", "00000000-00000000 : System RAM\n")
    report = update_in_place(live(fake))
    assert (report.outcome, "run as root" in report.sentence) == (Outcome.CANNOT_TELL, True)


def test_an_unknown_layout_of_struct_kimage(fake: FakeKexec) -> None:
    fake.write(KIMAGE_PHYS, b"\xff" * 1024)
    report = update_in_place(live(fake))
    assert (report.outcome, "layout of struct kimage" in report.sentence) == (Outcome.CANNOT_TELL, True)
    assert fake.loads == []


def test_no_hole_for_control_pages(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_plan, "control_pages_bound", lambda _ram: 1 << 40)
    report = update_in_place(live(fake))
    assert (report.outcome, "has no hole of" in report.sentence) == (Outcome.REFUSED, True)
    assert fake.loads == []


@pytest.mark.parametrize("missing", ["proc/kcore", "proc/kallsyms"])
def test_what_cannot_be_read_is_cannot_tell(fake: FakeKexec, missing: str) -> None:
    (fake.root / missing).unlink()
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.CANNOT_TELL
    assert fake.loads == []


def test_no_image(fake: FakeKexec) -> None:
    fake.unload()
    assert update_in_place(live(fake)).outcome is Outcome.NOT_LOADED


def test_a_lock_that_stays_taken(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(_seconds: float) -> AbstractContextManager[None]:
        raise LockBusyError("taken")

    monkeypatch.setattr(live_machine, "kdump_locks", taken)
    assert live(fake).try_lock() is False
    assert update_in_place(live(fake)).outcome is Outcome.LOCK_BUSY


def test_a_kernel_that_is_busy_is_asked_again(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [KexecBusyError(16), KexecBusyError(16), None]

    def load(entry_phys: int, segments: tuple[NewSegment, ...], flags: int) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        fake.kexec_load(entry_phys, segments, flags)

    monkeypatch.setattr(live_machine, "load_crash_image", load)
    monkeypatch.setattr(live_machine, "_BUSY_PAUSE", 0)
    assert update_in_place(live(fake)).outcome is Outcome.UPDATED


def test_a_refusing_kernel_is_a_sentence(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_arguments: object) -> None:
        raise KexecError(1)

    monkeypatch.setattr(live_machine, "load_crash_image", load)
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.FAILED
    assert "it is forbidden" in report.sentence


def test_an_image_that_somebody_else_loads_meanwhile(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    identities = iter(range(1, 100))
    monkeypatch.setattr(live_machine, "read_identity", lambda *_: bytes([next(identities)]))
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.FAILED
    assert "somebody else loaded" in report.sentence
    assert fake.loads == []


def test_an_image_at_the_same_address_is_told_by_its_segments(fake: FakeKexec) -> None:
    """The kernel frees the former struct kimage before it allocates the next: often the pointer stays the same."""
    machine = live(fake)
    assert machine.try_lock()
    image = machine.loaded_image()
    assert image is not None
    header = InPlace().header(machine.read_machine(), image, LOOK).to_bytes()
    steps = machine.replace_header(image, header)
    next(steps)
    fake.write(KIMAGE_PHYS, kimage_bytes(entry=ENTRY, segments=SEGMENTS[1:]))
    with pytest.raises(ImageChangedError):
        next(steps)
    machine.unlock()
    assert fake.loads == []


@pytest.mark.parametrize("place", [KERNEL + 0x3000, INITRD, BACKUP + 0x50000, ZERO_PAGE + 0x5FFF])
def test_an_image_that_was_loaded_at_the_very_moment_is_noticed(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    assert update_in_place(live(fake)).outcome is Outcome.UPDATED
    add_ranges(fake, 3)

    def load(entry_phys: int, segments: tuple[NewSegment, ...], flags: int) -> None:
        fake.write(place, b"somebody else's".ljust(0x4000, b"!")[: 1 if place % 0x1000 else None])
        fake.kexec_load(entry_phys, segments, flags)

    monkeypatch.setattr(live_machine, "load_crash_image", load)
    report = update_in_place(live(fake))
    assert (report.outcome, "is a mix of two" in report.sentence) == (Outcome.MIXED, True)


def test_a_take_over_computes_its_digest_once_more(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte between two samples, changed at the very moment of the take-over, is seen by the whole digest only."""
    monkeypatch.setattr(live_machine, "check_marks", lambda *_: None)

    def load(entry_phys: int, segments: tuple[NewSegment, ...], flags: int) -> None:
        fake.flip_bit(KERNEL + 5)
        fake.kexec_load(entry_phys, segments, flags)

    monkeypatch.setattr(live_machine, "load_crash_image", load)
    report = update_in_place(live(fake))
    assert (report.outcome, "does not fit" in report.sentence) == (Outcome.MIXED, True)


def add_ranges(fake: FakeKexec, number: int) -> None:
    text = (fake.root / "proc" / "iomem").read_text()
    lines = [
        f"{at:x}-{at + (1 << 27) - 1:x} : System RAM" for at in range(1 << 33, (1 << 33) + (number << 28), 1 << 28)
    ]
    fake.write_file("proc/iomem", text.rstrip("\n") + "\n" + "\n".join(lines) + "\n")


def test_a_header_that_outgrew_its_segment_moves_once(fake: FakeKexec) -> None:
    add_ranges(fake, 400)
    report = update_in_place(live(fake))
    assert (report.outcome, "at a new place" in report.sentence) == (Outcome.UPDATED, True)
    machine = read_machine(fake.sysroot)
    image = find_crash_image(fake.sysroot, machine.crashkernel)
    assert assess(machine, image).comparison.verdict is Verdict.ACCURATE
    place = image.elfcorehdr_phys or 0
    assert place != HEADER
    assert f"elfcorehdr={place >> 10}K" in (image.cmdline or "")
    assert [kind for r, kind in e820_table(image.boot_params or b"") if r.start == place] == [2]
    assert fake.digest_fits()
    assert len(fake.loads) == 1
    add_ranges(fake, 500)
    assert update_in_place(live(fake, verify_full=True)).outcome is Outcome.UPDATED
    assert find_crash_image(fake.sysroot, machine.crashkernel).elfcorehdr_phys == place
    assert fake.digest_fits()


def test_room_is_for_as_many_ranges_as_was_asked_for(fake: FakeKexec) -> None:
    add_ranges(fake, 400)
    assert update_in_place(live(fake), 1000).outcome is Outcome.UPDATED
    machine = read_machine(fake.sysroot)
    image = find_crash_image(fake.sysroot, machine.crashkernel)
    assert elfcorehdr_room(image, machine.crashkernel, None) == room_for(len(machine.cpus), 1000)


def test_more_ranges_than_were_asked_for_get_room_all_the_same(fake: FakeKexec) -> None:
    add_ranges(fake, 400)
    assert update_in_place(live(fake), 1).outcome is Outcome.UPDATED
    assert verdict(fake) is Verdict.ACCURATE


def test_room_in_bytes(fake: FakeKexec) -> None:
    assert make_ready(live(fake), hotplug_size=0x21001) is None
    machine = read_machine(fake.sysroot)
    image = find_crash_image(fake.sysroot, machine.crashkernel)
    assert elfcorehdr_room(image, machine.crashkernel, None) == 0x22000
    assert make_ready(live(fake), hotplug_size=0x10000) is None
    assert verdict(fake) is Verdict.ACCURATE
    assert len(fake.loads) == 1


def described_cpus(fake: FakeKexec) -> int:
    image = find_crash_image(fake.sysroot, read_machine(fake.sysroot).crashkernel)
    return len(parse_elfcorehdr(image.elfcorehdr).cpu_notes)


def test_a_header_without_room_for_every_possible_cpu_moves(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    make_possible(monkeypatch, 300)
    report = update_in_place(live(fake))
    assert (report.outcome, "at a new place" in report.sentence) == (Outcome.UPDATED, True)
    assert described_cpus(fake) == 300
    assert fake.digest_fits()
    assert update_in_place(live(fake)).outcome is Outcome.UNCHANGED
    assert len(fake.loads) == 1


def test_present_cpus_are_described_where_the_header_cannot_move(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_possible(monkeypatch, 300)
    cannot_move(monkeypatch)
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.UPDATED
    assert report.sentence.endswith("; present CPUs only, for it cannot move: there is no free place")
    assert described_cpus(fake) == len(read_machine(fake.sysroot).present_cpus)
    assert verdict(fake) is Verdict.ACCURATE
    assert update_in_place(live(fake)).outcome is Outcome.UNCHANGED
    assert len(fake.loads) == 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(CrashHotplugError("the kernel refused"), Outcome.FAILED), (MixedImageError("two images"), Outcome.MIXED)],
)
def test_what_goes_wrong_in_a_move_is_not_followed_by_another_load(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, error: CrashHotplugError, outcome: Outcome
) -> None:
    def broken(*_arguments: object) -> None:
        raise error

    make_possible(monkeypatch, 300)
    monkeypatch.setattr(LiveMachine, "_carry_out", broken)
    report = update_in_place(live(fake))
    assert (report.outcome, report.sentence.endswith(f", and it did not move: {error}")) == (outcome, True)


@pytest.mark.parametrize(("changes", "outcome"), [(1, Outcome.UPDATED), (3, Outcome.FAILED)])
def test_a_move_whose_image_changed_is_begun_anew(
    fake: FakeKexec, monkeypatch: pytest.MonkeyPatch, changes: int, outcome: Outcome
) -> None:
    carry_out, changed = LiveMachine._carry_out, list(range(changes))

    def changed_meanwhile(machine: LiveMachine, plan: UpdatePlan, header: bytes) -> None:
        if changed:
            changed.pop()
            raise ImageChangedError("somebody else loaded or unloaded an image meanwhile")
        carry_out(machine, plan, header)

    monkeypatch.setattr(LiveMachine, "_carry_out", changed_meanwhile)
    make_possible(monkeypatch, 300)
    assert update_in_place(live(fake)).outcome is outcome
    assert len(fake.loads) == (outcome is Outcome.UPDATED)


def test_a_move_that_cannot_be_made_leaves_everything(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    cannot_move(monkeypatch)
    add_ranges(fake, 400)
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.NO_ROOM
    assert "it cannot move: there is no free place" in report.sentence
    assert fake.loads == []


def test_a_header_that_is_not_there_afterwards_is_noticed(fake: FakeKexec, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(entry_phys: int, segments: tuple[NewSegment, ...], flags: int) -> None:
        fake.kexec_load(entry_phys, [s._replace(data=fake.header) if s.phys == HEADER else s for s in segments], flags)

    monkeypatch.setattr(live_machine, "load_crash_image", load)
    report = update_in_place(live(fake))
    assert report.outcome is Outcome.FAILED
    assert "reload the crash image" in report.sentence
    with pytest.raises(CrashHotplugError, match="not done in place"):
        next(live(fake).reload())
