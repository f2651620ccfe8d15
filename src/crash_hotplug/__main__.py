"""Run the command line: ``python3 -m crash_hotplug``."""

from __future__ import annotations

import gc
import sys


def run() -> None:
    """Run the command on the command line and exit with its code."""
    gc.disable()  # imports make many objects and no garbage; main() enables it before the command runs
    from crash_hotplug.cli.main import main  # noqa: PLC0415

    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
