"""The picture of a storm."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.errors import InputError
from crash_hotplug.model.storm import ImageState, Period, StormOutcome, StormShape, simulate_storm
from crash_hotplug.model.storm_costs import RFC_2020
from crash_hotplug.model.storm_drawing import (
    MissingLibraryError,
    draw_storm,
    overview_step,
    shares_in_steps,
    zoom_window,
)
from crash_hotplug.model.storm_policies import POLICIES
from tests.model.test_storm import DoNothing

SHAPE = StormShape(24, 8)


def outcomes(shape: StormShape = SHAPE) -> list[StormOutcome]:
    return [simulate_storm(shape, RFC_2020, policy) for policy in POLICIES.values()]


def svg_texts(path: str) -> str:
    """Return what is written in the picture: matplotlib keeps each text as a comment beside its glyphs."""
    return Path(path).read_text(encoding="utf-8")


def test_both_files_are_drawn_and_say_what_they_show(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png, svg = draw_storm(str(tmp_path / "new" / "storm"), SHAPE, RFC_2020, outcomes())
    assert Path(png).read_bytes().startswith(b"\x89PNG\r\n")
    ET.parse(svg)
    text = svg_texts(svg)
    for policy in outcomes():
        assert policy.title in text
    for words in (
        "24 memory blocks",
        "virtual time since the storm began (s)",
        "Costs and sources",
        "last memory block",
    ):
        assert words in text
    for colour in ("#56b4e9", "#e69f00", "#000000"):
        assert colour in text


def test_the_same_storm_gives_the_same_picture_and_another_another(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = [
        draw_storm(str(tmp_path / name), SHAPE, RFC_2020, results)[1]
        for name, results in (("a", outcomes()), ("b", outcomes()), ("c", outcomes()[:2]))
    ]
    first, second, other = (Path(path).read_bytes() for path in paths)
    assert first == second
    assert first != other


@pytest.mark.parametrize(("blocks", "per_dimm"), [(1, 1), (3, 8), (1300, 8)])
def test_any_shape_can_be_drawn(tmp_path: Path, blocks: int, per_dimm: int) -> None:
    pytest.importorskip("matplotlib")
    shape = StormShape(blocks, per_dimm)
    draw_storm(str(tmp_path / "storm"), shape, RFC_2020, outcomes(shape))


def test_storm_without_time_and_policy_without_success_can_be_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    free = RFC_2020.with_values({name: 0.0 for name, _ in RFC_2020.items()})
    _, svg = draw_storm(str(tmp_path / "storm"), SHAPE, free, [simulate_storm(SHAPE, free, DoNothing)])
    assert "never accurate" in svg_texts(svg)


def test_missing_library_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingLibraryError, match=r"need matplotlib: pip install 'crash-hotplug\[report\]'"):
        draw_storm(str(tmp_path / "storm"), SHAPE, RFC_2020, outcomes())
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("", encoding="ascii")
    with pytest.raises(InputError, match="cannot be written"):
        draw_storm(str(tmp_path / "file" / "storm"), SHAPE, RFC_2020, outcomes())


def test_shares_of_a_step() -> None:
    periods = [
        Period(0.0, 1.5, ImageState.ACCURATE),
        Period(1.5, 1.75, ImageState.NO_IMAGE),
        Period(1.75, 3.0, ImageState.STALE),
    ]
    shares = shares_in_steps(periods, 1.0)
    assert shares[ImageState.ACCURATE] == pytest.approx([1.0, 0.5, 0.0])
    assert shares[ImageState.NO_IMAGE] == pytest.approx([0.0, 0.25, 0.0])
    assert shares[ImageState.STALE] == pytest.approx([0.0, 0.25, 1.0])


@given(
    st.lists(st.tuples(st.integers(1, 999), st.sampled_from(ImageState)), min_size=1, max_size=30), st.integers(1, 40)
)
def test_shares_hold_all_of_the_time(lengths: list[tuple[int, ImageState]], number_of_steps: int) -> None:
    periods, start = [], 0.0
    for length, state in lengths:
        periods.append(Period(start, start + length / 100, state))
        start += length / 100
    step = start / number_of_steps
    shares = shares_in_steps(periods, step)
    for state in ImageState:
        expected = sum(period.end - period.start for period in periods if period.state is state)
        assert sum(shares[state]) * step == pytest.approx(expected)


def test_steps_hold_whole_dimms_where_there_are_many() -> None:
    """Steps of any other length would show a beat of DIMMs and steps that is not there."""
    shape = StormShape(3840, 8)
    outcome = simulate_storm(shape, RFC_2020, POLICIES["reload"])
    step = overview_step(outcome, shape.dimms, outcome.end)
    gaps = shares_in_steps(outcome.periods, step)[ImageState.NO_IMAGE][1:-2]
    assert max(gaps) - min(gaps) < 0.001
    beats = shares_in_steps(outcome.periods, outcome.end / 320)[ImageState.NO_IMAGE][1:-2]
    assert max(beats) - min(beats) > 0.02


@pytest.mark.parametrize("shape", [StormShape(1, 1), SHAPE, StormShape(3840, 8), StormShape(3840, 3840)])
def test_enlarged_part_lies_in_the_storm(shape: StormShape) -> None:
    start, end = zoom_window(shape, RFC_2020)
    assert 0 <= start < end
    assert start < simulate_storm(shape, RFC_2020, POLICIES["in-place"]).last_event
