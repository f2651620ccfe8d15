# SPDX-License-Identifier: MIT
"""``crash-hotplug snapshot``: save the files that the other commands read."""

from __future__ import annotations

import argparse
import io
import os
import sys

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, add_sysroot
from crash_hotplug.cli.output import print_json, printable
from crash_hotplug.core.errors import InputError
from crash_hotplug.linux.atomic_file import write_atomically
from crash_hotplug.linux.snapshot import take_snapshot, write_directory, write_tar
from crash_hotplug.linux.sysroot import open_sysroot

DESCRIPTION = """\
Saves the parts of /proc and /sys that the other commands read, and the headers of the loaded crash image,
as a tree for --sysroot.  Of the machine's memory only those headers and the capture kernel's command line
are saved.
"""
EXAMPLES = """\
examples:
  crash-hotplug snapshot -o case-4711.tar.gz    one file to send, as root
  crash-hotplug snapshot -o case-4711           a directory, for status --sysroot case-4711
  crash-hotplug snapshot --sysroot sosreport-host-2026-11-27.tar.xz -o case-4711.tar.gz
"""
_ARCHIVES = (".tar.gz", ".tgz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_sysroot(parser)
    parser.add_argument(
        "-o", "--output", metavar="DIR|FILE.tar.gz", required=True, help="a new directory, or an archive to write"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code is 5 where a file could not be saved."""
    output: str = arguments.output
    is_archive = output.endswith(_ARCHIVES)
    if not is_archive and output.endswith((".tar", ".zip", ".xz")):
        raise InputError(f"{output} names an archive of another kind; a directory or FILE.tar.gz can be written")
    snapshot = take_snapshot(open_sysroot(arguments.sysroot))
    if is_archive:
        top = os.path.basename(output)[: -len(".tar.gz") if output.endswith(".tar.gz") else -len(".tgz")] or "snapshot"
        packed = io.BytesIO()
        write_tar(snapshot, top, packed)
        write_atomically(output, packed.getvalue())
    else:
        write_directory(snapshot, output)
    if arguments.json:
        report = {"command": "snapshot", "output": output, "files": sorted(snapshot.files)}
        print_json({**report, "missing": snapshot.missing})
    else:
        print(f"saved {len(snapshot.files)} files in {printable(output)}")
        for sentence in snapshot.missing:
            print(f"not saved: {printable(sentence)}", file=sys.stderr)
    return exit_codes.CANNOT_TELL if snapshot.missing else exit_codes.DONE
