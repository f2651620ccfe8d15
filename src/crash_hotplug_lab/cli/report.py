"""``crash-hotplug-lab report``: write the page of a session again, and draw its storms."""

from __future__ import annotations

import argparse
from pathlib import Path

from crash_hotplug.cli import exit_codes
from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.cli.main import missing_extra

DESCRIPTION = """\
Writes report.html again from the result.json of a session of `crash-hotplug-lab run` or `guest`.

Where the session has storms (scenarios storm-reload, storm-throttled, storm-watch), draws storm-timeline.svg
and storm-timeline.png beside it: when the loaded crash image was accurate, stale or missing.  The pictures need
matplotlib.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab report                 of the latest session
  crash-hotplug-lab report build/lab
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="of the results (default: the latest)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page, then the pictures; print the path of each."""
    try:
        from crash_hotplug_lab.qemu import report, results, storm_picture  # noqa: PLC0415
        from crash_hotplug_lab.qemu.debian import cache_dir  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    directory = Path(arguments.directory) if arguments.directory else cache_dir("results") / "latest"
    done, facts = results.read(directory)
    print(report.write(done, directory, facts))
    try:
        pictures = storm_picture.draw(done, directory, facts)
    except ModuleNotFoundError:
        raise InputError("drawing the storms needs matplotlib; install it with: pip install '.[report]'") from None
    for path in pictures:
        print(path)
    return exit_codes.DONE
