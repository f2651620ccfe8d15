# SPDX-License-Identifier: MIT
"""A picture as SVG: memory as bands from the lowest address down to the highest, CPUs as boxes, and a legend.

Each state has a word and a pattern besides its colour: a picture is readable in print, in grey, and for the
colour-blind.  Bands and gaps are not to scale; each has its size in words.
"""

from __future__ import annotations

from textwrap import wrap

from crash_hotplug.core.picture.states import Band, CpuRow, Part, Picture, State
from crash_hotplug.core.sizes import count, cpu_runs, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_WIDTH, _MARGIN, _TEXT, _LINE = 800, 24, 200, 18
"""Pixels: width of the drawing, its margin, left edge of the text beside a band, height of a line of text."""
_BOX = _TEXT - 16 - _MARGIN
_SIZE_RIGHT, _WORD = 586, 602
"""Pixels: right edge of a band's size, left edge of its word."""
_GAP = 26
_FEW_BANDS = 12
"""So many bands may be high."""
_MOST_BOXES = 24
_TITLE_LIMIT = 600
"""Characters of a title or subtitle: a file may give a name of any length."""
_FONT = "DejaVu Sans, Verdana, Helvetica, Arial, sans-serif"
_MONO = "DejaVu Sans Mono, Menlo, Consolas, monospace"
_GREY = "#444"

_LOOKS = {
    State.DESCRIBED: ("#cfe3f1", "M0 8 L8 0", "#0072b2", ""),
    State.SAVED: ("#8fbfdd", "", "#0072b2", ""),
    State.LEFT_OUT: ("#ffffff", "M0 0 L8 8", "#0072b2", ""),
    State.MISSING: ("#ffffff", "", "#b54500", "6 4"),
    State.GONE: ("#f3c98b", "M0 0 L8 8 M0 8 L8 0", "#8a3500", ""),
    State.RESERVED_DESCRIBED: ("#f3c98b", "M4 0 V8", "#8a3500", ""),
    State.CRASHKERNEL: ("#dcdcdc", "M1 2 h2 M5 6 h2", "#222222", ""),
    State.CMA: ("#dcdcdc", "M0 4 H8", "#222222", ""),
    State.OFFLINE: ("#ffffff", "M3 4 h2 M4 3 v2", "#666666", "2 3"),
    State.LOW_MEMORY: ("#f2f2f2", "M0 0 L8 8", "#888888", ""),
    State.PARTLY: ("#ffffff", "M0 8 L4 4", "#b54500", "6 4"),
    State.NO_REGISTERS: ("#ffffff", "M4 0 V8", "#b54500", "6 4"),
    State.NOT_PRESENT: ("#ffffff", "", "#888888", "1 3"),
    State.NOT_KNOWN: ("#f2f2f2", "M2 2 h4 v4 h-4 z", "#666666", "2 3"),
}
"""Ground, lines within 8 by 8 pixels, colour of lines and border, dashes of the border."""
_MEANINGS = {
    State.DESCRIBED: "in the header from which a dump is made",
    State.SAVED: "described, and in the dump",
    State.LEFT_OUT: "described, and not in the dump",
    State.MISSING: "there and not described: no dump has it",
    State.GONE: "described, but there is no RAM",
    State.RESERVED_DESCRIBED: "described, although the capture kernel uses it",
    State.CRASHKERNEL: "reserved for the capture kernel, and in no dump",
    State.CMA: "the capture kernel uses it too (crashkernel=SIZE,cma): in no dump",
    State.OFFLINE: "plugged in, offline and not described",
    State.LOW_MEMORY: "not described: a loss only where the kernel uses it",
    State.PARTLY: "too few bytes of its registers are described",
    State.NO_REGISTERS: "online, and no registers in the dump; which CPU is not known",
    State.NOT_PRESENT: "a possible CPU that is not plugged in",
    State.NOT_KNOWN: "the place of its registers cannot be read",
}


def to_svg(picture: Picture, inline: str = "") -> str:
    """Return the picture as the text of an SVG file.

    :param picture: its texts have printable characters only
    :param inline: for an element in an HTML page instead: begins the names of patterns, which are unique in a page
    """
    return _Drawing(inline).draw(picture)


