"""Keep what lab runs came to: ``python3 -m tests.lab.qemu.record RESULT.json... > tests/lab/recorded.json``."""

from __future__ import annotations

import json
import sys
from typing import Any

from crash_hotplug_lab.qemu import scenario

KEPT = ("scenario", "kernel", "kernel_release", "loader", "update", "outcome", "reason")


def recorded(run: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of one run: the combination, the outcome, where DIMMs lay, what the audit said."""
    audit = next((check["detail"] for check in run["checks"] if check["name"] == "audit" and check["ok"]), None)
    return {
        **{key: run[key] for key in KEPT},
        "events": [event for event in run["events"] if event["what"].startswith("add-dimm")],
        "audit": None if audit is None else _said(str(audit)),
    }


def _said(audit: str) -> dict[str, list[str]]:
    """Take the check's text apart: findings, then notes, each behind its word; only notes have a semicolon inside."""
    findings, _, notes = ("; " + audit).partition("; note: ")
    found = [sentence for sentence in findings.split("; ") if sentence not in ("", "nothing is missing")]
    return {"findings": found, "notes": notes.split("; note: ") if notes else []}


def main(paths: list[str]) -> None:
    """Print the runs of all result files as one object; of the same combination the last."""
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in paths:
        with open(path) as file:
            for run in json.load(file)["runs"]:
                if run["outcome"] in ("pass", "fault") and run["scenario"] in scenario.bundled():
                    latest[tuple(run[key] for key in ("scenario", "kernel", "loader", "update"))] = recorded(run)
    json.dump({"runs": [latest[key] for key in sorted(latest)]}, sys.stdout, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
