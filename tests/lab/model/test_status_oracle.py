# SPDX-License-Identifier: MIT
"""The model as an oracle of ``status``: accurate is said of exactly those images that leave a complete dump.

A model machine loads a crash image that a faulty loader made (mutated_image.py), CPUs or memory may come or go, the
product judges the image, and the machine panics.  The capture kernel of the model finds and reads its header as the
real one does, and ``audit`` and the contents decide whether the dump is complete.

``make oracle`` tries many more images.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.vendor.pretty import RepresentationPrinter

from crash_hotplug.core import header_shape, verdict
from crash_hotplug.core.dump import vmcore
from crash_hotplug.core.elf import ElfFormatError
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.steps import run
from crash_hotplug.core.verdict import assess
from crash_hotplug_lab.model.hotplug import add_cpu, add_memory, online_cpu, remove_cpu, remove_memory
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.panic import DumpOutcome, Panic, panic
from crash_hotplug_lab.model.user_space import LoadCall
from tests.lab.model.mutated_image import (
    DIMM,
    LOADED,
    MUTATIONS,
    MutatedImage,
    Mutation,
    backup_region_changed,
    command_line_changed,
    entry_changed,
    entry_missing,
    entry_moved,
    entry_twice,
    memory_map_changed,
    note_changed,
    read_image,
)
from tests.lab.model.mutated_tree import MutatedTree
from tests.lab.planted_fault import planted

FEW = 1_000
EXAMPLES = max(FEW, settings().max_examples)
"""The few are the same ones in every run of the tests; `make oracle` looks for new ones."""
HOTPLUG = ("nothing", "nothing", "CPU 2 is added", "CPU 2 starts", "CPU 1 leaves", "a DIMM comes or goes")


@dataclass(repr=False)
class Case:
    """A machine with a mutated image."""

    story: list[str]
    image: MutatedImage | MutatedTree
    sees_absent_cpus: bool
    """Whether the addresses of the notes of CPUs that are not plugged in can be read."""

    def _repr_pretty_(self, printer: RepresentationPrinter, _cycle: bool) -> None:
        """Print the story: hypothesis reports a failure by it."""
        entries = "\n".join(map(str, self.image.entries))
        printer.text(f"{'; '.join(self.story)}\n{self.image.boot_story}\n{entries}")


@st.composite
def cases(draw: st.DrawFn, only: Mutation | None = None) -> Case:
    """Load an image, mutate it up to three times, and hot-plug.

    :param only: the one mutation to make
    """
    release, loader = draw(st.sampled_from(LOADED))
    has_dimm = draw(st.booleans())
    image = MutatedImage.loaded(release, loader, has_dimm)
    mutations = draw(st.lists(st.sampled_from(MUTATIONS), max_size=3)) if only is None else [only]
    for mutate in mutations:
        mutate(draw, image)
    image.write()
    hotplug = draw(st.sampled_from(HOTPLUG))
    _hotplug(image.machine, hotplug, has_dimm)
    return Case([release, loader.value, *(m.__name__ for m in mutations), hotplug], image, draw(st.booleans()))


def _hotplug(machine: ModelMachine, what: str, has_dimm: bool) -> None:
    if what.startswith("CPU 2"):
        run(add_cpu(machine, 2))
    if what == "CPU 2 starts":
        run(online_cpu(machine, 2))
    elif what == "CPU 1 leaves":
        run(remove_cpu(machine, 1))
    elif what.startswith("a DIMM"):
        run(remove_memory(machine, "dimm") if has_dimm else add_memory(machine, "dimm", DIMM))


def status(case: Case) -> tuple[Verdict, list[str]]:
    """Return the verdict of ``status`` and its reasons."""
    machine = case.image.machine
    try:
        image = read_image(machine)
        view = machine.kernel_view() if case.sees_absent_cpus else machine.sysfs_view()
        comparison = assess(view, image).comparison
    except ElfFormatError as error:  # status reports it as an error, and not as accurate
        return Verdict.NOT_ACCURATE, [str(error)]
    except CannotTellError as error:
        return Verdict.CANNOT_TELL, [str(error)]
    return comparison.verdict, [*(finding.sentence for finding in comparison.findings), *comparison.unchecked]


def contradiction(case: Case) -> str | None:
    """Return how the verdict contradicts the dump of a panic; None where they agree."""
    said, reasons = status(case)
    came_to: Panic = panic(case.image.machine)
    is_complete = came_to.outcome is DumpOutcome.ACCURATE
    message = f"status says {said.value} ({'; '.join(reasons)}), and the panic leaves: {came_to.sentence}"
    if said is Verdict.CANNOT_TELL:
        return None if case.image.is_unreadable and not is_complete else message
    if said is Verdict.NOT_ACCURATE and case.image.elfcorehdr_arguments > 1:
        return None  # two elfcorehdr= are a finding even if the last one is right
    return None if (said is Verdict.ACCURATE) == is_complete else message


def has_contradiction(some: st.SearchStrategy[Case]) -> bool:
    """Whether one of some images contradicts the verdict."""
    few = settings(max_examples=2_000, phases=[Phase.generate], derandomize=True, database=None)
    try:
        find(some, lambda case: contradiction(case) is not None, settings=few)
    except NoSuchExample:
        return False
    return True


@settings(max_examples=EXAMPLES, derandomize=EXAMPLES == FEW, suppress_health_check=list(HealthCheck))
@given(cases())
def test_status_says_accurate_of_exactly_the_images_that_leave_a_complete_dump(case: Case) -> None:
    assert contradiction(case) is None


@pytest.mark.parametrize(("release", "loader"), LOADED)
def test_image_without_a_mutation_is_accurate_and_leaves_a_complete_dump(release: str, loader: LoadCall) -> None:
    image = MutatedImage.loaded(release, loader)
    image.write()
    case = Case([], image, True)
    assert status(case) == (Verdict.ACCURATE, [])
    assert panic(image.machine).outcome is DumpOutcome.ACCURATE


COMMAND_LINE, MAP, NOTE = command_line_changed, memory_map_changed, note_changed
FAULTS: dict[str, tuple[ModuleType, str, str, Mutation]] = {
    "command line is not checked": (verdict, "if image.why_header_not_found is not None:", "if False:", COMMAND_LINE),
    "every image cannot be told": (verdict, "    check = ", '    result.unchecked.append("")\n    check = ', MAP),
    "CPU may be missing": (verdict, "if note is None and cpu.online:", "if False:", entry_missing),
    "memory may be missing": (
        verdict,
        "for missing in difference.only_first.exclude(offline):",
        "for missing in ():",
        entry_missing,
    ),
    "memory may be gone": (verdict, "in difference.only_second.exclude(reserved):", "in ():", entry_changed),
    "memory may be described twice": (header_shape, "if start < last_end and start < end:", "if False:", entry_twice),
    "memory may be read from elsewhere": (
        header_shape,
        "elif p.p_offset != p.p_paddr and",
        "elif False and",
        entry_changed,
    ),
    "sizes may differ": (header_shape, "if p.p_filesz != p.p_memsz or", "if False and p.p_filesz or", entry_changed),
    "backup region may be anywhere": (
        verdict,
        "meant, copied = f",
        "return\n    meant, copied = f",
        backup_region_changed,
    ),
    "notes may be described twice": (
        header_shape,
        "if note.size >= saved.get(note.phys, note.size + 1):",
        "if False:",
        entry_twice,
    ),
    "notes may have any size": (header_shape, "if not 0 < note.size <= _NOTE_LIMIT:", "if False:", NOTE),
    "notes may stand behind memory": (header_shape, "if any(p.p_type != PT_NOTE for", "if any(False for", entry_moved),
    "notes may be the capture kernel's RAM": (verdict, "if notes.intersect(ram):", "if False:", NOTE),
    "header may be the capture kernel's RAM": (verdict, "if at is not None and ram.", "if False and ram.", MAP),
    "low memory may be the capture kernel's RAM": (
        verdict,
        "if in_place.intersect(low).intersect(ram):",
        "if False:",
        backup_region_changed,
    ),
    "capture kernel may use any memory": (verdict, "if not machine.reserves_cma:", "if False:", MAP),
    "capture kernel may have no RAM": (verdict, "if not ram.covers(RangeList([needed])):", "if False:", MAP),
    "vmcoreinfo may be missing": (verdict, "elif machine.vmcoreinfo not in header.notes:", "elif False:", NOTE),
    "audit: vmcoreinfo may be missing": (vmcore, "if not vmcore.vmcoreinfo_text and", "if False and", NOTE),
    "audit: registers may be there twice": (vmcore, "    if twice:", "    if False:", entry_twice),
    "audit: notes may be cut": (vmcore, "elif size < cpu.crash_notes.size:", "elif False:", NOTE),
}


@pytest.mark.parametrize(("module", "right", "wrong", "mutation"), FAULTS.values(), ids=FAULTS)
def test_fault_in_the_verdict_is_found(module: ModuleType, right: str, wrong: str, mutation: Mutation) -> None:
    with planted(module, right, wrong):
        assert has_contradiction(cases(mutation))
