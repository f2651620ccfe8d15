# SPDX-License-Identifier: MIT
"""Metrics and status line of the watch service, read back by Prometheus' own parser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crash_hotplug.core.decision import Outcome, Report
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.metrics import Family, exposition
from crash_hotplug.core.service.watch_record import Look, WatchRecord

RIGHT = Look(Verdict.ACCURATE, "a panic now would be dumped completely", room_left=12)
UPDATED = replace(RIGHT, strategy="in-place", outcome=Outcome.UPDATED, action="9 entries written", kexec_seconds=0.005)
STALE = Look(Verdict.NOT_ACCURATE, "256 MiB is not described", "in-place", Outcome.REFUSED, "lockdown")


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(text))
    assert all(family.documentation and family.type in ("counter", "gauge") for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(record: WatchRecord, name: str, **labels: str) -> float:
    return parsed(record.metrics())[f"crash_hotplug_{name}", tuple(sorted(labels.items()))]


def test_metrics_count_events_looks_and_updates() -> None:
    record = WatchRecord("1.0", started=1000.0)
    record.events["memory"] += 16
    record.overruns, record.ignored = 2, 3
    record.add(RIGHT, "start", 1000.5, 0.25)
    record.add(UPDATED, "event", 1002.0, 0.5)
    record.add(STALE, "timer", 1003.0, 0.125)
    assert value(record, "accurate") == 0
    assert value(record, "verdict", verdict="not accurate") == 1
    assert value(record, "verdict", verdict="accurate") == 0
    assert value(record, "last_accurate_timestamp_seconds") == 1002
    assert value(record, "last_look_timestamp_seconds") == 1003
    assert value(record, "updates_total", strategy="in-place", result="updated") == 1
    assert value(record, "updates_total", strategy="in-place", result="refused") == 1
    assert value(record, "uevents_total", subsystem="memory") == 16
    assert value(record, "uevents_total", subsystem="cpu") == 0
    assert value(record, "uevents_ignored_total") == 3
    assert value(record, "uevent_overruns_total") == 2
    assert value(record, "looks_total", cause="event") == 1
    assert value(record, "look_seconds_total") == 0.875
    assert value(record, "build_info", version="1.0") == 1


def test_room_and_duration_are_those_of_the_last_look_that_knew_them() -> None:
    record = WatchRecord("1.0", started=1000.0)
    record.add(UPDATED, "event", 1002.0, 0.5)
    assert value(record, "room_left_entries") == 12
    assert value(record, "last_update_duration_seconds") == 0.5
    assert value(record, "last_kexec_load_seconds") == 0.005


def test_metrics_before_the_first_look_have_no_verdict() -> None:
    text = WatchRecord("1.0", started=1000.0).metrics()
    assert "crash_hotplug_accurate" not in text
    assert parsed(text)["crash_hotplug_start_timestamp_seconds", ()] == 1000


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False, min_value=-1e15, max_value=1e15))
def test_exposition_of_any_label_and_number_is_parsed_back(label: str, number: float) -> None:
    # Prometheus' text is lines; a carriage return or another separator inside a label is none.
    text = exposition([Family("family", "gauge", f"help {label}", [({"label": label}, number)])])
    if len(text.splitlines()) == 3:
        assert parsed(text)["family", (("label", label),)] == pytest.approx(number, abs=1e-6)


def test_look_is_news_only_if_something_changed() -> None:
    assert RIGHT.is_news_after(None)
    assert not RIGHT.is_news_after(RIGHT)
    assert UPDATED.is_news_after(RIGHT)
    assert not RIGHT.is_news_after(UPDATED)
    assert STALE.is_news_after(RIGHT)
    assert not STALE.is_news_after(STALE)
    assert replace(STALE, action="no kcore").is_news_after(STALE)
    assert replace(RIGHT, external_change="another process unloaded the image").is_news_after(RIGHT)


def test_status_line_begins_with_the_verdict() -> None:
    record = WatchRecord("1.0", started=1000.0)
    assert record.status_line() == "first look"
    record.add(UPDATED, "event", 1002.0, 0.5)
    assert record.status_line() == "accurate: a panic now would be dumped completely (1 update, 0 events)"


def test_metrics_count_verifications_and_tell_when_the_last_one_was_right() -> None:
    record = WatchRecord("1.0", 1000.0)
    record.add(RIGHT, "timer", 1001.0, 0.001)
    assert "verif" not in record.metrics()
    for at, outcome in [(1002.0, Outcome.UNCHANGED), (1003.0, Outcome.TORN), (1004.0, Outcome.CANNOT_TELL)]:
        record.add(replace(RIGHT, verification=Report(outcome, "")), "timer", at, 0.5)
    text = record.metrics()
    for result in ("whole", "broken", "unknown"):
        assert f'crash_hotplug_verifications_total{{result="{result}"}} 1\n' in text
    assert "crash_hotplug_last_verified_timestamp_seconds 1002\n" in text


def test_look_failed_only_where_something_was_tried() -> None:
    assert STALE.failed
    assert not replace(STALE, action="").failed
    assert [replace(STALE, outcome=o).failed for o in (Outcome.UPDATED, Outcome.UNCHANGED, Outcome.RELOADED)] == [
        False
    ] * 3


def test_record_counts_changes_by_others_and_updates_of_every_way() -> None:
    record = WatchRecord("1.0", started=1000.0)
    record.add(replace(RIGHT, external_change="another process loaded a crash image"), "timer", 1001.0, 0.5)
    record.add(RIGHT, "timer", 1002.0, 0.5)
    assert (record.external_changes, value(record, "foreign_changes_total")) == (1, 1)
    assert record.updates == {}  # nothing was tried
    assert record.last_update == 0
    record.add(UPDATED, "event", 1003.0, 0.5)
    record.add(replace(RIGHT, strategy="reload", outcome=Outcome.RELOADED, action="kdumpctl"), "event", 1004.0, 0.5)
    assert record.status_line().endswith("(2 updates, 0 events)")


def test_last_accurate_look_is_not_told_where_there_was_none() -> None:
    record = WatchRecord("1.0", started=1000.0)
    record.add(STALE, "timer", 1001.0, 0.5)
    assert "last_accurate" not in record.metrics()
    assert "room_left" not in record.metrics()


def test_exposition_escapes_and_leaves_out_what_is_empty() -> None:
    families = [
        Family("none", "gauge", "Without samples.", []),
        Family("one", "gauge", "a\nb\\c", [({"path": 'a"b\nc\\'}, 3.0), ({}, 0.5)]),
    ]
    assert exposition(families) == (
        '# HELP one a\\nb\\\\c\n# TYPE one gauge\none{path="a\\"b\\nc\\\\"} 3\none 0.500000\n'
    )
