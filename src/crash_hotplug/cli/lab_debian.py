"""``crash-hotplug lab debian``: the same full Debian guest without this package, and with it."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.lab_progress import say
from crash_hotplug.core.errors import InputError
from crash_hotplug.lab import report, results, session
from crash_hotplug.lab.distro import distro_image, distro_run
from crash_hotplug.lab.distro.sides import LAST_RESORT, RELOAD, RULE, SIDES, WITH, WITHOUT
from crash_hotplug.lab.results import Result


def run(arguments: argparse.Namespace) -> int:
    """Build the guest's image where it is missing, and run the sides; exit code 1 where one was not as expected."""
    deb = Path(arguments.deb) if arguments.deb else None
    if deb is not None and not deb.is_file():
        raise InputError(f"there is no package file {deb}")
    sides = [arguments.side] if arguments.side else list(SIDES) if deb else [WITHOUT, RULE]
    if deb is None and sides[0] in (WITH, RELOAD, LAST_RESORT):
        raise InputError(f"the side `{sides[0]}` needs the package file to install (--deb FILE; `make deb` builds it)")
    image = distro_image.build(arguments.release, say, arguments.rebuild)
    if arguments.build:
        print(image.disk)
        return exit_codes.DONE
    directory = Path(arguments.output) if arguments.output else session.new_directory()
    plugged = distro_run.STORM if arguments.storm else distro_run.FEW
    done: list[Result] = []
    for side in sides:
        own = directory / f"debian-{image.release}-{side}"
        own.mkdir(parents=True, exist_ok=True)
        say(f"Debian {distro_image.RELEASES[image.release]}, {side} this package")
        result = asyncio.run(distro_run.run(image, side, deb, own, lambda what: say(f"  {what}"), plugged))
        done.append(result)
        results.write(done, directory, session.facts())
        _print(result)
    print(report.write(done, directory, session.facts()))
    return exit_codes.FAILED if session.exit_failed(done) else exit_codes.DONE


def _print(result: Result) -> None:
    print(f"{result.outcome.upper():7} {result.title} {result.seconds:.0f} s  {result.reason}", flush=True)
    for check in result.checks:
        detail = f": {check.detail.splitlines()[0]}" if check.detail else ""
        print(f"  {'ok' if check.ok else 'NOT OK':6} {check.name}{detail}", flush=True)
