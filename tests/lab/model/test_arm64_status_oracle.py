# SPDX-License-Identifier: MIT
"""The model as an oracle of ``status`` on arm64: accurate is said of exactly the images that leave a complete dump.

The same property as in test_status_oracle.py, with images whose device tree a faulty loader made (mutated_tree.py).
"""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crash_hotplug.core import verdict
from crash_hotplug.core.arch import device_tree
from crash_hotplug.core.arch.device_tree import DeviceTree
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.steps import run
from crash_hotplug_lab.model.hotplug import add_memory, offline_cpu, remove_memory
from crash_hotplug_lab.model.panic import DumpOutcome, panic
from crash_hotplug_lab.model.user_space import LoadCall
from tests.lab.model.mutated_image import DIMM
from tests.lab.model.mutated_tree import MUTATIONS, MutatedTree, TreeMutation, place_twice, usable_memory_changed
from tests.lab.model.test_status_oracle import EXAMPLES, FEW, Case, contradiction, has_contradiction, status
from tests.lab.planted_fault import planted

RELEASE = "6.12.0-model"
HOTPLUG = ("nothing", "CPU 1 goes offline", "a DIMM comes or goes")


@st.composite
def cases(draw: st.DrawFn, only: TreeMutation | None = None) -> Case:
    """Load an image, mutate it up to three times, and hot-plug.

    :param only: the one mutation to make
    """
    loader = draw(st.sampled_from(list(LoadCall)))
    has_dimm = draw(st.booleans())
    image = MutatedTree.loaded(RELEASE, loader, has_dimm)
    mutations = draw(st.lists(st.sampled_from(MUTATIONS), max_size=3)) if only is None else [only]
    for mutate in mutations:
        mutate(draw, image)
    image.write()
    hotplug = draw(st.sampled_from(HOTPLUG))
    if hotplug.startswith("CPU 1"):
        run(offline_cpu(image.machine, 1))
    elif hotplug.startswith("a DIMM"):
        machine = image.machine
        run(remove_memory(machine, "dimm") if has_dimm else add_memory(machine, "dimm", DIMM))
    return Case([loader.value, *(m.__name__ for m in mutations), hotplug], image, sees_absent_cpus=True)


@settings(max_examples=EXAMPLES, derandomize=EXAMPLES == FEW, suppress_health_check=list(HealthCheck))
@given(cases())
def test_status_says_accurate_of_exactly_the_images_that_leave_a_complete_dump(case: Case) -> None:
    assert contradiction(case) is None


@pytest.mark.parametrize("loader", list(LoadCall))
def test_image_without_a_mutation_is_accurate_and_leaves_a_complete_dump(loader: LoadCall) -> None:
    image = MutatedTree.loaded(RELEASE, loader)
    image.write()
    assert status(Case([], image, sees_absent_cpus=True)) == (Verdict.ACCURATE, [])
    assert panic(image.machine).outcome is DumpOutcome.ACCURATE


FAULTS: dict[str, tuple[ModuleType, str, str, TreeMutation]] = {
    "last property may count": (device_tree, "values.setdefault(name, value)", "values[name] = value", place_twice),
    "place is not checked": (verdict, "if image.why_header_not_found is not None:", "if False:", usable_memory_changed),
    "capture kernel may use any memory": (verdict, "if not machine.reserves_cma:", "if False:", usable_memory_changed),
    "capture kernel may have no RAM": (
        verdict,
        "if not ram.covers(RangeList([needed])):",
        "if False:",
        usable_memory_changed,
    ),
}


@pytest.mark.parametrize(("module", "right", "wrong", "mutation"), FAULTS.values(), ids=FAULTS)
def test_fault_in_the_verdict_is_found(module: ModuleType, right: str, wrong: str, mutation: TreeMutation) -> None:
    with planted(module, right, wrong):
        assert has_contradiction(cases(mutation))


def test_header_that_may_lie_outside_of_the_capture_kernels_ram_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceTree, "_why_not_whole", lambda *_: None)
    assert has_contradiction(cases(usable_memory_changed))
