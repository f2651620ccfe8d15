"""The time line of a storm as a picture.  Needs matplotlib, the ``report`` extra; imported only when one is drawn."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.core.sizes import count
from crash_hotplug.model.storm import ImageState, Period, StormOutcome, StormShape
from crash_hotplug.model.storm_costs import PUBLICATIONS, StormCosts
from crash_hotplug.model.storm_report import describe_cost, describe_seconds, describe_shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue, orange and black of Okabe and Ito's palette: told apart by colour-blind people, and in grey by lightness.
_COLOURS = {ImageState.ACCURATE: "#56B4E9", ImageState.STALE: "#E69F00", ImageState.NO_IMAGE: "#000000"}
_LABELS = {
    ImageState.ACCURATE: "accurate: a panic gives a complete dump",
    ImageState.STALE: "stale: memory is missing from the dump",
    ImageState.NO_IMAGE: "no image: no dump",
}
_STEPS = 120
"""About how many time steps the overview has; many changes fall into one, so it shows their shares."""


class MissingLibraryError(CrashHotplugError):
    """matplotlib is not installed."""


def draw_storm(stem: str, shape: StormShape, costs: StormCosts, outcomes: Sequence[StormOutcome]) -> list[str]:
    """Draw the time lines of all policies, one above the other.

    :param stem: the files are *stem*.png and *stem*.svg; their directory is made where it is missing
    :return: the paths written
    :raise MissingLibraryError: matplotlib is not installed
    :raise InputError: a file cannot be written
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  an extra that most users do not have
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise MissingLibraryError("pictures need matplotlib: pip install 'crash-hotplug[report]'") from error
    paths = [f"{stem}.png", f"{stem}.svg"]
    with mpl.rc_context({"svg.hashsalt": "crash-hotplug", "font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(13, 2.6 + 1.75 * len(outcomes)), layout=None)
        _draw(figure, shape, costs, outcomes)
        try:
            os.makedirs(os.path.dirname(stem) or ".", exist_ok=True)
            figure.savefig(paths[0], dpi=130, metadata={"Software": "crash-hotplug"})
            figure.savefig(paths[1], metadata={"Date": None, "Creator": "crash-hotplug"})
        except OSError as error:
            raise InputError(f"{stem}.png and .svg cannot be written: {error.strerror}") from error
    return paths


def zoom_window(shape: StormShape, costs: StormCosts) -> tuple[float, float]:
    """Return [start, end) of the stretch that is shown enlarged: two or three DIMMs in the middle, or the beginning.

    Virtual seconds since the storm began.
    """
    dimm_period = costs.dimm.value + min(shape.blocks_per_dimm, shape.blocks) * costs.event.value
    if shape.dimms < 4:
        return 0.0, min(10.0, max(dimm_period * shape.dimms, 0.001))
    start = (shape.dimms // 2) * dimm_period
    return start, start + max(2.5 * dimm_period, 0.001)


def overview_step(outcome: StormOutcome, dimms: int, horizon: float) -> float:
    """Return the length of a time step in seconds.

    Where there are many DIMMs it is a multiple of four of them: what recurs with each or every other DIMM would
    otherwise show up as a beat that is not there.
    """
    step = horizon / _STEPS
    four_dimms = 4 * outcome.last_event / dimms
    return four_dimms * math.ceil(step / four_dimms) if dimms > _STEPS and four_dimms > 0 else step


def shares_in_steps(periods: Sequence[Period], step: float) -> dict[ImageState, list[float]]:
    """Return for each state the share (0 to 1) that it has of each time step, the first of which begins at 0.

    :param periods: without gaps, from 0 on
    :param step: seconds; the last step may be longer than what is left of the periods
    """
    number_of_steps = max(1, math.ceil(periods[-1].end / step))
    shares = {state: [0.0] * number_of_steps for state in ImageState}
    for start, stop, state in periods:
        first = min(int(start / step), number_of_steps - 1)
        last = min(int(stop / step), number_of_steps - 1)
        for number in range(first, last + 1):
            overlap = min(stop, (number + 1) * step) - max(start, number * step)
            shares[state][number] += max(0.0, overlap) / step
    return shares


def _draw(figure: Figure, shape: StormShape, costs: StormCosts, outcomes: Sequence[StormOutcome]) -> None:
    horizon = max(outcome.end for outcome in outcomes) * 1.03 or 1.0
    window = zoom_window(shape, costs)
    grid = figure.add_gridspec(
        len(outcomes),
        2,
        width_ratios=(2.6, 1),
        left=0.055,
        right=0.985,
        top=0.875,
        bottom=0.22,
        hspace=0.48,
        wspace=0.07,
    )
    for row, outcome in enumerate(outcomes):
        is_last = row == len(outcomes) - 1
        step = overview_step(outcome, shape.dimms, horizon)
        periods = _until(outcome, max(horizon + step, window[1]))
        overview = figure.add_subplot(grid[row, 0])
        _draw_overview(overview, outcome, shares_in_steps(periods, step), step)
        overview.set_xlim(0, horizon)
        enlarged = figure.add_subplot(grid[row, 1])
        _draw_enlarged(enlarged, periods, window)
        enlarged.set_title(_summary(outcome), loc="right", fontsize=9, pad=4)
        for axes in (overview, enlarged):
            axes.tick_params(labelbottom=is_last)
        if is_last:
            overview.set_xlabel("virtual time since the storm began (s)")
            enlarged.set_xlabel("a part of it enlarged (s)")
    _draw_texts(figure, shape, costs)


def _until(outcome: StormOutcome, end: float) -> list[Period]:
    """Return the periods up to *end*: when all is done the last state stays."""
    return [*outcome.periods, Period(outcome.end, max(end, outcome.end), outcome.final_state)]


def _summary(outcome: StormOutcome) -> str:
    after = outcome.accurate_after_last_event
    for_good = (
        "never accurate" if after is None else f"accurate for good {describe_seconds(after)} after the last event"
    )
    shares = ", ".join(
        f"{word} {outcome.share_of(state):.0%}"
        for word, state in zip(("accurate", "stale", "no image"), ImageState)
    )  # fmt: skip
    return f"{count(outcome.replacements, 'replacement')}; {shares}; {for_good}"


def _draw_overview(axes: Axes, outcome: StormOutcome, shares: dict[ImageState, list[float]], step: float) -> None:
    steps = len(shares[ImageState.ACCURATE])
    edges = [step * number for number in range(steps + 1)]
    floor = [0.0] * steps
    for state in (ImageState.NO_IMAGE, ImageState.STALE, ImageState.ACCURATE):
        top = [low + 100 * share for low, share in zip(floor, shares[state])]
        axes.fill_between(edges, [*floor, floor[-1]], [*top, top[-1]], step="post", color=_COLOURS[state], linewidth=0)
        floor = top
    axes.axvline(outcome.last_event, color="white", linewidth=2.6)
    axes.axvline(outcome.last_event, color="#006D4F", linewidth=1.4, linestyle=(0, (4, 2)))
    axes.set(ylim=(0, 100), yticks=(0, 50, 100), ylabel="share of\neach step (%)")
    axes.set_title(outcome.title, loc="left", fontsize=11, fontweight="bold", pad=4)


def _draw_enlarged(axes: Axes, periods: Sequence[Period], window: tuple[float, float]) -> None:
    for state, colour in _COLOURS.items():
        bars = [
            (p.start, p.end - p.start)
            for p in periods
            if p.state is state and p.end > window[0] and p.start < window[1]
        ]
        axes.broken_barh(bars, (0, 1), color=colour, linewidth=0)
    axes.set(xlim=window, ylim=(0, 1), yticks=())
    axes.locator_params(axis="x", nbins=4)


def _draw_texts(figure: Figure, shape: StormShape, costs: StormCosts) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    figure.suptitle(
        f"What a panic finds during a storm of {describe_shape(shape)}",
        x=0.055, y=0.975, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    handles: list[Patch | Line2D] = [Patch(color=_COLOURS[state], label=_LABELS[state]) for state in ImageState]
    handles.append(Line2D([], [], color="#006D4F", linestyle=(0, (4, 2)), label="last memory block online"))
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.048, 0.945), ncols=4, frameon=False, fontsize=9.5
    )
    lines = [
        f"Simulated in virtual time: crash-hotplug simulate --storm {shape.blocks} --dimm-blocks "
        f"{shape.blocks_per_dimm}. Costs and sources (reloads, updates and looks were timed on different machines):"
    ]
    for name, cost in costs.items():
        text = f"{name.replace('_', ' ')} {describe_cost(name, cost)}: {cost.source}"
        lines += textwrap.wrap(text, 195, subsequent_indent="      ")
    figure.text(
        0.055, 0.012, "\n".join([*lines, PUBLICATIONS]), fontsize=7.5, va="bottom", linespacing=1.35, color="#333333"
    )
