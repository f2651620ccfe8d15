# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab report``: writes the page of a session again, and draws its storms."""

from __future__ import annotations

import argparse
from pathlib import Path

from crash_hotplug.cli import exit_codes
from crash_hotplug_lab.cli.main import needs_extras

DESCRIPTION = """\
Writes report.html again from the result.json of a session of `crash-hotplug-lab run` or `guest`.

If the session has storms (scenarios storm-reload, storm-throttled, storm-watch), the command also draws
storm-timeline.svg and storm-timeline.png: when the loaded crash image was accurate, stale or missing.
Drawing requires matplotlib.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab report                 the latest session
  crash-hotplug-lab report build/lab
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="directory of the session (default: the latest)")


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Write the page, then the pictures; print the path of each."""
    from crash_hotplug_lab.qemu import report, results, storm_picture  # noqa: PLC0415
    from crash_hotplug_lab.qemu.debian import cache_dir  # noqa: PLC0415

    directory = Path(arguments.directory) if arguments.directory else cache_dir("results") / "latest"
    done, facts = results.read(directory)
    print(report.write(done, directory, facts))
    for path in storm_picture.draw(done, directory, facts):
        print(path)
    return exit_codes.DONE
