"""The results of a storm as lines for people and as objects for JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from crash_hotplug.core.sizes import count
from crash_hotplug.model.storm import ImageState, StormOutcome, StormShape
from crash_hotplug.model.storm_costs import PUBLICATIONS, Cost, StormCosts
from crash_hotplug.model.storm_published import TOLERANCE, WHY_NOT, ComparedFigure

WIDTH = 110
"""Columns that text is wrapped to."""
_NOTE = (
    "Virtual time. replaced: reloads or updates. stale, no image: how long a panic would have found the image so; an "
    "image is accurate when it describes all RAM in /proc/iomem. longest gap: the longest time without an image. "
    "accurate after: from the last event until the image is accurate for good."
)


def storm_lines(shape: StormShape, costs: StormCosts, outcomes: Sequence[StormOutcome]) -> list[str]:
    """Return the table of a storm, its notes and its costs."""
    lines = [f"A storm of {describe_shape(shape)}", ""]
    heads = ["policy", "replaced", "busy", "stale", "no image", "longest gap", "accurate after", "done at"]
    lines += _table(heads, [_row(outcome) for outcome in outcomes])
    lines += ["", *textwrap.wrap(_NOTE, WIDTH), ""]
    heads = ["a panic at a random moment until then finds", *(state.value for state in ImageState)]
    lines += _table(heads, [[o.title, *(f"{o.share_of(state):.1%}" for state in ImageState)] for o in outcomes])
    lines += ["", "Costs (reloads, updates and looks were timed on different machines)"]
    for name, cost in costs.items():
        lines += textwrap.wrap(
            f"{name.replace('_', '-'):<16} {describe_cost(name, cost):>8}  {cost.source}",
            WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * 29,
        )
    return [*lines, *textwrap.wrap(PUBLICATIONS, WIDTH, initial_indent="  ", subsequent_indent="  ")]


def describe_shape(shape: StormShape) -> str:
    """Return the storm in words."""
    size = count(shape.blocks_per_dimm if shape.dimms > 1 else shape.blocks, "memory block")
    dimms = f"{count(shape.dimms, 'DIMM')} of {size}" + (" each" if shape.dimms > 1 else "")
    return f"{count(shape.blocks, 'memory block')}: {dimms}"


def describe_cost(name: str, cost: Cost) -> str:
    """Return a cost with its unit."""
    return f"{cost.value:.0%}" if name == "reload_gap" else describe_seconds(cost.value)


def describe_seconds(seconds: float) -> str:
    """Return seconds, or milliseconds below one second.

    >>> describe_seconds(181), describe_seconds(0.0471), describe_seconds(0.0068)
    ('181.0 s', '47 ms', '6.8 ms')
    """
    if seconds >= 1 or seconds == 0:
        return f"{seconds:.1f} s" if seconds else "0 s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def published_lines(compared: Sequence[ComparedFigure]) -> list[str]:
    """Return the table of published and simulated figures, and what it shows."""
    names = list(compared[0].simulated)
    rows = []
    for entry in compared:
        figure = entry.figure
        value = f"{figure.value:g}{' s' if figure.unit == 's' else ''}"
        cells = [_compared_cell(entry, name) for name in names]
        rows.append([figure.what, figure.source, ("about " if figure.is_estimate else "") + value, *cells])
    lines = ["A guest that grows from 32 to 512 GiB, published and simulated", ""]
    lines += _table(["figure", "source", "published", *names], rows, left=2)
    lines += [
        "",
        *textwrap.wrap(
            "* a cost of that column was derived from this very figure: agreement shows only that the mechanism fits. "
            f"! more than {TOLERANCE:.0%} off: not reproduced. about: its author's estimate, not a count.",
            WIDTH,
        ),
        *textwrap.wrap(PUBLICATIONS, WIDTH),
        "",
    ]
    for sentence in WHY_NOT:
        lines += textwrap.wrap(sentence, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return lines


def storm_json(shape: StormShape, costs: StormCosts, outcomes: Sequence[StormOutcome]) -> dict[str, Any]:
    """Return a storm and its results for JSON; times in virtual seconds since it began."""
    return {
        "blocks": shape.blocks,
        "blocks_per_dimm": shape.blocks_per_dimm,
        "dimms": shape.dimms,
        "costs": {name: {"value": cost.value, "source": cost.source} for name, cost in costs.items()},
        "policies": [_outcome_json(outcome) for outcome in outcomes],
    }


def published_json(compared: Sequence[ComparedFigure]) -> dict[str, Any]:
    """Return the comparison for JSON."""
    return {
        "figures": [
            {
                "figure": entry.figure.what,
                "source": entry.figure.source,
                "published": entry.figure.value,
                "unit": entry.figure.unit,
                "is_estimate": entry.figure.is_estimate,
                "simulated": {
                    name: {
                        "value": round(value, 3),
                        "reproduced": entry.is_reproduced(name),
                        "is_an_input": name in entry.figure.is_an_input_of,
                    }
                    for name, value in entry.simulated.items()
                },
            }
            for entry in compared
        ],
        "remarks": list(WHY_NOT),
    }


def _outcome_json(outcome: StormOutcome) -> dict[str, Any]:
    return {
        "policy": outcome.policy,
        "replacements": outcome.replacements,
        "busy": round(outcome.busy, 6),
        "accurate": round(outcome.time_in(ImageState.ACCURATE), 6),
        "stale": round(outcome.time_in(ImageState.STALE), 6),
        "without_image": round(outcome.time_in(ImageState.NO_IMAGE), 6),
        "longest_without_image": round(outcome.longest_without_image, 6),
        "last_event": round(outcome.last_event, 6),
        "accurate_after_last_event": _rounded(outcome.accurate_after_last_event),
        "done_at": round(outcome.end, 6),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def _row(outcome: StormOutcome) -> list[str]:
    after = outcome.accurate_after_last_event
    return [
        outcome.title,
        str(outcome.replacements),
        describe_seconds(outcome.busy),
        describe_seconds(outcome.time_in(ImageState.STALE)),
        describe_seconds(outcome.time_in(ImageState.NO_IMAGE)),
        describe_seconds(outcome.longest_without_image),
        "never" if after is None else describe_seconds(after),
        describe_seconds(outcome.end),
    ]


def _compared_cell(entry: ComparedFigure, name: str) -> str:
    value = entry.simulated[name]
    text = f"{value:.1f} s" if entry.figure.unit == "s" else f"{value:.0f}"
    mark = "*" if name in entry.figure.is_an_input_of else " "
    mark += " " if entry.is_reproduced(name) else "!"
    return f"{text} ({entry.difference(name):+5.0%}){mark}"


def _table(heads: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Return aligned lines; the first *left* columns are left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in [heads, *rows]
    ]
