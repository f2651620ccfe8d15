# SPDX-License-Identifier: MIT
"""The dump that a panic leaves, and the negative controls: digest, lock, stale and torn headers."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug.core.elf import parse_notes
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.arch.x86_64 import default_profile
from crash_hotplug_lab.model.explore import explore
from crash_hotplug_lab.model.hotplug import add_cpu, add_memory, online_cpu
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.panic import DumpOutcome, panic
from crash_hotplug_lab.model.policies import Merged
from crash_hotplug_lab.model.user_space import Kexec, LoadCall
from crash_hotplug_lab.scenario.records import Action, Scenario

DIMM = Range(4 << 30, (4 << 30) + (128 << 20))
LOADERS = list(LoadCall)


def loaded(loader: LoadCall = LoadCall.KEXEC_LOAD, release: str = "5.10.0-model") -> ModelMachine:
    machine = boot(default_profile(release))
    run(Kexec(small_capture_kernel(), loader).load(machine))
    return machine


@pytest.mark.parametrize("loader", LOADERS)
def test_dump_of_an_unchanged_machine_is_accurate(loader: LoadCall) -> None:
    came_to = panic(loaded(loader))
    assert came_to.outcome is DumpOutcome.ACCURATE
    assert came_to.vmcore is not None
    assert [note.name for note in parse_notes(came_to.vmcore.notes)] == [b"CORE", b"CORE", b"VMCOREINFO"]


@pytest.mark.parametrize("loader", LOADERS)
def test_audit_finds_added_cpu_and_memory_without_an_update(loader: LoadCall) -> None:
    machine = loaded(loader)
    run(add_cpu(machine, 2))
    run(online_cpu(machine, 2))
    run(add_memory(machine, "dimm0", DIMM))
    came_to = panic(machine)
    assert came_to.outcome is DumpOutcome.STALE
    assert came_to.comparison is not None
    assert {finding.kind.value for finding in came_to.comparison.findings} == {"cpu-missing", "memory-missing"}


@pytest.mark.parametrize("loader", LOADERS)
def test_digest_that_covers_the_elfcorehdr_rejects_a_changed_header(loader: LoadCall) -> None:
    machine = loaded(loader)
    image = machine.loaded_crash_image()
    assert image is not None
    assert image.elfcorehdr_phys is not None
    machine.memory.write(image.elfcorehdr_phys + 100, b"\1")
    assert panic(machine).outcome is DumpOutcome.REFUSED


@pytest.mark.parametrize("loader", LOADERS)
def test_digest_rejects_a_flipped_byte_in_any_other_segment(loader: LoadCall) -> None:
    machine = loaded(loader, "6.12.0-model")
    assert machine.crash_image is not None
    kimage = machine.crash_image.kimage
    purgatory = kimage.segment_at(kimage.entry_phys)
    for segment in kimage.segments:
        damaged = machine.copy()
        byte = damaged.memory.read(segment.phys, 1)[0]
        is_elfcorehdr = damaged.memory.read(segment.phys, 4) == b"\x7fELF"
        damaged.memory.write(segment.phys, bytes([byte ^ 1]))
        expected = DumpOutcome.REFUSED
        if is_elfcorehdr and loader is LoadCall.KEXEC_FILE_LOAD:
            expected = DumpOutcome.BROKEN  # 6.6 and newer leave it out of the digest, so that it can be updated
        if segment != purgatory:
            assert panic(damaged).outcome is expected, hex(segment.phys)


def test_panic_with_the_kexec_lock_held_leaves_no_dump() -> None:
    machine = loaded()
    machine.kexec_locked = True
    came_to = panic(machine)
    assert came_to.outcome is DumpOutcome.NO_DUMP
    assert "lock" in came_to.sentence


def test_offline_cpu_leaves_no_note() -> None:
    machine = loaded(LoadCall.KEXEC_FILE_LOAD, "6.12.0-model")
    came_to = panic(machine)
    assert came_to.vmcore is not None
    assert len(came_to.vmcore.elfcorehdr.cpu_notes) == 8
    assert sum(note.name == b"CORE" for note in parse_notes(came_to.vmcore.notes)) == 2


def test_vmcore_file_is_sparse_and_has_the_planted_bytes(tmp_path: Path) -> None:
    machine = loaded()
    machine.memory.write(0x10_0000_0, b"planted")
    vmcore = panic(machine).vmcore
    assert vmcore is not None
    path = tmp_path / "vmcore"
    vmcore.write(str(path))
    assert path.stat().st_size == vmcore.size > 800 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    load = next(p for p in vmcore.program_headers[2:] if p.p_paddr <= 0x10_0000_0 < p.p_paddr + p.p_memsz)
    with path.open("rb") as file:
        file.seek(load.p_offset + 0x10_0000_0 - load.p_paddr)
        assert file.read(7) == b"planted"


SMALL = Scenario("a DIMM", (Action("add-dimm", {"name": "d", "size": 128 << 20}),))


def test_policies_never_end_in_a_torn_header_or_a_wrong_digest() -> None:
    for policy in ("reload", "v6", "merged", "in-place"):
        found = explore(SMALL, policy)
        assert found.complete
        assert found.outcomes[DumpOutcome.BROKEN] == found.outcomes[DumpOutcome.REFUSED] == 0
        assert found.outcomes[DumpOutcome.NO_DUMP] > 0
        assert set(found.at_rest) == {DumpOutcome.ACCURATE}


def test_header_written_while_the_image_is_installed_can_be_torn() -> None:
    machine = loaded(LoadCall.KEXEC_FILE_LOAD, "6.12.0-model")
    install_in_kernel_handler(machine, Merged(), takes_image_out=False)
    outcomes = set()
    for _step in add_memory(machine, "dimm0", DIMM):
        copied = machine.copy()
        copied.kexec_locked = False  # as if the panic did not ask for the lock
        outcomes.add(panic(copied).outcome)
    assert DumpOutcome.BROKEN in outcomes


def test_removed_memory_stays_described_by_merged_and_not_by_in_place() -> None:
    removed = Scenario("", (*SMALL.actions, Action("remove-dimm", {"name": "d"})))
    assert set(explore(removed, "merged").at_rest) == {DumpOutcome.STALE}
    assert DumpOutcome.ACCURATE in explore(removed, "in-place").at_rest
