"""``crash-hotplug-lab report``: write a session's page anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from crash_hotplug.cli import exit_codes
from crash_hotplug_lab.cli.main import missing_extra

DESCRIPTION = "Writes report.html anew from the result.json of a session of `crash-hotplug-lab run` or `guest`."
EXAMPLES = """\
examples:
  crash-hotplug-lab report                 of the latest session
  crash-hotplug-lab report build/lab
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="of the results (default: the latest)")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    try:
        from crash_hotplug_lab.qemu import cachedir, report, results  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    directory = Path(arguments.directory) if arguments.directory else cachedir.cache_dir("results") / "latest"
    done, facts = results.read(directory)
    print(report.write(done, directory, facts))
    return exit_codes.DONE