def escape(text: str) -> str:
    """Return *text* for an XML element or attribute."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace('"', "&quot;")


class _Drawing:
    """The elements of a drawing from top to bottom."""

    def __init__(self, inline: str) -> None:
        self._ids = inline
        self._out: list[str] = []
        self._y = 16
        self._states: dict[State, None] = {}

    def draw(self, picture: Picture) -> str:
        self._headline(picture)
        if picture.bands:
            self._heading("Memory (physical addresses, not to scale)")
            for below, band in zip((None, *picture.bands), picture.bands):
                self._band(band, below, picture)
        elif picture.remark:
            self._heading("Memory")
            self._paragraph(picture.remark)
        if picture.shares:
            self._share_bar(picture)
        if picture.cpus:
            self._heading("CPUs")
            for row in picture.cpus:
                self._cpu_row(row)
        if picture.others:
            self._heading("Other findings")
            for sentence in picture.others:
                self._paragraph(f"\N{BULLET} {sentence}")
        self._legend(picture)
        return self._document(picture)

    def _headline(self, picture: Picture) -> None:
        for line in wrap(_cut(picture.title), 70):
            self._y += 23
            self._text(_MARGIN, self._y, line, ' font-size="17" font-weight="bold"')
        self._paragraph(picture.subtitle, _GREY)

    def _paragraph(self, text: str, colour: str = "#111") -> None:
        for line in wrap(_cut(text), 105):
            self._y += 19
            self._text(_MARGIN, self._y, line, f' font-size="13" fill="{colour}"')

    def _heading(self, text: str) -> None:
        self._y += 40
        self._text(_MARGIN, self._y, text, ' font-weight="bold"')
        self._y += 12

    def _band(self, band: Band, below: Band | None, picture: Picture) -> None:
        if below is not None and below.end < band.start:
            self._gap(below.end, band.start, picture.gap)
        lines = len(band.parts) + (band.ranges > 1)
        growth = max(0, band.size.bit_length() - 21) if len(picture.bands) <= _FEW_BANDS else 0
        height = max(28, 10 + _LINE * lines, min(28 + 3 * growth, 76))
        self._out.append("<g>")
        words = ", ".join(f"{part.state.value} {human_size(part.size)}" for part in band.parts)
        self._out.append(f"<title>{escape(f'{band.start:#x} - {band.end:#x}: {words}')}</title>")
        self._row_of_boxes(band.parts, height)
        y = self._y + height / 2 - _LINE * (lines - 1) / 2 + 5
        self._text(_TEXT, y, f"{band.start:#014x} - {band.end:#014x}", f' font-size="13" font-family="{_MONO}"')
        for part in band.parts:
            self._text(_SIZE_RIGHT, y, human_size(part.size), ' font-size="13" text-anchor="end"')
            self._text(_WORD, y, part.state.value, ' font-weight="bold"')
            y += _LINE
        if band.ranges > 1:
            between = band.end - band.start - band.size
            rest = f", with {human_size(between)} between them" if between else ""
            self._text(_TEXT, y, f"{band.ranges:,} ranges{rest}", f' font-size="13" fill="{_GREY}"')
        self._out.append("</g>")
        self._y += height

    def _row_of_boxes(self, parts: Iterable[Part], height: int, width: int = _BOX) -> None:
        """Draw the parts of a band side by side; each is wide enough to be seen."""
        parts = list(parts)
        total, room = sum(part.size for part in parts), width - 14 * len(parts)
        x = float(_MARGIN)
        for part in parts:
            part_width = 14 + room * part.size / total if len(parts) > 1 else width
            self._box(part.state, x, self._y, part_width, height)
            x += part_width

    def _gap(self, start: int, end: int, meaning: str) -> None:
        """Draw the mark of a break: two zigzag lines, and the size of the gap."""
        size = human_size(end - start)
        for y in (self._y + 8, self._y + _GAP - 8):
            teeth = " ".join(f"L{_MARGIN + 10 * n} {y + (3 if n % 2 else -3)}" for n in range(_BOX // 10 + 1))
            self._out.append(f'<path class="gap" d="M{teeth[1:]}" fill="none" stroke="#666"/>')
        self._text(_SIZE_RIGHT, self._y + 17, size, f' font-size="13" text-anchor="end" fill="{_GREY}"')
        self._text(_WORD, self._y + 17, meaning, f' font-size="13" fill="{_GREY}"')
        self._y += _GAP

    def _share_bar(self, picture: Picture) -> None:
        shares = picture.shares
        self._heading(f"Pages of the described memory{picture.dump_level}")
        self._row_of_boxes(shares, 28, _WIDTH - 2 * _MARGIN)
        words = (f"{part.state.value} {human_size(part.size)}" for part in shares)
        self._y += 48
        self._text(_MARGIN, self._y, ", ".join(words), "")

    def _cpu_row(self, row: CpuRow) -> None:
        """Draw the CPUs of one state: a box for each, or for each run of consecutive ones where they are many."""
        self._text(_MARGIN, self._y + 22, row.state.value, ' font-weight="bold"')
        x = _TEXT
        for label in _cpu_labels(row):
            width = 22 + 9 * len(label)
            if x + width > _WIDTH - _MARGIN and x > _TEXT:
                x, self._y = _TEXT, self._y + 32
            self._box(row.state, x, self._y + 4, width, 26)
            self._out.append(f'<rect x="{x + 5}" y="{self._y + 8}" width="{width - 10}" height="18" fill="#fff"/>')
            self._text(x + width / 2, self._y + 22, label, ' font-size="13" text-anchor="middle"')
            x += width + 5
        self._y += 34

    def _legend(self, picture: Picture) -> None:
        if not self._states:
            return
        self._y += 22
        self._out.append(f'<path d="M{_MARGIN} {self._y} H{_WIDTH - _MARGIN}" stroke="#999"/>')
        self._y += 12
        totals = {part.state: part for part in picture.memory}
        for state in (state for state in State if state in self._states):
            self._box(state, _MARGIN, self._y, 34, 18)
            total = totals.get(state)
            size = "" if total is None else f" ({_sum(total)})"
            words = f'<tspan font-weight="bold">{escape(state.value)}</tspan>: {escape(_MEANINGS[state] + size)}'
            self._out.append(
                f'<text class="legend" x="{_MARGIN + 46}" y="{self._y + 14}" font-size="13">{words}</text>'
            )
            self._y += 26

    def _box(self, state: State, x: float, y: float, width: float, height: float) -> None:
        self._states[state] = None
        _ground, _lines, colour, dashes = _LOOKS[state]
        border = f' stroke-width="2.5" stroke-dasharray="{dashes}"' if dashes else ""
        inset = 1.25 if dashes else 0  # dashed borders of neighbours would cover each other
        self._out.append(
            f'<rect class="{self._class(state)}" x="{x + inset:g}" y="{y + inset:g}" width="{width - 2 * inset:g}" '
            f'height="{height - 2 * inset:g}" fill="url(#{self._ids}{self._class(state)})" stroke="{colour}"{border}/>'
        )

    def _text(self, x: float, y: float, text: str, look: str) -> None:
        self._out.append(f'<text x="{x:g}" y="{y:g}"{look}>{escape(text)}</text>')

    @staticmethod
    def _class(state: State) -> str:
        return state.name.lower().replace("_", "-")

    def _document(self, picture: Picture) -> str:
        height = self._y + 16
        namespace = "" if self._ids else ' xmlns="http://www.w3.org/2000/svg"'
        patterns = "".join(self._pattern(state) for state in self._states)
        return (
            f'<svg{namespace} class="picture" viewBox="0 0 {_WIDTH} {height:g}" width="{_WIDTH}" '
            f'height="{height:g}" role="img" font-family="{_FONT}" font-size="14" fill="#111">\n'
            f"<title>{escape(_cut(picture.title))}</title>\n<desc>{escape(_description(picture))}</desc>\n"
            f'<defs>{patterns}</defs>\n<rect width="{_WIDTH}" height="{height:g}" fill="#fff"/>\n'
            + "\n".join(self._out)
            + "\n</svg>\n"
        )

    def _pattern(self, state: State) -> str:
        ground, lines, colour, _dashes = _LOOKS[state]
        stroke = f'<path d="{lines}" fill="none" stroke="{colour}" stroke-width="1.6"/>' if lines else ""
        return (
            f'<pattern id="{self._ids}{self._class(state)}" width="8" height="8" patternUnits="userSpaceOnUse">'
            f'<rect width="8" height="8" fill="{ground}"/>{stroke}</pattern>'
        )


def _cut(text: str) -> str:
    return text if len(text) <= _TITLE_LIMIT else f"{text[:_TITLE_LIMIT]} ..."


def _sum(part: Part) -> str:
    return f"{human_size(part.size)} in {part.ranges:,} {'range' if part.ranges == 1 else 'ranges'}"


def _cpu_labels(row: CpuRow) -> list[str]:
    """Return the labels of the boxes: numbers, or runs of them in the kernel's list format."""
    if not row.numbers:
        return [f"{row.total:,} CPU" + ("" if row.total == 1 else "s")]
    if len(row.numbers) <= _MOST_BOXES:
        return [str(number) for number in row.numbers]
    shown, left = cpu_runs(row.numbers, _MOST_BOXES)
    return [*shown, f"and {left:,} more"] if left else shown


def _description(picture: Picture) -> str:
    """Return the content of the picture in words, for a screen reader."""
    sentences = [f"{part.state.value}: {_sum(part)} of memory" for part in picture.memory]
    sentences += [f"{row.state.value}: {count(row.total, 'CPU')}" for row in picture.cpus]
    sentences += [f"{part.state.value}: {human_size(part.size)} of pages" for part in picture.shares]
    return ". ".join(sentences) or picture.remark
