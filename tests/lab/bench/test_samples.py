"""Middle and spread of repeated measurements."""

from __future__ import annotations

import pytest

from crash_hotplug_lab.bench.samples import Spread, ratio_of_medians, spread_of


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([3.0], (3, 3, 3, 3, 3)),
        ([5.0, 1.0, 3.0, 2.0, 4.0], (1, 2, 3, 4, 5)),
        ([1.0, 2.0], (1, 1.25, 1.5, 1.75, 2)),
    ],
)
def test_spread(values: list[float], spread: tuple[float, ...]) -> None:
    assert spread_of(values) == Spread(*spread)


def test_nothing_was_measured() -> None:
    with pytest.raises(ValueError, match="no measurements"):
        spread_of([])


def test_ratio() -> None:
    assert ratio_of_medians([10.0, 30.0, 20.0], [1.0, 2.0, 9.0]) == 10
    assert ratio_of_medians([1.0], [0.0]) is None
