# SPDX-License-Identifier: MIT
"""The alert rules and the dashboard ask only for metrics that the service writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.finding import Verdict
from crash_hotplug.core.service.watch_record import Look, WatchRecord

PACKAGING = Path(__file__).parent.parent.parent / "packaging"
DASHBOARD = PACKAGING / "grafana" / "crash-hotplug.json"


def written() -> str:
    record = WatchRecord("1.0", started=1000.0)
    record.add(Look(Verdict.ACCURATE, "", "in-place", Outcome.UPDATED, "done", 0.1, room_left=5), "event", 1001.0, 0.5)
    return record.metrics()


def rules() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    content = yaml.safe_load((PACKAGING / "prometheus" / "crash-hotplug.rules.yml").read_text())
    found: list[dict[str, Any]] = [rule for group in content["groups"] for rule in group["rules"]]
    return found


def asked_for(expression: str) -> set[str]:
    return set(re.findall(r"crash_hotplug_\w+", expression))


def test_alerts_use_written_metrics_and_have_summary_and_description() -> None:
    assert {rule["alert"] for rule in rules()} >= {"CrashImageNotAccurate", "CrashImageMissing", "CrashHotplugSilent"}
    for rule in rules():
        assert asked_for(rule["expr"])
        assert all(f"# TYPE {name} " in written() for name in asked_for(rule["expr"]))
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["labels"]["severity"] in ("info", "warning")


def test_alerts_name_existing_verdicts_and_strategies() -> None:
    for rule in rules():
        for verdict in re.findall(r'verdict="([^"]*)"', rule["expr"]):
            assert Verdict(verdict)
        for strategy in re.findall(r'strategy="([^"]*)"', rule["expr"]):
            assert strategy in ("in-place", "reload")


def test_dashboard_shows_written_metrics_only() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(expressions) >= 7
    for expression in expressions:
        assert all(f"# TYPE {name} " in written() for name in asked_for(expression))


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
