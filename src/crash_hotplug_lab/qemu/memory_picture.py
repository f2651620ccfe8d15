# SPDX-License-Identifier: MIT
"""The physical memory map of a run, described against present: a bar for each moment, and a picture of the vmcore."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from crash_hotplug.core.picture.states import CpuRow, Picture, State, with_memory
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.sizes import human_size

_WIDTH, _LEFT, _BAR, _STEP = 960.0, 120.0, 20.0, 34.0
_GAP, _LEAST = 16.0, 5.0
_STATES = {
    "ok": "present and described",
    "missing": "present, not described: a dump lacks it",
    "gone": "described, not present",
    "crash": "reserved for the crash kernel, not described",
}


@dataclass(frozen=True)
class Bar:
    """The memory at one moment, and the ranges of the header or of the vmcore."""

    label: str
    present: RangeList
    described: RangeList
    crashkernel: RangeList

    def parts(self) -> dict[str, RangeList]:
        """Return the ranges in each state."""
        there = self.present.exclude(self.crashkernel)
        low = RangeList([(0, 1 << 20)])  # the capture kernel's own; the kernel's loader leaves it out
        return {
            "ok": self.described.intersect(there),
            "missing": there.exclude(self.described).exclude(low),
            "gone": self.described.exclude(self.present),
            "crash": self.crashkernel,
        }


def svg(bars: list[Bar]) -> str:
    """Return the picture; gaps between ranges are drawn narrow, and small ranges wide enough to be seen."""
    scale = _Scale(bars)
    height = _STEP * len(bars) + 26
    out = [f'<svg class="memory" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img" aria-label="physical memory map">']
    for number, bar in enumerate(bars):
        top = number * _STEP + 4
        out.append(f'<text x="0" y="{top + 15:.0f}">{escape(bar.label)}</text>')
        for state, ranges in bar.parts().items():
            out += [_rectangle(state, r, scale, top) for r in ranges]
    for x in scale.gaps:
        out.append(f'<text class="gap" x="{x:.1f}" y="{_STEP * len(bars) - 14:.0f}">⋯</text>')
    last = -100.0
    for address, x in scale.marks:
        if x - last > 92:
            last = x
            out.append(f'<text class="mark" x="{x:.1f}" y="{height - 8:.0f}">{address:#x}</text>')
    return "".join([*out, "</svg>"])


def dump_picture(title: str, subtitle: str, dump: Bar, missing_cpus: Iterable[int]) -> Picture:
    """Return the picture of a vmcore, as ``audit --picture`` draws it."""
    parts = dump.parts()
    memory = {
        State.MISSING: parts["missing"],
        State.GONE: parts["gone"],
        State.CRASHKERNEL: parts["crash"],
        State.SAVED: parts["ok"],
    }
    drawn = RangeList(r for ranges in memory.values() for r in ranges)
    memory[State.LOW_MEMORY] = dump.present.exclude(drawn)
    numbers = tuple(sorted(missing_cpus))
    cpus = (CpuRow(State.MISSING, numbers, len(numbers)),) if numbers else ()
    return with_memory(Picture(title, subtitle, gap="hole: not described", cpus=cpus), memory)


def legend() -> str:
    """Return the legend of the colours as HTML."""
    return "".join(f'<span class="key {state}"></span>{escape(words)} ' for state, words in _STATES.items())


def _rectangle(state: str, part: Range, scale: _Scale, top: float) -> str:
    left, right = scale.x(part.start), scale.x(part.end)
    title = f"{part.start:#x} to {part.end:#x}, {human_size(part.size)}: {_STATES[state]}"
    return (
        f'<rect class="{state}" x="{left:.1f}" y="{top:.0f}" width="{max(right - left, 0.5):.1f}" height="{_BAR:.0f}">'
        f"<title>{escape(title)}</title></rect>"
    )


class _Scale:
    """Return the horizontal position of a physical address in the picture."""

    def __init__(self, bars: list[Bar]) -> None:
        parts = [ranges for bar in bars for ranges in bar.parts().values()]
        used = RangeList([r for ranges in parts for r in ranges])
        edges = sorted({edge for ranges in parts for r in ranges for edge in (r.start, r.end)})
        pieces = [(a, b, used.contains(a)) for a, b in zip(edges, edges[1:])]
        total = sum(b - a for a, b, filled in pieces if filled) or 1
        gaps = sum(1 for *_, filled in pieces if not filled)
        room = _WIDTH - _LEFT - gaps * _GAP - _LEAST * len(pieces)
        self._places: list[tuple[int, int, float, float]] = []
        self.gaps: list[float] = []
        self.marks: list[tuple[int, float]] = []
        x, was_filled = _LEFT, False
        for start, end, filled in pieces:
            width = _LEAST + room * (end - start) / total if filled else _GAP
            self._places.append((start, end, x, x + width))
            if not filled:
                self.gaps.append(x + 2)
            if filled and not was_filled:
                self.marks.append((start, x))
            x, was_filled = x + width, filled

    def x(self, address: int) -> float:
        """Return the horizontal place of an edge."""
        for start, end, left, right in self._places:
            if start <= address < end:
                return left
            if address == end:
                return right
        return _LEFT
