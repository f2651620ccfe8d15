# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab guest``: boots a full Debian guest, without this package and with it."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.exit_codes import UsageError
from crash_hotplug.cli.output import printable
from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.cli.main import needs_extras
from crash_hotplug_lab.distro.sides import LAST_RESORT, RELOAD, RULE, SIDES, WITH, WITHOUT

if TYPE_CHECKING:
    from crash_hotplug_lab.qemu.results import Result

DESCRIPTION = """\
Boots a full Debian (systemd, udev, kdump-tools) under QEMU, plugs four DIMMs and two CPUs, and panics on one
of the added CPUs.  kdump-tools saves the dump.  Runs Debian as it is and, with --deb, with
this project's package installed.  The first run builds the guest's image without root and keeps it in the cache.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab guest                                    Debian 12 as it is
  crash-hotplug-lab guest --deb dist/crash-hotplug_*.deb     and with the package
  crash-hotplug-lab guest --release trixie --side without
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--release", default="bookworm", metavar="R", help="bullseye, bookworm (default) or trixie")
    parser.add_argument(
        "--deb", metavar="FILE", help="this project's package; without it only the sides that need none are run"
    )
    parser.add_argument("--side", choices=tuple(SIDES), help="only this side")
    parser.add_argument("--storm", action="store_true", help="16 DIMMs of 2 GiB and 6 CPUs at once, and no panic")
    parser.add_argument("--build", action="store_true", help="only build the guest's disk image and print its path")
    parser.add_argument("--rebuild", action="store_true", help="build the image again, from the newest packages")
    parser.add_argument("-o", "--output", metavar="DIR", help="where results go (default: a new one in the cache)")


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Build the guest's image if there is none, and run the sides.

    :return: 1 if a side was not as expected
    :raise UsageError: options do not fit together
    """
    from crash_hotplug_lab.cli.progress import say  # noqa: PLC0415
    from crash_hotplug_lab.distro import image as images  # noqa: PLC0415
    from crash_hotplug_lab.distro import run as one_run  # noqa: PLC0415
    from crash_hotplug_lab.qemu import report, results, session  # noqa: PLC0415

    if arguments.build and (arguments.side or arguments.deb or arguments.storm or arguments.output):
        raise UsageError("--build only builds the image: it runs no side, installs no package and writes no results")
    if arguments.deb and arguments.side in (WITHOUT, RULE):
        raise UsageError(f"the side `{arguments.side}` installs no package: it does not go with --deb")
    deb = Path(arguments.deb) if arguments.deb else None
    if deb is not None and not deb.is_file():
        raise InputError(f"there is no package file {deb}")
    sides = [arguments.side] if arguments.side else list(SIDES) if deb else [WITHOUT, RULE]
    if deb is None and sides[0] in (WITH, RELOAD, LAST_RESORT):
        raise UsageError(f"the side `{sides[0]}` needs the package file to install (--deb FILE; `make deb` builds it)")
    image = images.build(arguments.release, say, arguments.rebuild)
    if arguments.build:
        print(image.disk)
        return exit_codes.DONE
    directory = Path(arguments.output) if arguments.output else session.new_directory()
    plugged = one_run.STORM if arguments.storm else one_run.FEW
    done: list[Result] = []
    for side in sides:
        own = directory / f"debian-{image.release}-{side}"
        own.mkdir(parents=True, exist_ok=True)
        say(f"Debian {images.RELEASES[image.release]}, {side} this package")
        result = asyncio.run(one_run.run(image, side, deb, own, lambda what: say(f"  {what}"), plugged))
        done.append(result)
        results.write(done, directory, session.facts())
        _print(result)
    print(report.write(done, directory, session.facts()))
    return exit_codes.FAILED if session.exit_failed(done) else exit_codes.DONE


def _print(result: Result) -> None:
    print(f"{result.outcome.upper():7} {result.title} {result.seconds:.0f} s  {printable(result.reason)}", flush=True)
    for check in result.checks:
        detail = f": {printable(check.detail.splitlines()[0])}" if check.detail else ""
        print(f"  {'ok' if check.ok else 'NOT OK':6} {check.name}{detail}", flush=True)
