# SPDX-License-Identifier: MIT
"""``--picture``: write what a command reports as a picture."""

from __future__ import annotations

import argparse

from crash_hotplug.cli.exit_codes import UsageError
from crash_hotplug.cli.output import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from crash_hotplug.core.picture.states import Picture


def add_picture(parser: argparse.ArgumentParser) -> None:
    """Add ``--picture``."""
    parser.add_argument("--picture", metavar="FILE.svg", help="also draw memory and CPUs into this file, as SVG")


def check_picture(path: str | None) -> None:
    """Check the value of ``--picture`` before anything is read.

    :raise UsageError: it does not name a file
    :raise InputError: it names something that cannot be replaced
    """
    if path in ("", "-"):
        raise UsageError("--picture requires the name of a file: standard output gets the report")
    if path is not None:
        from crash_hotplug.linux.atomic_file import check_replaceable  # noqa: PLC0415

        check_replaceable(path)


def headline(word: str, sentence: str) -> str:
    """Return the title of a picture: the first line of the report."""
    return f"{word.upper()}: {sentence}"


def write_picture(path: str, picture: Picture) -> None:
    """Write the picture as SVG.

    :raise InputError: the file cannot be written
    """
    # Imported here: without --picture a command needs neither and has to start fast.
    from crash_hotplug.core.picture.svg import to_svg  # noqa: PLC0415
    from crash_hotplug.linux.atomic_file import write_atomically  # noqa: PLC0415

    write_atomically(path, to_svg(printable_picture(picture)).encode("utf-8"))


def printable_picture(picture: Picture) -> Picture:
    """Return *picture* with every text escaped that may come from a file."""
    return picture._replace(
        title=printable(picture.title),
        subtitle=printable(picture.subtitle),
        others=tuple(map(printable, picture.others)),
        remark=printable(picture.remark),
    )
