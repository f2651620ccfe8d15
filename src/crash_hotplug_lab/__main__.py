"""Run the lab's command line: ``python3 -m crash_hotplug_lab``."""

from __future__ import annotations

import sys

from crash_hotplug_lab.cli.main import main


def run() -> None:
    """Run the command on the command line and exit with its code."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
