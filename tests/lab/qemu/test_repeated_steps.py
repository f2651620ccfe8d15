"""Steps that a scenario file has repeated."""

from __future__ import annotations

import pytest

from crash_hotplug_lab.qemu import scenario
from crash_hotplug_lab.qemu.errors import ScenarioError
from crash_hotplug_lab.qemu.repeated_steps import written_out

DIMM = {"do": "add-dimm", "name": "d{n}", "size": "128M", "address": "0x100000000"}


def test_numbers_and_addresses() -> None:
    steps = written_out("s", [{"do": "repeat", "times": 3, "address-step": "256M", "step": [DIMM]}], scenario.size)
    assert [(step["name"], step["address"]) for step in steps] == [
        ("d0", 0x1_0000_0000), ("d1", 0x1_1000_0000), ("d2", 0x1_2000_0000),
    ]  # fmt: skip


def test_other_steps_stay_where_they_are() -> None:
    wait, update = {"do": "wait", "seconds": 1}, {"do": "update"}
    steps = written_out("s", [wait, {"do": "repeat", "times": 2, "step": [update, wait]}, update], scenario.size)
    assert [step["do"] for step in steps] == ["wait", "update", "wait", "update", "wait", "update"]


@pytest.mark.parametrize(
    ("repeat", "words"),
    [
        ({"times": 0, "step": [DIMM]}, "times is 0"),
        ({"step": [DIMM]}, "times is None"),
        ({"times": 2}, "repeat needs a list of steps"),
        ({"times": 2, "step": [DIMM], "name": "d"}, "name is not known here"),
        ({"times": 2, "step": [{**DIMM, "address": "high"}]}, "address: 'high' is not a size"),
    ],
)
def test_what_is_wrong(repeat: dict[str, object], words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        written_out("s", [{"do": "repeat", **repeat}], scenario.size)


def test_slots_are_counted_at_their_most() -> None:
    assert scenario.load("hundred-dimms").most_dimms == 100
    assert scenario.load("panic-in-50-updates").most_dimms == 1
