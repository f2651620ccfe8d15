"""Repeated measurements: their middle, their spread, and how two sets compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """What a person wants to know of a set of measurements."""

    least: float
    lower_quartile: float
    median: float
    upper_quartile: float
    most: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return least, quartiles and most.

    :raise ValueError: there are no values
    """
    if not values:
        raise ValueError("no measurements")
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(min(values), lower, median, upper, max(values))


def ratio_of_medians(values: Sequence[float], to: Sequence[float]) -> float | None:
    """Return how many times the median of *to* the median of *values* is; None where that is no number."""
    below = statistics.median(to)
    return statistics.median(values) / below if below > 0 else None
