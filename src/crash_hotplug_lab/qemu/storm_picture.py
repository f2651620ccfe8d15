# SPDX-License-Identifier: MIT
"""The time line of the storms of a session as one picture: the state of the crash image under each keeper.

A band for each keeper shows when the loaded image was accurate, stale or missing.  The states differ in hue, lightness
and hatching, so the picture can be read in print and by the colour-blind.  Text is more than 20 pixels high at a width
of 1280 pixels, and 10 at 640.  matplotlib is the ``report`` extra; it is imported where it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crash_hotplug.core.sizes import count
from crash_hotplug_lab.in_guest.image_states import ACCURATE, NO_IMAGE, STALE
from crash_hotplug_lab.qemu.results import Result, StormRecord

FILE = "storm-timeline"
_KEEPERS = {
    "reload": "A reload for each event (kdump-tools)",
    "throttled": "RHEL's throttle: one reload when events pause",
    "watch": "crash-hotplug watch: updates in place",
}
"""The keepers in the order of their bands, and their labels."""
_STYLES: dict[str, dict[str, Any]] = {
    ACCURATE: {"facecolor": "#9ed3f0", "edgecolor": "#9ed3f0", "linewidth": 0},
    STALE: {"facecolor": "#f5a623", "edgecolor": "#5c3a00", "linewidth": 0, "hatch": "////"},
    NO_IMAGE: {"facecolor": "#1c1c1c", "edgecolor": "#1c1c1c", "linewidth": 0},
}
_WORDS = {ACCURATE: "accurate", STALE: "stale", NO_IMAGE: "no image loaded"}
_WIDTH, _DPI = 12.8, 100
_BAND, _GAP = 0.72, 1.22
"""Heights in inches of a band, and of the text between two bands."""
_TOP, _BOTTOM = 2.15, 1.35
"""Heights in inches of title, legend and first label, and of last figures and time axis."""
_TEXT, _SMALL = 18, 16.5
"""Sizes in points."""
_BREAK_FROM = 3.0
"""The time axis is broken where the longest storm takes this many times as long as the others."""


def draw(results: list[Result], directory: Path, facts: dict[str, Any]) -> list[Path]:
    """Draw the storms among some results; return the files, none where there is no storm.

    :param facts: of the host, from the result file
    :raise ModuleNotFoundError: matplotlib is not installed
    """
    order = [*_KEEPERS]
    storms = sorted((r for r in results if r.storm), key=lambda r: order.index(r.storm.keeper if r.storm else ""))
    if not storms:
        return []
    from matplotlib import rc_context  # noqa: PLC0415

    with rc_context({"font.size": _TEXT, "svg.hashsalt": FILE, "hatch.linewidth": 1.6, "axes.linewidth": 1.2}):
        figure = _figure(storms)
        title = f"State of the crash image: {_common_title(storms)}\n{_where(storms, facts)}"
        figure.suptitle(title, fontsize=_TEXT, x=0.02, y=0.985, ha="left", va="top", linespacing=1.3)
        paths = [directory / f"{FILE}.{kind}" for kind in ("svg", "png")]
        for path in paths:
            figure.savefig(path, dpi=_DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def figures(record: StormRecord) -> str:
    """Return the line of figures below a band."""
    after = record.accurate_after
    if after is None:
        accurate = "never accurate again"
    elif after < 0.05:
        accurate = "accurate at the last event"
    else:
        accurate = f"accurate {_seconds(after)} after the last event"
    missing = _seconds(record.share(NO_IMAGE) * record.ended)
    loaded = count(record.images_loaded, "image")
    return f"{loaded} loaded · {_seconds(record.cpu_seconds)} of CPU time · no image for {missing} · {accurate}"


def _seconds(value: float) -> str:
    decimals = 0 if value >= 100 else 1 if value >= 0.1 or value == 0 else 2
    return f"{value:.{decimals}f} s"


def break_at(ends: list[float]) -> float | None:
    """Return where the time axis changes its scale, in seconds; None where one scale fits every storm.

    The longest storm may take 20 times as long as the others, which would be too narrow to be seen.
    """
    *others, longest = sorted(ends)
    if not others or longest < _BREAK_FROM * others[-1]:
        return None
    return float(5 * -(-others[-1] * 1.05 // 5))


def _common_title(storms: list[Result]) -> str:
    """Return the part of the scenarios' titles before the colon, where they agree in it."""
    titles = {result.title.partition(":")[0] for result in storms}
    return titles.pop() if len(titles) == 1 else "storms of memory blocks and CPUs"


