"""Which runs there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from crash_hotplug_lab.qemu import plan, scenario
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.kernels import Kernel


def kernel(key: str) -> Kernel:
    return Kernel(key, "1", f"{key}.0-cloud-amd64", Path("vmlinuz"), Path("modules"), "trixie")


def planned(name: str, key: str, loaders: list[str], updates: list[str]) -> list[tuple[str, str, bool]]:
    runs = plan.plan([scenario.load(name)], [kernel(key)], loaders, updates)
    return [(run.loader, run.update, bool(run.skipped)) for run in runs]


def test_the_natural_loader_and_every_update() -> None:
    assert planned("hot-add", "6.1", [], []) == [
        ("c", "nothing", False),
        ("c", "reload", False),
        ("c", "in-place", False),
        ("c", "watch", False),
    ]
    assert planned("hot-add", "6.12", [], []) == [
        ("s", "kernel", False),
        ("s", "reload", False),
        ("s", "in-place", False),
        ("s", "watch", False),
    ]


def test_an_image_loaded_without_hotplug_is_left_alone_by_every_kernel() -> None:
    assert planned("hot-add", "6.12", ["c"], ["nothing", "kernel"]) == [("c", "nothing", False)]


def test_combinations_known_not_to_work_are_skipped_with_a_reason() -> None:
    assert planned("hot-add", "6.1", ["all"], ["nothing"]) == [
        ("c", "nothing", False),
        ("s", "nothing", False),
        ("ch", "nothing", True),
    ]


def test_every_known_combination_has_a_reason() -> None:
    assert all(known.reason for known in plan.KNOWN_BROKEN)


def test_only_updates_with_an_expectation() -> None:
    assert planned("flipped-byte", "6.12", [], []) == [("s", "kernel", False)]


def test_in_place_runs_with_every_loader() -> None:
    assert planned("hot-add", "6.12", ["all"], ["in-place"]) == [(name, "in-place", False) for name in ("c", "s", "ch")]


def test_no_such_loader() -> None:
    with pytest.raises(LabError, match="no loader is known as grub"):
        planned("hot-add", "6.1", ["grub"], [])


def test_repeated_runs_have_names_of_their_own() -> None:
    runs = plan.plan([scenario.load("panic-in-a-storm")], [kernel("6.1")], [], ["reload"], repeat=3)
    assert [run.name for run in runs] == [f"panic-in-a-storm-6.1-c-reload-{n}" for n in (1, 2, 3)]


def test_our_own_load_is_for_who_asks_and_for_scenarios_about_it() -> None:
    assert ("own", "in-place", False) not in planned("hot-add", "6.12", ["all"], ["in-place"])
    assert planned("hot-add", "6.12", ["own"], ["in-place"]) == [("own", "in-place", False)]
    assert planned("own-load", "6.12", [], []) == [("own", "kernel", False), ("own", "in-place", False)]
    assert planned("own-load", "6.1", [], []) == [("own", "nothing", False), ("own", "in-place", False)]
