"""The model against the lab: same verdict and same findings for every recorded run that both can do.

``recorded.json`` holds what the full matrix came to on real kernels (make lab-full; tests/lab/record.py makes it).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crash_hotplug.core.compare import Kind
from crash_hotplug_lab.qemu import scenario as lab_scenario
from tests.lab.qemu.model_twin import UNKNOWN_TO_MODEL, model_panic

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "recorded.json").read_text())["runs"]


def _can_model(run: dict[str, Any]) -> bool:
    """Whether the run ended in an audited dump, and the model knows every step."""
    steps = lab_scenario.load(run["scenario"]).steps
    return run["audit"] is not None and not any(step.action in UNKNOWN_TO_MODEL for step in steps)


BOTH = [run for run in RECORDED if _can_model(run)]


def test_there_is_something_to_compare() -> None:
    assert len(BOTH) >= 20
    assert {run["kernel"] for run in BOTH} >= {"5.10", "6.1", "6.12", "6.18", "7.2"}
    assert any(run["audit"]["findings"] for run in BOTH)
    assert any(not run["audit"]["findings"] for run in BOTH)


@pytest.mark.parametrize(
    "run", BOTH, ids=lambda run: "-".join(run[k] for k in ("scenario", "kernel", "loader", "update"))
)
def test_same_verdict_same_findings(run: dict[str, Any]) -> None:
    result = model_panic(lab_scenario.load(run["scenario"]), run)
    assert result.comparison is not None, result.sentence
    assert sorted(f.sentence for f in result.comparison.findings) == sorted(run["audit"]["findings"])
    dropped = any(note.kind is Kind.BACKUP_REGION_DROPPED for note in result.comparison.notes)
    assert dropped == any("first 640 KiB are described no more" in note for note in run["audit"]["notes"])
