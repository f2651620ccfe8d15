# SPDX-License-Identifier: MIT
"""A whole update, from lock to check, although the header may be right: ``python3 -m`` this module.

It starts as ``crash-hotplug update`` does (crash_hotplug/__main__.py), so a new process costs what that command costs.
"""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Parse a command line as the command does, and update."""
    gc.disable()
    from crash_hotplug.cli.arguments import parse  # noqa: PLC0415
    from crash_hotplug.cli.main import CRASH_HOTPLUG  # noqa: PLC0415
    from crash_hotplug.core.decision import Outcome, Wants  # noqa: PLC0415
    from crash_hotplug.core.update import update  # noqa: PLC0415
    from crash_hotplug.linux.loading.live_machine import LiveMachine, run_patiently  # noqa: PLC0415

    parse(CRASH_HOTPLUG, ["update"])
    gc.freeze()
    gc.enable()
    report = run_patiently(update(LiveMachine(), Wants(always_writes=True)))
    if report.outcome is not Outcome.UPDATED:
        sys.exit(report.sentence)


if __name__ == "__main__":
    main()
