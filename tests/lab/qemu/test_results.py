# SPDX-License-Identifier: MIT
"""Results: to a file and back, as KTAP, as a page, as a picture of the memory map."""

from __future__ import annotations

import json
import re
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree

import pytest

from crash_hotplug.core.ranges import RangeList
from crash_hotplug_lab.qemu import dump, memory_picture, report, results
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.memory_picture import Bar
from crash_hotplug_lab.qemu.results import Moment, Result, RunOutcome, TimelineEntry

GIB = 1 << 30
FACTS = {"accelerator": "tcg", "processors": 2, "host": "6.18"}


def result(outcome: RunOutcome, reason: str = "because") -> Result:
    made = Result("hot-add", "A & B", "6.1", "6.1.1-1", "6.1.0", "c", "nothing", outcome.value, reason, 12.5)
    made.check("audit", outcome is not RunOutcome.FAIL, "one # thing\nmissing")
    made.events.append(TimelineEntry(1.5, "booted", "<6.1>"))
    made.moments.append(
        Moment("loaded", 2.0, "accurate", "fine", [(0, GIB)], [(1 << 20, GIB)], [(GIB // 2, GIB // 2 + 4096)])
    )
    made.dump.append((1 << 20, GIB))
    return made


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    runs = [result(outcome) for outcome in RunOutcome]
    path = results.write(runs, tmp_path, FACTS)
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["runs"][0]["moments"][0]["ram"] == [["0x0", "0x40000000"]]
    assert results.read(tmp_path) == (runs, {"schema": 1, "command": "lab run", **FACTS})


def test_results_are_checked_against_their_schema(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"run\.json: \$: 'processors' is a required property"):
        results.write([result(RunOutcome.PASS)], tmp_path, {"accelerator": "tcg", "host": "6.18"})


def test_status_of_another_process_is_checked_against_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = '{"schema": 1, "command": "status", "verdict": "lost", "reason": ""}'
    monkeypatch.setattr("subprocess.run", lambda *_command, **_how: CompletedProcess([], 0, printed, ""))
    with pytest.raises(AssertionError, match=r"status\.json: \$\.verdict: 'lost' is not valid"):
        dump.own_command("status", "--json")


def test_results_without_a_valid_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="there is no"):
        results.read(tmp_path)
    (tmp_path / results.FILE).write_text('{"runs": [{"scenario": 1}]}')
    with pytest.raises(LabError, match="is not a result file of this version"):
        results.read(tmp_path)


def test_ktap_has_a_test_for_each_run_and_a_subtest_for_each_check() -> None:
    lines = results.ktap_lines(
        [result(RunOutcome.PASS), result(RunOutcome.FAIL), result(RunOutcome.SKIP), result(RunOutcome.FAULT)]
    )
    assert lines[:2] == ["KTAP version 1", "1..4"]
    assert [line for line in lines if line.startswith(("ok", "not ok"))] == [
        "ok 1 hot-add-6.1-c-nothing",
        "not ok 2 hot-add-6.1-c-nothing # because",
        "ok 3 hot-add-6.1-c-nothing # SKIP because",
        "ok 4 hot-add-6.1-c-nothing # XFAIL because",
    ]
    assert "  not ok 1 audit # one  thing missing" in lines


def test_report_page_needs_no_external_file() -> None:
    page = report.page([result(RunOutcome.FAIL)], {"processors": 2, "accelerator": "tcg", "host": "6.1"})
    assert "A &amp; B" in page
    assert "&lt;6.1&gt;" in page
    for outside in ("http:", "https:", "src=", "@import", "url("):
        assert outside not in page.replace("url(#", ""), "a pattern stands in the page itself"


def test_report_draws_the_vmcore_against_the_last_moment() -> None:
    made = result(RunOutcome.FAIL, "a <CPU> is lost")
    made.scenario = "other"
    made.dump.append((4 * GIB, 5 * GIB))
    made.moments[0].ram.append((2 * GIB, 3 * GIB))
    made.audit = {"findings": [{"kind": "cpu-missing", "cpu": 2, "ranges": []}], "notes": []}
    page = report.page([made, result(RunOutcome.PASS)], FACTS)
    first, second = re.findall(r"<svg class=.picture.*?</svg>", page, re.DOTALL)
    words = [text.text for text in ElementTree.fromstring(first).iter("text") if text.get("font-weight") == "bold"]
    assert words[0] == "FAIL: a <CPU> is lost"
    assert words[2:] == ["low memory", "saved", "crashkernel", "saved", "missing", "gone", "CPUs", "missing"]
    assert "missing" not in second
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len({*ids})


def bar(present: list[tuple[int, int]], described: list[tuple[int, int]]) -> Bar:
    return Bar("now", RangeList(present), RangeList(described), RangeList([(GIB // 2, GIB // 2 + 4096)]))


def test_bar_is_divided_into_ranges_by_state() -> None:
    parts = bar([(0, GIB), (4 * GIB, 5 * GIB)], [(1 << 20, GIB // 2), (8 * GIB, 9 * GIB)]).parts()
    assert parts["ok"] == RangeList([(1 << 20, GIB // 2)])
    assert parts["missing"] == RangeList([(GIB // 2 + 4096, GIB), (4 * GIB, 5 * GIB)])
    assert parts["gone"] == RangeList([(8 * GIB, 9 * GIB)])
    assert parts["crash"] == RangeList([(GIB // 2, GIB // 2 + 4096)])


def test_memory_picture_is_xml_and_keeps_to_its_width() -> None:
    picture = memory_picture.svg([bar([(0, GIB)], []), bar([(0, GIB), (256 * GIB, 257 * GIB)], [(0, GIB)])])
    root = ElementTree.fromstring(picture)
    rectangles = root.findall("rect")
    assert {r.get("class") for r in rectangles} == {"ok", "missing", "crash"}
    for rectangle in rectangles:
        left, width = float(rectangle.get("x", "")), float(rectangle.get("width", ""))
        assert left >= 0
        assert 0 < width <= 960 - left + 0.1


def test_memory_picture_without_ranges_is_xml() -> None:
    nothing = RangeList([])
    ElementTree.fromstring(memory_picture.svg([Bar("nothing", nothing, nothing, nothing)]))


def test_ktap_of_a_recorded_run_is_no_failure() -> None:
    assert results.ktap_lines([result(RunOutcome.RECORDED)])[-1] == "ok 1 hot-add-6.1-c-nothing # because"
