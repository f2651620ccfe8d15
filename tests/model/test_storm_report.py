"""Tables and JSON of a storm."""

from __future__ import annotations

import json

import pytest

from crash_hotplug.model.storm import StormShape, simulate_storm
from crash_hotplug.model.storm_costs import RFC_2020
from crash_hotplug.model.storm_policies import POLICIES
from crash_hotplug.model.storm_published import WHY_NOT, compare_with_published
from crash_hotplug.model.storm_report import (
    WIDTH,
    describe_seconds,
    describe_shape,
    published_json,
    published_lines,
    storm_json,
    storm_lines,
)
from tests.model.test_storm import DoNothing

SHAPE = StormShape(40, 8)
OUTCOMES = [simulate_storm(SHAPE, RFC_2020, policy) for policy in POLICIES.values()]


def test_table_has_every_policy_with_its_figures() -> None:
    lines = storm_lines(SHAPE, RFC_2020, OUTCOMES)
    rows = [line for line in lines if line.startswith("reload per event")]
    assert len(rows) == 2, "one in each table"
    assert rows[0].split()[5:8] == ["40", "1.9", "s"], "reloads and the time they took: 40 of 47 ms"
    for outcome in OUTCOMES:
        assert sum(line.startswith(outcome.title) for line in lines) == 2
    assert all(len(line) <= WIDTH for line in lines)


def test_every_cost_is_shown_with_its_source() -> None:
    text = " ".join(" ".join(storm_lines(SHAPE, RFC_2020, OUTCOMES)).split())
    for name, cost in RFC_2020.items():
        assert name.replace("_", "-") in text
        assert cost.source in text


def test_a_policy_that_never_gets_there_says_so() -> None:
    outcome = simulate_storm(SHAPE, RFC_2020, DoNothing)
    assert any(line.startswith("nothing") and "never" in line for line in storm_lines(SHAPE, RFC_2020, [outcome]))
    assert storm_json(SHAPE, RFC_2020, [outcome])["policies"][0]["accurate_after_last_event"] is None


def test_json_adds_up() -> None:
    report = json.loads(json.dumps(storm_json(SHAPE, RFC_2020, OUTCOMES)))
    assert (report["blocks"], report["dimms"]) == (40, 5)
    assert [entry["policy"] for entry in report["policies"]] == list(POLICIES)
    for entry in report["policies"]:
        assert entry["accurate"] + entry["stale"] + entry["without_image"] == pytest.approx(entry["done_at"], abs=1e-4)
    assert report["costs"]["reload"]["source"].startswith("181 s / 3840")


def test_published_table_marks_inputs_and_what_is_not_reproduced() -> None:
    lines = published_lines(compare_with_published())
    row = next(line for line in lines if line.startswith("RHEL 8, 480 1 GB DIMMs"))
    assert "419 s" in row
    assert row.count("*") == 1
    assert row.endswith("!")
    assert all(len(line) <= WIDTH for line in lines)
    text = " ".join(" ".join(lines).split())
    assert all(sentence in text for sentence in WHY_NOT)


def test_published_json_has_the_same_verdicts() -> None:
    report = json.loads(json.dumps(published_json(compare_with_published())))
    by_name = {(entry["figure"], entry["source"]): entry for entry in report["figures"]}
    entry = by_name["RHEL 8, 480 1 GB DIMMs, all processed", "RFC"]
    assert entry["simulated"]["rfc-2020"]["reproduced"]
    assert entry["simulated"]["rfc-2020"]["is_an_input"]
    assert not entry["simulated"]["oracle-2024"]["reproduced"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.0, "0 s"), (0.0068, "6.8 ms"), (0.047, "47 ms"), (1.0, "1.0 s"), (389.04, "389.0 s")]
)
def test_seconds_in_words(seconds: float, words: str) -> None:
    assert describe_seconds(seconds) == words


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (StormShape(3840, 8), "3840 memory blocks: 480 DIMMs of 8 memory blocks each"),
        (StormShape(3, 8), "3 memory blocks: 1 DIMM of 3 memory blocks"),
        (StormShape(2, 1), "2 memory blocks: 2 DIMMs of 1 memory block each"),
    ],
)
def test_shape_in_words(shape: StormShape, words: str) -> None:
    assert describe_shape(shape) == words
