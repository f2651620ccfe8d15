# SPDX-License-Identifier: MIT
"""A header that outgrew its segment moves: an update in place on a machine of files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from crash_hotplug.core.arch.boot_params import ZeroPage, e820_table
from crash_hotplug.core.decision import Outcome, Wants
from crash_hotplug.core.elfcorehdr import parse_elfcorehdr
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.image import elfcorehdr_room
from crash_hotplug.core.plan import room_for
from crash_hotplug.core.reload import make_ready
from crash_hotplug.core.update import update
from crash_hotplug.core.verdict import assess
from crash_hotplug.linux.loading.live_machine import run_patiently
from crash_hotplug.linux.loading.system_calls import KexecError
from crash_hotplug.linux.machine_reader import read_machine
from tests.linux.fake_kexec import HEADER, INITRD, KIMAGE_PHYS, FakeKexec

FULL = Wants(verify_full=True)


def test_header_that_outgrew_its_segment_moves_once(fake: FakeKexec) -> None:
    fake.add_ranges(400)
    report = fake.update()
    assert (report.outcome, "at a new place" in report.sentence) == (Outcome.UPDATED, True)
    machine = read_machine(fake.sysroot)
    image = fake.image()
    assert assess(machine, image).comparison.verdict is Verdict.ACCURATE
    place = image.elfcorehdr_phys or 0
    assert place != HEADER
    assert f"elfcorehdr={place >> 10}K" in (image.cmdline or "")
    assert [kind for r, kind in e820_table(cast("ZeroPage", image.boot).page or b"") if r.start == place] == [2]
    assert fake.digest_fits()
    assert len(fake.loads) == 1
    fake.add_ranges(500)
    assert fake.update(FULL).outcome is Outcome.UPDATED
    assert fake.image().elfcorehdr_phys == place
    assert fake.digest_fits()


def test_room_fits_the_requested_number_of_ranges(fake: FakeKexec) -> None:
    fake.add_ranges(400)
    assert fake.update(Wants(memory_ranges=1000)).outcome is Outcome.UPDATED
    machine = read_machine(fake.sysroot)
    image = fake.image()
    assert elfcorehdr_room(image, machine.crashkernel, None) == room_for(len(machine.cpus), 1000)


def test_room_grows_beyond_the_requested_number_of_ranges(fake: FakeKexec) -> None:
    fake.add_ranges(400)
    assert fake.update(Wants(memory_ranges=1)).outcome is Outcome.UPDATED
    assert fake.verdict() is Verdict.ACCURATE


def test_room_in_bytes_is_rounded_up_to_pages(fake: FakeKexec) -> None:
    assert run_patiently(make_ready(fake.machine(), Wants(hotplug_size=0x21001))) is None
    machine = read_machine(fake.sysroot)
    image = fake.image()
    assert elfcorehdr_room(image, machine.crashkernel, None) == 0x22000
    assert run_patiently(make_ready(fake.machine(), Wants(hotplug_size=0x10000))) is None
    assert fake.verdict() is Verdict.ACCURATE
    assert len(fake.loads) == 1


def described_cpus(fake: FakeKexec) -> int:
    image = fake.image()
    return len(parse_elfcorehdr(image.elfcorehdr).cpu_notes)


def test_header_without_room_for_every_possible_cpu_moves(fake: FakeKexec) -> None:
    fake.make_possible(300)
    report = fake.update()
    assert (report.outcome, "at a new place" in report.sentence) == (Outcome.UPDATED, True)
    assert described_cpus(fake) == 300
    assert fake.digest_fits()
    assert fake.update().outcome is Outcome.UNCHANGED
    assert len(fake.loads) == 1


def test_present_cpus_are_described_where_the_header_cannot_move(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path, has_free_place=False)
    fake.make_possible(300)
    report = fake.update()
    assert report.outcome is Outcome.UPDATED
    assert "; present CPUs only, because it cannot move: the reserved region has no free place" in report.sentence
    assert described_cpus(fake) == len(read_machine(fake.sysroot).present_cpus)
    assert fake.verdict() is Verdict.ACCURATE
    assert fake.update().outcome is Outcome.UNCHANGED
    assert len(fake.loads) == 1


def test_failed_move_is_not_followed_by_another_load(fake: FakeKexec) -> None:
    def refuse() -> None:
        tried.append("move")
        raise KexecError(22)

    tried: list[str] = []
    fake.make_possible(300)
    fake.before_load = refuse
    assert fake.update().outcome is Outcome.FAILED
    assert tried == ["move"]


def test_torn_move_is_not_followed_by_another_load(fake: FakeKexec) -> None:
    fake.make_possible(300)
    fake.before_load = lambda: fake.flip_bit(INITRD)
    assert fake.update().outcome is Outcome.TORN
    assert len(fake.loads) == 1


@pytest.mark.parametrize(("changes", "outcome"), [(1, Outcome.UPDATED), (1000, Outcome.FAILED)])
def test_move_starts_again_if_the_image_changed(fake: FakeKexec, changes: int, outcome: Outcome) -> None:
    left = list(range(changes))
    fake.make_possible(300)
    steps = update(fake.machine())
    report = None
    while report is None:
        try:
            if next(steps).name == "update: planned" and left:
                fake.write(KIMAGE_PHYS + 0x28, bytes([left.pop() % 200 + 1]))
        except StopIteration as stop:
            report = stop.value
    assert report.outcome is outcome
    assert len(fake.loads) == (outcome is Outcome.UPDATED)


def test_move_without_a_free_place_changes_nothing(tmp_path: Path) -> None:
    fake = FakeKexec(tmp_path, has_free_place=False)
    fake.add_ranges(400)
    report = fake.update()
    assert report.outcome is Outcome.NO_ROOM
    assert "it cannot move: the reserved region has no free place" in report.sentence
    assert fake.loads == []
