# SPDX-License-Identifier: MIT
"""The arm64 model: dumps, interleavings, kills, and faults planted in the shipped update."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest

from crash_hotplug.core import plan, reserved_region
from crash_hotplug.core.arch.architecture import PAGE
from crash_hotplug.core.arch.device_tree import DeviceTree
from crash_hotplug.core.decision import Outcome, Wants
from crash_hotplug.core.finding import Kind
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import run
from crash_hotplug.core.update import update
from crash_hotplug_lab.model.arch.arm64 import ARM64, default_profile
from crash_hotplug_lab.model.arch.arm64_loaders import ELFCOREHDR, is_whole
from crash_hotplug_lab.model.arch.flat_tree import build_tree, cells, read_tree
from crash_hotplug_lab.model.explore import Run, explore
from crash_hotplug_lab.model.fitting import fit
from crash_hotplug_lab.model.hotplug import add_memory, offline_cpu, remove_memory
from crash_hotplug_lab.model.kexec_syscalls import crash_flags, kexec_load
from crash_hotplug_lab.model.kimage import KexecSegment
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.panic import DumpOutcome, Panic, panic
from crash_hotplug_lab.model.simulation import Simulation, run_scenario
from crash_hotplug_lab.model.user_space import Kexec, LoadCall, UserMachine, settle
from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.records import Loading, Scenario
from tests.lab.planted_fault import planted

LOADERS = ("c", "s")
FILE_LOAD = LoadCall.KEXEC_FILE_LOAD
DIMM = Range(2 << 30, (2 << 30) + (256 << 20))
GOOD = {DumpOutcome.ACCURATE, DumpOutcome.STALE, DumpOutcome.NO_DUMP}


def fitted(name: str, loader: str) -> Scenario:
    scenario = read_scenario(name)
    made, refusal = fit(replace(scenario, load=Loading((loader,))), ARM64)
    assert refusal == ""
    return made


def loaded(loader: LoadCall = LoadCall.KEXEC_LOAD) -> ModelMachine:
    machine = boot(default_profile())
    run(Kexec(ARM64.small_capture_kernel(4), loader).load(machine))
    return machine


def updated(machine: ModelMachine) -> Outcome:
    return run(update(UserMachine(machine), Wants())).outcome


def outcome_of(machine: ModelMachine) -> DumpOutcome:
    """Return what a panic now would leave."""
    return panic(machine.copy()).outcome


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("policy", ["in-place", "reload"])
@pytest.mark.parametrize(
    "name", ["hot-add", "eight-dimms", "remove-dimm", "offline-block", "remove-loaded-dimm", "panic-with-cpu-offline"]
)
def test_scenario_leaves_a_complete_dump(name: str, policy: str, loader: str) -> None:
    result = run_scenario(fitted(name, loader), policy, ARM64)
    assert result.panic.outcome is DumpOutcome.ACCURATE, result.panic.sentence


@pytest.mark.parametrize("loader", LOADERS)
def test_header_that_outgrew_its_room_moves_and_leaves_a_complete_dump(loader: str) -> None:
    result = run_scenario(fitted("hundred-dimms", loader), "in-place", ARM64)
    assert result.panic.outcome is DumpOutcome.ACCURATE, result.panic.sentence
    assert {report.outcome for report in result.reports} == {Outcome.UPDATED}
    assert sum("new place" in report.sentence for report in result.reports) == 1


def without_update(name: str, loader: str) -> Panic:
    """Return the panic of a scenario on a machine where nobody updates the header."""
    simulation = Simulation(fitted(name, loader), "in-place", ARM64)
    for action in simulation.scenario.actions:
        run(simulation.start(action))
    return panic(simulation.machine)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["hot-add", "eight-dimms", "offline-block", "panic-with-cpu-offline"])
def test_dimm_is_missing_where_nobody_updates_the_header(name: str, loader: str) -> None:
    came_to = without_update(name, loader)
    assert came_to.outcome is DumpOutcome.STALE
    assert came_to.comparison is not None
    assert {finding.kind for finding in came_to.comparison.findings} == {Kind.MEMORY_MISSING}


@pytest.mark.parametrize("loader", LOADERS)
def test_header_that_describes_gone_memory_leaves_no_dump(loader: str) -> None:
    came_to = without_update("remove-loaded-dimm", loader)
    assert (came_to.outcome, "that is gone" in came_to.sentence) == (DumpOutcome.NO_DUMP, True)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["hot-add", "dimm-removed", "cpu-leaves", "offline-block", "rhel-throttle"])
def test_no_interleaving_of_an_update_leaves_a_torn_image(name: str, loader: str) -> None:
    """Searched to the end; then random ways to a quiet machine, which a service that looks once more leaves right."""
    scenario = fitted(name, loader)
    found = explore(scenario, "in-place", arch=ARM64)
    assert found.complete
    assert set(found.outcomes) <= GOOD
    assert DumpOutcome.ACCURATE in found.at_rest
    randomness = random.Random(1)
    for _ in range(20):
        way = Run(Simulation(scenario, "in-place", ARM64))
        while not way.is_quiet:
            assert way.simulation.machine.key() in found.machines
            way.advance(randomness.choice(way.able))
        assert way.simulation.service is not None
        settle(way.simulation.machine, way.simulation.service)
        assert outcome_of(way.simulation.machine) is DumpOutcome.ACCURATE


def test_another_loader_beside_the_update_leaves_no_torn_image() -> None:
    scenario, refusal = fit(read_scenario("other-loader-with-lock"), ARM64)
    assert refusal == ""
    found = explore(scenario, "in-place", arch=ARM64)
    assert (found.complete, found.never_may_be(scenario)) == (True, 0)


def grown(machine: ModelMachine) -> None:
    run(add_memory(machine, "d0", DIMM))


def grown_beyond_its_room(machine: ModelMachine) -> None:
    add_dimms(machine, 80)


def add_dimms(machine: ModelMachine, number: int) -> None:
    """Add DIMMs with gaps between them."""
    for start in range(DIMM.start, DIMM.start + (number << 28), 1 << 28):
        run(add_memory(machine, f"d{start:x}", Range(start, start + (128 << 20))))


@pytest.mark.parametrize("loader", list(LoadCall))
@pytest.mark.parametrize("change", [grown, grown_beyond_its_room])
def test_update_that_is_killed_leaves_a_usable_image_and_the_next_one_is_right(
    change: Callable[[ModelMachine], None], loader: LoadCall
) -> None:
    """Killed after each step; the kernel completes a kexec_load that has begun."""
    before = loaded(loader)
    change(before)
    killed_at, is_done = 0, False
    while not is_done:
        machine = before.copy()
        steps = update(UserMachine(machine), Wants())
        for taken, _step in enumerate(steps):
            if taken >= killed_at and not machine.kexec_locked:
                break
        else:
            is_done = True
        steps.close()
        machine.flock_taken = False  # the kernel drops it with the process
        assert outcome_of(machine) in {DumpOutcome.ACCURATE, DumpOutcome.STALE}
        updated(machine)
        assert outcome_of(machine) is DumpOutcome.ACCURATE
        killed_at += 1
    assert killed_at > 10


def test_every_load_writes_the_second_page_of_the_hole_and_leaves_the_first() -> None:
    machine = loaded()
    assert machine.crash_image is not None
    kernel_at = machine.profile.reserved.start
    first = machine.memory.read(kernel_at, PAGE)
    assert is_whole(machine.memory, kernel_at)
    header = machine.crash_image.find_elfcorehdr(machine.memory)
    assert header is not None
    listed = [KexecSegment(machine.memory.read(header.phys, 1024), header.phys, PAGE)]
    run(kexec_load(machine, machine.crash_image.kimage.entry_phys, listed, crash_flags(machine.profile, False)))
    assert machine.memory.read(kernel_at, PAGE) == first
    assert not is_whole(machine.memory, kernel_at)
    assert outcome_of(machine) is DumpOutcome.REFUSED


def test_kexec_load_makes_the_device_trees_address_0() -> None:
    machine = loaded(LoadCall.KEXEC_FILE_LOAD)
    image = machine.crash_image
    assert image is not None
    assert image.argument_phys > 0
    assert outcome_of(machine) is DumpOutcome.ACCURATE
    segments = [KexecSegment(machine.memory.read(s.phys, s.memsz), s.phys, s.memsz) for s in image.kimage.segments]
    run(kexec_load(machine, image.kimage.entry_phys, segments, crash_flags(machine.profile, False)))
    came_to = panic(machine)
    assert (came_to.outcome, "no device tree at 0x0" in came_to.sentence) == (DumpOutcome.BROKEN, True)


def rewritten_tree(machine: ModelMachine, room: int) -> None:
    """Give the header another room in the device tree."""
    image = machine.loaded_crash_image()
    assert image is not None
    assert image.boot is not None
    assert image.boot.phys is not None
    tree = read_tree(machine.memory, image.boot.phys)
    place = cells(image.elfcorehdr_phys or 0, room)
    chosen = [(name, place if name == ELFCOREHDR else value) for name, value in tree.chosen]
    machine.memory.write(image.boot.phys, build_tree(chosen))


@pytest.mark.parametrize(("room", "outcome"), [(4096, DumpOutcome.ACCURATE), (560, DumpOutcome.BROKEN)])
def test_header_larger_than_its_room_is_overwritten(room: int, outcome: DumpOutcome) -> None:
    machine = loaded(LoadCall.KEXEC_FILE_LOAD)
    rewritten_tree(machine, room)
    assert outcome_of(machine) is outcome


@pytest.mark.parametrize("part", ["kernel", "initrd"])
def test_damaged_part_of_an_image_without_a_digest_leaves_no_dump(part: str) -> None:
    machine = loaded(LoadCall.KEXEC_FILE_LOAD)
    assert machine.crash_image is not None
    phys = machine.crash_image.kimage.segments[0 if part == "kernel" else 2].phys + PAGE + 7
    machine.memory.write(phys, b"\xcc")
    came_to = panic(machine)
    assert (came_to.outcome, f"{part} at" in came_to.sentence) == (DumpOutcome.BROKEN, True)


def test_offline_cpu_is_described_and_leaves_no_note() -> None:
    machine = loaded()
    run(offline_cpu(machine, 1))
    came_to = panic(machine)
    assert came_to.outcome is DumpOutcome.ACCURATE
    assert came_to.vmcore is not None
    assert len(came_to.vmcore.elfcorehdr.cpu_notes) == 2
    assert came_to.vmcore.notes.count(b"CORE\0") == 1


def test_removed_dimm_is_read_by_no_capture_kernel() -> None:
    machine = loaded()
    grown(machine)
    assert updated(machine) is Outcome.UPDATED
    run(remove_memory(machine, "d0"))
    assert outcome_of(machine) is DumpOutcome.NO_DUMP
    assert updated(machine) is Outcome.UPDATED
    assert outcome_of(machine) is DumpOutcome.ACCURATE


FAULTS: dict[str, tuple[str, ModuleType, str, str, DumpOutcome]] = {
    "control pages overwrite the kernel, with a digest": (
        "c",
        reserved_region,
        "if not hit:",
        "if True:",
        DumpOutcome.REFUSED,
    ),
    "control pages overwrite the kernel, without a digest": (
        "s",
        reserved_region,
        "if not hit:",
        "if True:",
        DumpOutcome.BROKEN,
    ),
    "the start page is left out": (
        "s",
        plan,
        "return _plan_start_page(image, machine, draft, None, place, say)",
        "return _build_plan(draft, machine, True)",
        DumpOutcome.BROKEN,
    ),
    "purgatory starts the kernel at its old place": (
        "c",
        plan,
        "purgatory = with_kernel_at(",
        "with_kernel_at(",
        DumpOutcome.BROKEN,
    ),
    "the kernel moves by half of its alignment": (
        "s",
        reserved_region,
        "place -= (place - segment.phys) % alignment",
        "place -= (place - segment.phys) % (alignment // 2) + alignment // 2",
        DumpOutcome.BROKEN,
    ),
    "the digest has the elfcorehdr": (
        "c",
        plan,
        "without_elfcorehdr(purgatory, kimage, old_place,",
        "without_elfcorehdr(purgatory, kimage, 0,",
        DumpOutcome.REFUSED,
    ),
}


@pytest.mark.parametrize(("loader", "module", "right", "wrong", "outcome"), FAULTS.values(), ids=FAULTS)
def test_fault_in_the_shipped_update_is_found(
    loader: str, module: ModuleType, right: str, wrong: str, outcome: DumpOutcome
) -> None:
    scenario = fitted("offline-block", loader)
    with planted(module, right, wrong):
        found = explore(scenario, "in-place", until_fault=True, arch=ARM64)
    assert found.outcomes[outcome] > 0


@pytest.mark.parametrize(("loader", "dimms", "room"), [(LoadCall.KEXEC_LOAD, 30, PAGE), (FILE_LOAD, 80, 2 * PAGE)])
def test_header_that_grows_over_its_room_is_found(
    loader: LoadCall, dimms: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segment has more bytes than the device tree tells."""
    monkeypatch.setattr(DeviceTree, "elfcorehdr_room", lambda *_: room)
    monkeypatch.setattr(DeviceTree, "_why_not_whole", lambda *_: None)
    machine = loaded(loader)
    add_dimms(machine, dimms)
    updated(machine)
    assert outcome_of(machine) is DumpOutcome.BROKEN


@pytest.mark.parametrize("loader", list(LoadCall))
def test_device_tree_that_keeps_the_headers_old_place_is_found(
    loader: LoadCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The capture kernel reads the old header."""
    monkeypatch.setattr(DeviceTree, "with_elfcorehdr_at", lambda _self, segment, *_: segment)
    monkeypatch.setattr(DeviceTree, "why_elfcorehdr_not_found", lambda *_: None)
    machine = loaded(loader)
    grown_beyond_its_room(machine)
    updated(machine)
    assert outcome_of(machine) is DumpOutcome.STALE
