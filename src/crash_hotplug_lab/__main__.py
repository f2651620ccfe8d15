# SPDX-License-Identifier: MIT
"""Run the lab's command line: ``python3 -m crash_hotplug_lab``."""

from __future__ import annotations

from crash_hotplug.__main__ import run as run_program

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crash_hotplug.__main__ import Main


def _import_main() -> Main:
    from crash_hotplug_lab.cli.main import main  # noqa: PLC0415

    return main


def run() -> None:
    """Run the command on the command line and exit with its code."""
    run_program(_import_main)


if __name__ == "__main__":
    run()
