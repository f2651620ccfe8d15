# SPDX-License-Identifier: MIT
"""Pictures: the states agree with the verdict, and the SVG shows each of them in words and in its place."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.arch.arm64 import ARM64
from crash_hotplug.core.dump.formats import parse_vmcore
from crash_hotplug.core.dump.vmcore import Vmcore, audit_vmcore, compare_vmcore
from crash_hotplug.core.expected import expected_elfcorehdr
from crash_hotplug.core.finding import Comparison, Finding, Kind
from crash_hotplug.core.loader import Loader
from crash_hotplug.core.machine import Machine, MemoryBlocks
from crash_hotplug.core.picture.states import (
    MOST_BANDS,
    CpuRow,
    Part,
    Picture,
    State,
    audit_picture,
    bands,
    memory_by_state,
    status_picture,
    with_memory,
)
from crash_hotplug.core.picture.svg import to_svg
from crash_hotplug.core.ranges import Range, RangeList
from crash_hotplug.core.verdict import compare_header
from tests.core.dump.saved_dumps import saved_dump
from tests.core.dump.test_diskdump import WITH_DIMM, parsed
from tests.core.dump.test_vmcore import vmcore_of
from tests.machines import GIB, LOW_RAM, MIB, machine, machines

SVG = "{http://www.w3.org/2000/svg}"
DIMM = Range(4 * GIB, 5 * GIB)


def status_of(now: Machine, loaded_for: Machine) -> Picture:
    header = expected_elfcorehdr(loaded_for, Loader.KERNEL)
    return status_picture("T", "S", now, header, compare_header(now, header, Loader.KERNEL))


def audit_of(vmcore: Vmcore, before: Machine | None = None, loaded_for: Machine | None = None) -> Picture:
    result = audit_vmcore(vmcore)
    if before is not None:
        loaded = None if loaded_for is None else expected_elfcorehdr(loaded_for, Loader.KERNEL)
        compare_vmcore(vmcore, before, loaded, Loader.KERNEL, result)
    return audit_picture("T", "S", vmcore, before, result)


def states_of(picture: Picture) -> dict[State, list[tuple[int, int]]]:
    found: dict[State, list[tuple[int, int]]] = {}
    for band in picture.bands:
        (part,) = band.parts
        found.setdefault(part.state, []).append((band.start, band.end))
    return found


def cpus_of(picture: Picture) -> dict[State, tuple[int, ...] | int]:
    return {row.state: row.numbers or row.total for row in picture.cpus}


def every_text(drawing: ET.Element) -> list[str]:
    return ["".join(text.itertext()) for text in drawing.iter(f"{SVG}text")]


def legend_of(drawing: ET.Element) -> set[str]:
    return {str(t[0].text) for t in drawing.iter(f"{SVG}text") if t.get("class") == "legend"}


def boxes_of(drawing: ET.Element) -> list[ET.Element]:
    return [box for box in drawing.iter(f"{SVG}rect") if str(box.get("fill")).startswith("url(")]


def check_drawing(picture: Picture) -> ET.Element:
    """Check what is true of every picture, and return the parsed SVG."""
    text = to_svg(picture)
    assert len(text) < 200_000
    drawing = ET.fromstring(text)
    _x, _y, width, height = map(float, str(drawing.get("viewBox")).split())
    parts = [part for band in picture.bands for part in band.parts] + list(picture.shares)
    states = {part.state for part in parts} | {row.state for row in picture.cpus}
    assert legend_of(drawing) == {state.value for state in states}, "the legend has the states that are drawn"
    words = [text for text in every_text(drawing) if not text.startswith(tuple(f"{s.value}: " for s in State))]
    for state in states:
        assert any(state.value in text for text in words), f"{state} stands beside its box, not in the legend only"
    patterns = {f"url(#{pattern.get('id')})" for pattern in drawing.iter(f"{SVG}pattern")}
    assert {box.get("fill") for box in boxes_of(drawing)} == patterns
    for rect in drawing.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(name, "0")) for name in ("x", "y", "width", "height"))
        assert w > 0
        assert h > 0
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    for element in drawing.iter(f"{SVG}text"):
        assert 0 <= float(str(element.get("y"))) <= height
    return drawing


def test_status_shows_described_missing_and_reserved_memory_and_cpus() -> None:
    picture = status_of(WITH_DIMM, machine())
    assert states_of(picture) == {
        State.LOW_MEMORY: [LOW_RAM],
        State.DESCRIBED: [(MIB, 512 * MIB), (768 * MIB, GIB)],
        State.CRASHKERNEL: [(512 * MIB, 768 * MIB)],
        State.MISSING: [DIMM],
    }
    assert cpus_of(picture) == {State.DESCRIBED: (0, 1), State.MISSING: (2,), State.NOT_PRESENT: (3, 4, 5, 6, 7)}
    assert picture.memory[-1] == Part(State.LOW_MEMORY, LOW_RAM[1] - LOW_RAM[0], 1)
    drawing = check_drawing(picture)
    for words in ("0x000100000000 - 0x000140000000", "1 GiB", "3 GiB", "no RAM", "missing"):
        assert words in every_text(drawing)
    assert drawing[0].text == "T"
    assert str(drawing[1].text).startswith("missing: 1 GiB in 1 range of memory. ")
    assert str(drawing[1].text).endswith("missing: 1 CPU. not present: 5 CPUs")
    assert drawing[3].get("fill") == "#fff", "paper may be of any colour, and so may a page"


def test_status_without_a_finding_shows_nothing_missing() -> None:
    picture = status_of(machine(), machine())
    assert {part.state for part in picture.memory} == {State.DESCRIBED, State.CRASHKERNEL, State.LOW_MEMORY}
    assert cpus_of(picture)[State.DESCRIBED] == (0, 1)
    assert "missing" not in to_svg(picture)
    check_drawing(picture)


def test_status_shows_memory_that_is_gone_or_reserved_since() -> None:
    before = WITH_DIMM._replace(crashkernel=RangeList())
    picture = status_of(machine(), before)
    assert states_of(picture)[State.GONE] == [DIMM]
    assert states_of(picture)[State.RESERVED_DESCRIBED] == [(512 * MIB, 768 * MIB)]
    assert State.CRASHKERNEL not in states_of(picture), "these bytes are drawn once"
    check_drawing(picture)


def test_status_shows_cma_offline_memory_and_offline_cpus() -> None:
    now = machine(online=(0, 1), offline=(2,), ram=[LOW_RAM, (MIB, GIB), DIMM])
    blocks = MemoryBlocks(128 * MIB, 8, 8, RangeList([DIMM]))
    now = now._replace(memory_blocks=blocks, architecture=ARM64, capture_ram=RangeList([(MIB, 2 * MIB)]))
    picture = status_of(now, machine()._replace(architecture=ARM64, capture_ram=now.capture_ram))
    assert states_of(picture)[State.OFFLINE] == [DIMM]
    assert states_of(picture)[State.CMA] == [(MIB, 2 * MIB)]
    assert cpus_of(picture)[State.OFFLINE] == (2,)
    check_drawing(picture)


def test_cpu_whose_place_is_unknown_is_not_called_described() -> None:
    now = machine()
    now = now._replace(cpus=(now.cpus[0], now.cpus[1]._replace(crash_notes=None)))
    assert cpus_of(status_of(now, machine())) == {State.DESCRIBED: (0,), State.NOT_KNOWN: (1,)}


def test_audit_shows_what_was_left_out_and_what_is_missing() -> None:
    picture = audit_of(parsed(saved_dump(machine(), 2)), WITH_DIMM, machine())
    assert states_of(picture)[State.DESCRIBED] == [(MIB, 512 * MIB), (768 * MIB, GIB)]
    assert states_of(picture)[State.MISSING] == [DIMM]
    assert states_of(picture)[State.CRASHKERNEL] == [(512 * MIB, 768 * MIB)]
    assert picture.shares == (Part(State.SAVED, 40960, 0), Part(State.LEFT_OUT, 767 * MIB - 40960, 0))
    assert cpus_of(picture) == {State.SAVED: 2, State.MISSING: (2,)}
    texts = every_text(check_drawing(picture))
    assert "Pages of the described memory, saved with dump level 31" in texts
    assert "saved 40 KiB, left out 767.0 MiB" in texts


def test_audit_without_a_machine_shows_the_holes() -> None:
    picture = audit_of(parsed(saved_dump(machine(), 2)))
    assert states_of(picture) == {State.DESCRIBED: [(MIB, 512 * MIB), (768 * MIB, GIB)]}
    texts = every_text(check_drawing(picture))
    assert texts[texts.index("hole: not described") - 1] == "256 MiB"


def test_audit_calls_memory_saved_only_in_a_whole_dump() -> None:
    whole = audit_of(parse_vmcore(vmcore_of(machine(), 2)))
    cut = audit_of(parse_vmcore(vmcore_of(machine(), 2, cut=2 << 20)))
    assert (set(states_of(whole)), set(states_of(cut))) == ({State.SAVED}, {State.DESCRIBED})
    assert any("ends" in sentence for sentence in cut.others)
    assert any("ends" in text for text in every_text(check_drawing(cut)))


def test_audit_shows_cpus_without_registers_as_a_number() -> None:
    picture = audit_of(parsed(saved_dump(machine(), 1)), machine(), machine())
    assert cpus_of(picture) == {State.SAVED: 1, State.NO_REGISTERS: 1}
    assert "1 CPU" in every_text(check_drawing(picture))


def test_bands_and_their_addresses_go_down_in_ascending_order() -> None:
    picture = status_of(WITH_DIMM, machine())
    drawing = check_drawing(picture)
    edges = [edge for band in picture.bands for edge in (band.start, band.end)]
    assert edges == sorted(edges)
    groups = [(g.find(f"{SVG}rect"), g.findtext(f"{SVG}text")) for g in drawing.iter(f"{SVG}g")]
    tops = [float(str(box.get("y"))) for box, _text in groups if box is not None]
    assert tops == sorted(set(tops))
    assert [text for _box, text in groups] == [f"{b.start:#014x} - {b.end:#014x}" for b in picture.bands]
    breaks = [path for path in drawing.iter(f"{SVG}path") if path.get("class") == "gap"]
    assert len(breaks) == 2 * 2, "two lines for each of the gaps at 640 KiB and at 1 GiB; touching bands have none"


def test_title_and_findings_cannot_leave_their_elements() -> None:
    hostile = 'x</text><script>alert("1")</script>&amp;]]>' + "A" * 5000
    picture = status_of(WITH_DIMM, machine())._replace(title=hostile, subtitle=hostile, others=(hostile,))
    drawing = check_drawing(picture)
    assert {element.tag for element in drawing.iter()} == {
        f"{SVG}{tag}" for tag in ("svg", "title", "desc", "defs", "pattern", "rect", "path", "g", "text", "tspan")
    }
    assert str(drawing[0].text).startswith(hostile[:100])


def test_8192_ranges_of_one_state_are_one_band() -> None:
    ranges = [(n << 33, (n << 33) + (6 << 30)) for n in range(1, 8193)]
    now = machine(ram=[LOW_RAM, (MIB, GIB), *ranges], online=range(4096), possible=4096)
    picture = status_of(now, machine(online=range(14), possible=4096))
    assert picture.bands[-1].parts == (Part(State.MISSING, 48 << 40, 8192),)
    assert len(picture.bands) == 5
    texts = every_text(check_drawing(picture))
    assert "8,192 ranges, with 16.0 TiB between them" in texts
    assert "14-4095" in texts


@pytest.mark.parametrize("number", [MOST_BANDS - 1, MOST_BANDS, MOST_BANDS + 1, 8192])
def test_ranges_of_changing_state_share_bands_and_none_is_lost(number: int) -> None:
    states = (State.DESCRIBED, State.MISSING, State.GONE)
    memory = {
        state: RangeList((n << 33, (n << 33) + (n + 1) * MIB) for n in range(at, number, 3))
        for at, state in enumerate(states)
    }
    rows = tuple(CpuRow(s, tuple(range(at, 4096, 2)), 2048) for at, s in enumerate(states[:2]))
    picture = with_memory(Picture("T", "S", cpus=rows), memory)
    assert len(picture.bands) == min(number, MOST_BANDS)
    assert sum(band.ranges for band in picture.bands) == number
    for state in states:
        size = sum(part.size for band in picture.bands for part in band.parts if part.state is state)
        assert size == memory[state].size
    texts = every_text(check_drawing(picture))
    assert texts.count("and 2,024 more") == 2


@given(machines(), machines())
def test_every_byte_of_ram_has_one_state_and_findings_have_theirs(now: Machine, loaded_for: Machine) -> None:
    header = expected_elfcorehdr(loaded_for, Loader.KERNEL)
    result = compare_header(now, header, Loader.KERNEL)
    memory = memory_by_state(now, State.DESCRIBED, header.ram, result)
    assert sum(ranges.size for ranges in memory.values()) == now.ram.union(header.ram).size
    assert RangeList(r for ranges in memory.values() for r in ranges) == now.ram.union(header.ram)
    for state, kind in ((State.MISSING, Kind.MEMORY_MISSING), (State.GONE, Kind.MEMORY_GONE)):
        assert memory[state] == RangeList(r for f in result.findings if f.kind is kind for r in f.ranges)
    picture = status_picture("T", "S", now, header, result)
    assert sum(row.total for row in picture.cpus) == len(now.cpus)
    check_drawing(picture)


@given(st.dictionaries(st.sampled_from(State), st.integers(1, 40), min_size=1), st.integers(1, 40))
def test_number_of_bands_is_limited(numbers: dict[State, int], most: int) -> None:
    memory, at = {}, 0
    for state, number in numbers.items():
        memory[state] = RangeList((place << 20, (place << 20) + 4096) for place in range(at, at + number))
        at += number
    made = bands(memory, most)
    assert len(made) <= most
    assert sum(band.size for band in made) == 4096 * sum(numbers.values())


def test_many_other_findings_are_counted() -> None:
    result = Comparison()
    result.findings += [Finding(Kind.MALFORMED, f"defect {number}") for number in range(9)]
    picture = status_picture("T", "S", machine(), expected_elfcorehdr(machine(), Loader.KERNEL), result)
    assert picture.others == (*(f"defect {number}" for number in range(6)), "and 3 more")


def test_every_state_has_a_look_of_its_own() -> None:
    memory = {state: RangeList([(n << 20, (n + 1) << 20)]) for n, state in enumerate(State)}
    text = to_svg(with_memory(Picture("T", "S"), memory), inline="a-")
    assert text.startswith('<svg class="picture" '), "HTML knows the namespace"
    drawing = ET.fromstring(text.replace("<svg", f'<svg xmlns="{SVG[1:-1]}"', 1))
    looks = {}
    for box in boxes_of(drawing):
        pattern = next(p for p in drawing.iter(f"{SVG}pattern") if f"url(#{p.get('id')})" == box.get("fill"))
        lines = [path.get("d") for path in pattern.iter(f"{SVG}path")]
        shade = {"#cfe3f1": 0, "#f3c98b": 0, "#dcdcdc": 0, "#f2f2f2": 0, "#ffffff": 1, "#8fbfdd": 2}
        ground = shade[str(pattern[0].get("fill"))]
        looks[box.get("fill")] = (*lines, ground, box.get("stroke-dasharray"))
    assert len(set(looks.values())) == len(State), "without colours as well"
    assert all(re.fullmatch(r"url\(#a-[a-z-]+\)", str(fill)) for fill in looks)
