"""Scenario files: every bundled one can be read, and what is wrong with one is said with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crash_hotplug.core.compare import Kind
from crash_hotplug_lab.qemu import scenario
from crash_hotplug_lab.qemu.errors import ScenarioError
from crash_hotplug_lab.qemu.scenario import Scenario

PANIC = {"do": "panic", "cpu": 0}


def parse(**content: object) -> Scenario:
    return scenario.parse("s", {"step": [PANIC], "expect": {"nothing": {}}, **content})


@pytest.mark.parametrize("name", scenario.bundled())
def test_bundled(name: str) -> None:
    found = scenario.load(name)
    assert found.title != name
    assert any(step.action.startswith("panic") for step in found.steps) or found.ends_without_dump


def test_every_class_of_scenario_is_bundled() -> None:
    actions = {step.action for name in scenario.bundled() for step in scenario.load(name).steps}
    assert actions >= {
        "add-cpu", "remove-cpu", "add-dimm", "remove-dimm", "offline-block", "plant", "busy", "update", "flip", "panic",
    }  # fmt: skip


def test_negative_controls_are_bundled() -> None:
    expected = {
        f.kind for name in scenario.bundled() for f in scenario.load(name).expect.get("nothing", _NONE).findings
    }
    assert expected >= {Kind.CPU_MISSING, Kind.MEMORY_MISSING, Kind.MEMORY_GONE}


_NONE = scenario.Expectation()


def test_a_file_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[step]]\ndo = "panic"\ncpu = 1\n[expect.reload]\n')
    found = scenario.load(str(path))
    assert (found.name, found.steps[0].arguments, list(found.expect)) == ("mine", {"cpu": 1}, ["reload"])


@pytest.mark.parametrize(
    ("value", "size"), [("256M", 256 << 20), ("0x100000000", 1 << 32), ("2G", 2 << 30), (4096, 4096), ("64K", 65536)]
)
def test_sizes(value: object, size: int) -> None:
    assert scenario.size("here", value) == size


def test_a_step_as_it_is_shown() -> None:
    step = parse(step=[{"do": "add-dimm", "name": "d0", "size": "256M", "address": "0x100000000"}, PANIC]).steps[0]
    assert str(step) == "add-dimm d0 256M 0x100000000"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"step": []}, "one step, and no other, has to be a panic"),
        ({"step": [PANIC, PANIC]}, "one step, and no other, has to be a panic"),
        ({"step": "panic"}, "step is not a list of tables"),
        ({"step": [{"do": "reboot"}]}, "step 1: do is 'reboot'"),
        ({"step": [{"do": "add-dimm", "name": "d0"}, PANIC]}, "step 1: add-dimm needs size"),
        ({"step": [{"do": "add-dimm", "name": "d0", "size": "big"}, PANIC]}, "step 1: size: 'big' is not a size"),
        ({"step": [{"do": "panic", "cpu": 0, "why": 1}]}, "step 1: why is not known here"),
        ({"step": [{"do": "panic", "cpu": "two"}]}, "step 1: cpu is 'two', not a number"),
        ({"step": [{"do": "flip", "in": "kernel"}, PANIC]}, "step 1: in is 'kernel'"),
        ({"expect": {}}, "expect is missing"),
        ({"expect": {"magic": {}}}, "expect.magic is not known here"),
        ({"expect": {"nothing": {"findings": [{"kind": "odd"}]}}}, "kind 'odd' is no kind of finding"),
        ({"expect": {"nothing": {"findings": [{"kind": "memory-missing", "dimm": "d9"}]}}}, "no step adds the DIMM d9"),
        ({"loaders": ["x"]}, "loaders has x"),
        ({"memory": -1}, "memory: -1 is not a size"),
        ({"step": [{"do": "command"}, PANIC]}, "command needs run"),
        ({"step": [{"do": "command", "run": "update", "code": "one"}, PANIC]}, "code is 'one', not a number"),
        ({"step": [{"do": "command", "run": "update", "image": "odd"}, PANIC]}, "image is 'odd'; known are untouched"),
        ({"speed": 1}, "speed is not known here"),
    ],
)
def test_what_is_wrong_is_said(content: dict[str, Any], words: str) -> None:
    with pytest.raises(ScenarioError, match=r"^s: ") as caught:
        parse(**content)
    assert words in str(caught.value)


def test_no_such_scenario() -> None:
    with pytest.raises(ScenarioError, match=r"there is no scenario nonsense; bundled are .*hot-add"):
        scenario.load("nonsense")


def test_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[[step\n")
    with pytest.raises(ScenarioError, match=r"bad\.toml: .*line 1"):
        scenario.load(str(path))


def test_counted() -> None:
    counted = parse().counted()
    assert (counted.name, counted.counts_instructions, counted.time_limit) == (
        "s-counted",
        True,
        4 * parse().time_limit,
    )
    assert not parse().counts_instructions
