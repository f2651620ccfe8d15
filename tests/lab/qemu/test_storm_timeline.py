# SPDX-License-Identifier: MIT
"""The time line of a storm: from samples to states, to transitions, to result.json, to the picture."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine
from crash_hotplug_lab.in_guest.image_states import ACCURATE, NO_IMAGE, STALE, Sample, state_of, transitions
from crash_hotplug_lab.qemu import results, storm_picture
from crash_hotplug_lab.qemu.results import Result, StormRecord
from tests.cli.running import run_lab
from tests.machines import GIB, LOW_RAM, MIB, machine

DIMM = (4 * GIB, 5 * GIB)
BEFORE = machine()
AFTER = machine(online=(0, 1, 2), ram=(LOW_RAM, (MIB, GIB), DIMM))


def header(of: Machine) -> bytes:
    return expected_elfcorehdr(of, Loader.KERNEL).to_bytes()


def iomem(of: Machine) -> str:
    return "\n".join(f"{r.start:08x}-{r.end - 1:08x} : System RAM" for r in of.ram)


@pytest.mark.parametrize(
    ("loaded", "now", "online", "state"),
    [
        (header(BEFORE), BEFORE, "0-1", ACCURATE),
        (header(AFTER), AFTER, "0-2", ACCURATE),
        (header(BEFORE), AFTER, "0-1", STALE),  # lacks the DIMM
        (header(AFTER), BEFORE, "0-2", STALE),  # has a DIMM that is gone
        (header(BEFORE), BEFORE, "0-2", STALE),  # lacks CPU 2
        (header(AFTER)[:100], AFTER, "0-2", STALE),
        (b"", AFTER, "0-2", NO_IMAGE),
    ],
)
def test_state_of_sample_is_judged_against_the_machine_of_that_moment(
    loaded: bytes, now: Machine, online: str, state: str
) -> None:
    assert state_of(AFTER, Sample(0.0, loaded, iomem(now), online)) == state


@pytest.mark.parametrize(
    ("states", "changes"),
    [
        ([], []),
        ([(10.2, STALE)], [(0.0, STALE)]),  # the first sample came after the first event
        ([(9.0, ACCURATE), (10.0, STALE), (10.1, STALE)], [(0.0, STALE)]),
        ([(9.0, ACCURATE), (9.9, STALE), (10.1, STALE)], [(0.0, STALE)]),
        ([(9.0, ACCURATE), (10.1, ACCURATE), (10.25, STALE)], [(0.0, ACCURATE), (0.25, STALE)]),
        (
            [(9.0, ACCURATE), (11.0, NO_IMAGE), (12.0, NO_IMAGE), (13.0, ACCURATE), (14.0, ACCURATE)],
            [(0.0, ACCURATE), (1.0, NO_IMAGE), (3.0, ACCURATE)],
        ),
    ],
)
def test_transitions_begin_at_the_first_event(
    states: list[tuple[float, str]], changes: list[tuple[float, str]]
) -> None:
    assert transitions(states, 10.0) == changes


def record(keeper: str, ended: float, *states: tuple[float, str]) -> StormRecord:
    return StormRecord(keeper, 524, 6.0, ended, 4, 10, 3.5, list(states), 200, 1, 2.0, "accurate")


WATCH = record("watch", 10.0, (0.0, STALE), (2.0, NO_IMAGE), (2.5, STALE), (5.0, ACCURATE))
THROTTLED = record("throttled", 12.0, (0.0, ACCURATE), (1.0, STALE), (4.0, NO_IMAGE), (9.0, ACCURATE))
RELOAD = record("reload", 100.0, *((float(n), NO_IMAGE if n % 2 else STALE) for n in range(99)), (99.5, ACCURATE))


FACTS = {"accelerator": "tcg", "processors": 2, "host": "6.18"}


def run(storm: StormRecord | None) -> Result:
    title = "256 memory blocks & 6 CPUs: somebody"
    return Result("storm", title, "6.1", "6.1.1-1", "6.1.0", "c", "reload", "pass", storm=storm)


def test_storm_record_tells_shares_and_when_the_image_stays_accurate() -> None:
    assert [WATCH.share(state) for state in (ACCURATE, STALE, NO_IMAGE)] == pytest.approx([0.5, 0.45, 0.05])
    assert (WATCH.accurate_after, THROTTLED.accurate_after, RELOAD.accurate_after) == (0.0, 3.0, 93.5)
    never = record("reload", 9.0, (0.0, ACCURATE), (1.0, STALE))
    assert never.accurate_after is None
    assert "accurate never; of 9.0 s accurate 11.1%, stale 88.9%, no image 0.0%" in str(never)


def test_storm_record_comes_back_from_the_result_file(tmp_path: Path) -> None:
    runs = [run(WATCH), run(None)]
    results.write(runs, tmp_path, FACTS)
    assert results.read(tmp_path)[0] == runs


@pytest.mark.parametrize(
    ("ends", "at"), [([13.0], None), ([13.0, 20.0], None), ([11.0, 13.6, 360.0], 15.0), ([30.0, 300.0], 35.0)]
)
def test_time_axis_is_broken_where_one_storm_takes_much_longer(ends: list[float], at: float | None) -> None:
    assert storm_picture.break_at(ends) == at


def test_picture_has_a_band_of_every_state_with_its_figures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    paths = storm_picture.draw([run(WATCH), run(None), run(RELOAD), run(THROTTLED)], tmp_path, FACTS)
    assert [path.name for path in paths] == ["storm-timeline.svg", "storm-timeline.png"]
    png = (tmp_path / "storm-timeline.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 1280
    svg = (tmp_path / "storm-timeline.svg").read_text()
    ElementTree.fromstring(svg)
    texts = [line.strip() for line in svg.splitlines() if "<!-- " in line]  # matplotlib names each text in a comment
    for words in (
        "State of the crash image: 256 memory blocks &amp; 6 CPUs",
        "kernel 6.1.0, emulated guest on a host with 2 processors",
        "A reload for each event (kdump-tools)",
        "RHEL's throttle: one reload when events pause",
        "crash-hotplug watch: updates in place",
        "4 images loaded · 3.5 s of CPU time · no image for 49.0 s · accurate 93.5 s after the last event",
        "4 images loaded · 3.5 s of CPU time · no image for 5.0 s · accurate 3.0 s after the last event",
        "4 images loaded · 3.5 s of CPU time · no image for 0.5 s · accurate at the last event",
        "measured until 10 s: accurate",
        "seconds since the first event; the scale changes at 15 s",
        "stale",
        "no image loaded",
        "last event",
    ):
        assert f"<!-- {words} -->" in texts, words
    bands = [text for text in texts if text.startswith(("<!-- A reload", "<!-- RHEL", "<!-- crash-hotplug"))]
    assert [band.split()[1] for band in bands] == ["A", "RHEL's", "crash-hotplug"]


def test_picture_of_a_session_without_storms_is_not_drawn(tmp_path: Path) -> None:
    assert storm_picture.draw([run(None)], tmp_path, FACTS) == []
    assert list(tmp_path.iterdir()) == []


def test_report_draws_the_storms_of_a_session_and_names_a_missing_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    results.write([run(WATCH)], tmp_path, FACTS)
    ran = run_lab(capsys, "report", str(tmp_path))
    assert (ran.code, ran.out.split()) == (
        0,
        [str(tmp_path / name) for name in ("report.html", "storm-timeline.svg", "storm-timeline.png")],
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = run_lab(capsys, "report", str(tmp_path))
    assert ran.code == 1
    assert "drawing the storms needs matplotlib; install it with: pip install matplotlib" in ran.err


COLOURS = {
    ACCURATE: (0x9E, 0xD3, 0xF0),
    STALE: (0xF5, 0xA6, 0x23),
    NO_IMAGE: (0x1C, 0x1C, 0x1C),
    "last": (0xB0, 0, 0x20),
}


def test_picture_paints_each_state_over_its_time(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    storm_picture.draw([run(WATCH)], tmp_path, FACTS)
    values = (image.imread(tmp_path / "storm-timeline.png") * 255).round().tolist()
    pixels = [[tuple(pixel[:3]) for pixel in row] for row in values]
    band = [row for row in pixels if row.count(COLOURS[ACCURATE]) > 500]
    left = min(row.index(COLOURS[STALE]) for row in band)
    width = max(x for x, pixel in enumerate(band[0]) if pixel == COLOURS[ACCURATE]) - left + 1
    painted = {state: sum(row.count(colour) for row in band) / len(band) / width for state, colour in COLOURS.items()}
    assert painted[ACCURATE] == pytest.approx(0.5, abs=0.01)
    assert painted[NO_IMAGE] == pytest.approx(0.05, abs=0.01)
    assert 0.1 < painted[STALE] < 0.4  # less than 0.45: the hatching covers part of it
    (last_event,) = {row.index(COLOURS["last"]) for row in band}
    assert (last_event - left) / width == pytest.approx(0.6, abs=0.005)
    above = pixels[pixels.index(band[0]) - 20 : pixels.index(band[0])]
    assert sum(row[last_event - 10 : last_event + 10].count(COLOURS["last"]) for row in above) > 50  # the triangle
