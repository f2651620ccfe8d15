# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab guest``: boots a full guest, without this package and with it."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import positive
from crash_hotplug.cli.exit_codes import UsageError
from crash_hotplug.cli.output import printable
from crash_hotplug.core.errors import InputError
from crash_hotplug_lab.cli.main import needs_extras
from crash_hotplug_lab.distro.family import DEBIAN, FAMILIES, RED_HAT, SUSE, Family, Sources, read_sources
from crash_hotplug_lab.distro.sides import LOCKS, NEED_NO_PACKAGE, SIDES

if TYPE_CHECKING:
    from crash_hotplug_lab.qemu.results import Result

DESCRIPTION = """\
Boots a full Debian (systemd, udev) with the kdump tools of a family of distributions under QEMU, plugs four DIMMs
and two CPUs, and panics on one of the added CPUs.  The family's tools save the dump.  Runs the guest as it is and,
with --deb, with this project's package installed.  The first run builds the guest's image without root and keeps it
in the cache.  redhat and suse need the sources of their tools, which this project does not carry.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab guest                                    Debian 12 as it is
  crash-hotplug-lab guest --deb dist/crash-hotplug_*.deb     and with the package
  crash-hotplug-lab guest --release trixie --side without
  crash-hotplug-lab guest redhat --kdump-utils kdump-utils-63f248c.tar.gz
  crash-hotplug-lab guest suse --kdump opensuse-kdump-34da4b8.tar.gz
"""
_SOURCES = {RED_HAT.name: "--kdump-utils", SUSE.name: "--kdump"}
"""The option that names the sources of a family's tools."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "family", nargs="?", choices=tuple(FAMILIES), default=DEBIAN.name,
        help="whose kdump tools: Debian's kdump-tools (default), Red Hat's kdump-utils, or openSUSE's kdump",
    )  # fmt: skip
    for family in (RED_HAT, SUSE):
        parser.add_argument(
            _SOURCES[family.name], metavar="PATH",
            help=f"the sources of {family.project}, as a directory or a tar file; for {family.name}",
        )  # fmt: skip
    parser.add_argument("--release", default="bookworm", metavar="R", help="bullseye, bookworm (default) or trixie")
    parser.add_argument(
        "--deb", metavar="FILE", help="this project's package; without it only the sides that need none are run"
    )
    parser.add_argument("--side", choices=tuple(SIDES), help="only this side")
    parser.add_argument("--storm", action="store_true", help="16 DIMMs of 2 GiB and 6 CPUs at once, and no panic")
    parser.add_argument(
        "--loader", choices=("c", "s"),
        help="by which system call the family's tools load the image: kexec_load (c) or kexec_file_load (s); default: "
             "as they are set up",
    )  # fmt: skip
    parser.add_argument("--rounds", type=positive, metavar="N", help="rounds of the side `locks` (default: 50)")
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

    if arguments.build and (arguments.side or arguments.deb or arguments.storm or arguments.output or arguments.loader):
        raise UsageError("--build only builds the image: it runs no side, installs no package and writes no results")
    if arguments.rounds and arguments.side not in (None, LOCKS):
        raise UsageError(f"--rounds is about the side `{LOCKS}`: it does not go with `{arguments.side}`")
    family = FAMILIES[arguments.family]
    if arguments.loader and family.kexec_args is None:
        raise UsageError(f"{family.name} has no setting for --loader: its tools try kexec_file_load first (kexec -a)")
    sources = _read_sources(arguments, family)
    deb = Path(arguments.deb) if arguments.deb else None
    sides = _sides(arguments.side, family, deb)
    image = images.build(images.DebianImage(arguments.release, family, sources), say, arguments.rebuild)
    if arguments.build:
        print(image.disk)
        return exit_codes.DONE
    directory = Path(arguments.output) if arguments.output else session.new_directory()
    plugged = one_run.STORM if arguments.storm else one_run.FEW
    plugged = replace(plugged, rounds=arguments.rounds or plugged.rounds)
    done: list[Result] = []
    for side in sides:
        own = directory / f"{family.name}-{image.release}-{side}"
        own.mkdir(parents=True, exist_ok=True)
        say(f"{family.title % images.RELEASES[image.release]}: {side}, {SIDES[side]}")
        result = asyncio.run(one_run.run(image, side, deb, own, lambda what: say(f"  {what}"), plugged,
                                         arguments.loader or ""))  # fmt: skip
        done.append(result)
        results.write(done, directory, session.facts())
        _print(result)
    print(report.write(done, directory, session.facts()))
    return exit_codes.FAILED if session.exit_failed(done) else exit_codes.DONE


def _read_sources(arguments: argparse.Namespace, family: Family) -> Sources | None:
    """Read the sources of the family's tools; None for Debian's, which are a package.

    :raise UsageError: they are not given, or those of another family are
    """
    for name, option in _SOURCES.items():
        given = getattr(arguments, option[2:].replace("-", "_"))
        if name == family.name and given is None:
            what = f"the sources of {family.project}, which this project does not carry"
            raise UsageError(f"{family.name} needs {what} ({option} PATH)")
        if name != family.name and given is not None:
            raise UsageError(f"{option} is for `{name}`: it does not go with `{family.name}`")
        if given is not None:
            return read_sources(family, Path(given))
    return None


def _sides(side: str | None, family: Family, deb: Path | None) -> list[str]:
    """Return the sides to run.

    :raise UsageError: options do not fit together
    :raise InputError: there is no package file
    """
    need_none = [known for known in NEED_NO_PACKAGE if known in family.sides]
    if side is not None and side not in family.sides:
        raise UsageError(f"{family.name} has no side `{side}`: it has {', '.join(family.sides)}")
    if deb is not None and side in need_none:
        raise UsageError(f"the side `{side}` installs no package: it does not go with --deb")
    if deb is not None and not deb.is_file():
        raise InputError(f"there is no package file {deb}")
    if side is None:
        return list(family.sides) if deb else need_none
    if deb is None and side not in need_none:
        raise UsageError(f"the side `{side}` needs the package file to install (--deb FILE; `make deb` builds it)")
    return [side]


def _print(result: Result) -> None:
    print(f"{result.outcome.upper():7} {result.title} {result.seconds:.0f} s  {printable(result.reason)}", flush=True)
    for check in result.checks:
        detail = f": {printable(check.detail.splitlines()[0])}" if check.detail else ""
        print(f"  {'ok' if check.ok else 'NOT OK':6} {check.name}{detail}", flush=True)
