# SPDX-License-Identifier: MIT
"""``crash-hotplug watch``: keep the loaded crash image's header accurate while CPUs and memory come and go."""

from __future__ import annotations

import argparse
import os
import sys
import time

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json, print_verdict, printable
from crash_hotplug.core.errors import CannotTellError, InputError
from crash_hotplug.core.service.watch_record import WatchRecord
from crash_hotplug.core.service.watch_schedule import HEARTBEAT, MAX_DELAY, Schedule
from crash_hotplug.linux.atomic_file import check_replaceable
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.service.reconciler import Reconciler
from crash_hotplug.linux.service.sd_notify import Notifier
from crash_hotplug.linux.service.uevents import UeventSocket
from crash_hotplug.linux.service.watch_service import INFO, WARNING, Service, write_metrics
from crash_hotplug.linux.sysroot import Sysroot

DESCRIPTION = """\
Runs until it is stopped.  Corrects the elfcorehdr of the loaded crash image when CPUs or memory were added or
removed.  The kernel's uevents start a look at the machine; a slow heartbeat finds changes without a uevent, such
as an image that another process loaded.  If the kernel updates the elfcorehdr itself, watch verifies the update
and fixes it if it is wrong.  Runs under systemd (Type=notify) or in the foreground.  SIGHUP starts a look at once,
which reads all files again.
"""
EXAMPLES = """\
examples:
  crash-hotplug watch                        as root, in the foreground; Ctrl-C ends it
  crash-hotplug watch --once                 one look; the exit status is the verdict
  systemctl enable --now crash-hotplug       as a service
  crash-hotplug watch --metrics-file /var/lib/prometheus/node-exporter/crash-hotplug.prom
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--strategy",
        choices=("auto", "in-place", "reload"),
        default="auto",
        help="how to correct a header: in-place, or reload with kdumpctl, kdump-config, load-once.sh, or the record of "
        "`crash-hotplug load`; auto (default) reloads only if an update in place is impossible, after the last event",
    )
    parser.add_argument(
        "--max-delay",
        type=_seconds,
        default=MAX_DELAY,
        metavar="SECONDS",
        help=f"greatest delay from an event to the look at the machine (default {MAX_DELAY:g})",
    )
    parser.add_argument(
        "--heartbeat",
        type=_seconds,
        default=HEARTBEAT,
        metavar="SECONDS",
        help=f"time between looks while no event comes (default {HEARTBEAT:g})",
    )
    parser.add_argument(
        "--metrics-file",
        type=_metrics_file,
        metavar="FILE",
        help="write metrics for Prometheus to this file (node_exporter's textfile collector)",
    )
    parser.add_argument("--once", action="store_true", help="look once, correct the header if it is wrong, and exit")
    add_json(parser)


def _metrics_file(path: str) -> str:
    try:
        check_replaceable(path)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.01 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.01 to 86400")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :raise CannotTellError: the machine can be neither read nor changed
    :raise UsageError: options do not fit together
    """
    if arguments.json and not arguments.once:
        raise exit_codes.UsageError("--json requires --once; a running service has --metrics-file")
    if arguments.once and (arguments.max_delay, arguments.heartbeat) != (MAX_DELAY, HEARTBEAT):
        raise exit_codes.UsageError("--once looks at once and exits: it takes neither --max-delay nor --heartbeat")
    log = _Log()
    notifier = Notifier()
    sysroot = Sysroot()
    reconciler = Reconciler(
        LiveMachine(sysroot),
        sysroot,
        arguments.strategy,
        while_waiting=notifier.alive,
        say=lambda what: log.say(INFO, what),
    )
    blind = reconciler.why_blind()
    if blind is not None:
        raise CannotTellError(blind)
    record = WatchRecord(__version__, time.time())
    if arguments.once:
        return _once(reconciler, record, arguments)
    lacks = reconciler.what_lacks()
    if lacks is not None:
        log.say(WARNING, f"this machine allows no update in place: {lacks}")
    uevents = UeventSocket()
    schedule = Schedule(time.monotonic(), arguments.max_delay, arguments.heartbeat)
    Service(reconciler, uevents, schedule, record, log.say, notifier, arguments.metrics_file).run()
    return exit_codes.DONE


def _once(reconciler: Reconciler, record: WatchRecord, arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    look = reconciler.look(is_quiet=True)
    seconds = time.monotonic() - started
    record.add(look, "start", time.time(), seconds)
    if arguments.metrics_file is not None:
        write_metrics(arguments.metrics_file, record)
    if arguments.json:
        print_json({
            "command": "watch",
            "verdict": look.verdict.value,
            "reason": look.sentence,
            "strategy": look.strategy,
            "outcome": look.outcome.value,
            "done": look.action,
            "seconds": round(seconds, 6),
            "kexec_load_seconds": round(look.kexec_seconds, 6),
            "room_left": look.room_left,
        })  # fmt: skip
        return exit_codes.of_verdict(look.verdict)
    if look.action:
        print(f"{look.strategy}: {look.outcome.value}: {printable(look.action)}")
    print_verdict(look.verdict, look.sentence)
    return exit_codes.of_verdict(look.verdict)


_STDERR = 2


class _Log:
    """Lines on standard error; in the journal each begins with its priority (sd-daemon(3))."""

    def __init__(self) -> None:
        self._is_journal = _is_journal(_STDERR, os.environ.get("JOURNAL_STREAM", ""))

    def say(self, priority: int, line: str) -> None:
        """Write one line."""
        prefix = f"<{priority}>" if self._is_journal else "crash-hotplug watch: "
        print(prefix + printable(" ".join(line.split())), file=sys.stderr, flush=True)


def _is_journal(descriptor: int, stream: str) -> bool:
    """Whether the descriptor is the stream to the journal that systemd described: ``DEVICE:INODE``."""
    try:
        found = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"
