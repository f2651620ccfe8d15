"""``crash-hotplug update``: bring the loaded crash image's header up to date, once."""

from __future__ import annotations

import argparse
import time

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.handler import Event, EventKind, Outcome, handle_event
from crash_hotplug.core.handler import run as run_steps
from crash_hotplug.core.handler_policies import InPlace
from crash_hotplug.linux.live_machine import LiveMachine

DESCRIPTION = """\
Brings the elfcorehdr of the loaded crash image up to date in place, by one small kexec_load: kernel and
initrd of the image stay where they are, and nothing is read from disk.
"""
EXAMPLES = """\
examples:
  crash-hotplug update            as root, after CPUs or memory came or went
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    started = time.perf_counter()
    report = run_steps(handle_event(LiveMachine(), InPlace(), Event(EventKind.LOOK)))
    seconds = time.perf_counter() - started
    if arguments.json:
        print_json(
            {"command": "update", "outcome": report.outcome.value, "reason": report.sentence, "seconds": seconds}
        )
    else:
        print(f"{report.outcome.value}: {report.sentence} ({seconds * 1e3:.0f} ms)")
    if report.outcome in (Outcome.UPDATED, Outcome.UNCHANGED):
        return exit_codes.DONE
    return exit_codes.NO_IMAGE if report.outcome is Outcome.NOT_LOADED else exit_codes.FAILED