def _where(storms: list[Result], facts: dict[str, Any]) -> str:
    kernels = ", ".join(dict.fromkeys(result.kernel_release for result in storms))
    processors = count(int(facts.get("processors", 0)), "processor")
    emulated = "emulated " if facts.get("accelerator") == "tcg" else ""
    return f"kernel {kernels}, {emulated}guest on a host with {processors}"


def _figure(storms: list[Result]) -> Any:  # noqa: ANN401 matplotlib
    from matplotlib.figure import Figure  # noqa: PLC0415

    records = [result.storm for result in storms if result.storm is not None]
    several = len({result.kernel_release for result in storms}) > 1
    labels = [_KEEPERS[r.keeper] + (f", {s.kernel_release}" if several else "") for r, s in zip(records, storms)]
    longest, broken = max(r.ended for r in records), break_at([r.ended for r in records])
    spans = [(0.0, longest)] if broken is None else [(0.0, broken), (broken, longest)]
    height = _TOP + _BAND * len(records) + _GAP * (len(records) - 1) + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height))
    widths = [1.0] if broken is None else [1.15, 1.0]
    grid = figure.subplots(len(records), len(spans), squeeze=False, sharex="col", width_ratios=widths)
    figure.subplots_adjust(left=0.025, right=0.975, top=1 - _TOP / height, bottom=_BOTTOM / height, wspace=0.03,
                           hspace=_GAP / _BAND)  # fmt: skip
    for row, record, label in zip(grid, records, labels):
        for axes, (start, end) in zip(row, spans):
            _band(axes, record, start, end)
        row[0].set_title(label, loc="left", fontsize=_TEXT, fontweight="bold", pad=26)
        row[0].text(0, -0.14, figures(record), fontsize=_SMALL, transform=row[0].transAxes, va="top")
    for axes, (start, end) in zip(grid[-1], spans):
        _time_axis(axes, end - start)
    figure.text(0.5, 0.12 / height, "seconds since the first event" + ("" if broken is None else
                f"; the scale changes at {broken:.0f} s"), ha="center", fontsize=_SMALL)  # fmt: skip
    _legend(figure, height)
    return figure


def _band(axes: Any, record: StormRecord, start: float, end: float) -> None:  # noqa: ANN401 matplotlib
    # Not snapped to pixels and drawn on one bar, so that intervals of less than a pixel blend into a mixed colour
    axes.broken_barh([(0, record.ended)], (0, 1), snap=False, **_STYLES[NO_IMAGE])
    for state in (STALE, ACCURATE):
        bars = [(a, b - a) for a, b, found in record.intervals() if found == state and b > start and a < end]
        axes.broken_barh(bars, (0, 1), snap=False, **_STYLES[state])
    if start <= record.last_event < end:
        axes.axvline(record.last_event, color="#b00020", linewidth=2.5)
        axes.plot(record.last_event, 1.17, marker="v", markersize=12, color="#b00020", clip_on=False)
    if record.ended <= start:
        said = f"measured until {record.ended:.0f} s: {_WORDS[record.states[-1][1]]}"
        axes.text(0.03, 0.5, said, fontsize=_SMALL, color="#444444", transform=axes.transAxes, va="center")
    axes.set_xlim(start, end)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.tick_params(axis="x", length=0, labelbottom=False)
    for side in axes.spines.values():
        side.set_visible(False)


def _time_axis(axes: Any, seconds: float) -> None:  # noqa: ANN401 matplotlib
    from matplotlib.ticker import MultipleLocator  # noqa: PLC0415

    step = next((s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500) if seconds / s <= 7), 1000)
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.spines["bottom"].set_visible(True)
    axes.spines["bottom"].set_position(("outward", 34))  # below the figures
    axes.tick_params(axis="x", length=7, labelbottom=True, labelsize=_SMALL)


def _legend(figure: Any, height: float) -> None:  # noqa: ANN401 matplotlib
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    handles: list[Any] = [Patch(**style, label=_WORDS[state]) for state, style in _STYLES.items()]
    handles.append(Line2D([], [], marker="v", markersize=13, color="#b00020", linestyle="none", label="last event"))
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.012, 1 - 0.82 / height), ncols=4, frameon=False,
                  fontsize=_TEXT, handlelength=1.6, columnspacing=1.4)  # fmt: skip
