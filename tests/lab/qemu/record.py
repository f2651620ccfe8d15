# SPDX-License-Identifier: MIT
"""Keep the results of lab runs: ``python3 -m tests.lab.qemu.record RESULT.json... > tests/lab/qemu/recorded.json``."""

from __future__ import annotations

import json
import sys
from typing import Any

from crash_hotplug_lab.qemu import plan

COMBINATION = ("scenario", "kernel", "loader", "update")
KEPT = (*COMBINATION, "outcome", "dimms", "audit")
"""Nothing of it is a sentence: a sentence can be reworded without another run."""


def main(paths: list[str]) -> None:
    """Print the runs of all result files as one object, a line for each; of the same combination the last."""
    bundled = [scenario.name for scenario in plan.bundled()]
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in paths:
        with open(path) as file:
            for run in json.load(file)["runs"]:
                if run["outcome"] in ("pass", "fault") and run["scenario"] in bundled:
                    latest[tuple(run[key] for key in COMBINATION)] = {key: run[key] for key in KEPT}
    lines = ",\n".join(json.dumps(latest[key]) for key in sorted(latest))
    sys.stdout.write(f'{{"runs": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
