"""``crash-hotplug watch``: keep the loaded crash image's header right while CPUs and memory come and go."""

from __future__ import annotations

import argparse
import os
import sys
import time

from crash_hotplug import __version__
from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json, print_verdict
from crash_hotplug.core.errors import CannotTellError
from crash_hotplug.core.service.watch_record import WatchRecord
from crash_hotplug.core.service.watch_schedule import HEARTBEAT, MAX_DELAY, Schedule
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.service.reconciler import Reconciler
from crash_hotplug.linux.service.sd_notify import Notifier
from crash_hotplug.linux.service.uevents import UeventSocket
from crash_hotplug.linux.service.watch_service import INFO, WARNING, Service, write_metrics
from crash_hotplug.linux.sysroot import Sysroot

DESCRIPTION = """\
Runs until it is stopped, and corrects the elfcorehdr of the loaded crash image whenever CPUs or memory came or
went: at the kernel's uevents, and at a slow heartbeat for what no event tells, such as an image that somebody
else loaded.  Where the kernel itself does that work, it is verified, and corrected where the kernel erred.  Runs
under systemd (Type=notify) or in the foreground.  SIGHUP looks at once and reads everything anew.
"""
EXAMPLES = """\
examples:
  crash-hotplug watch                        as root, in the foreground; Ctrl-C ends it
  crash-hotplug watch --once                 one look, then the exit status says how it is
  systemctl enable --now crash-hotplug       as a service
  crash-hotplug watch --metrics-file /var/lib/prometheus/node-exporter/crash-hotplug.prom
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "--strategy",
        choices=("auto", "in-place", "reload"),
        default="auto",
        help="how a header is corrected: in-place, or reload with kdumpctl, kdump-config, or as `crash-hotplug load` "
        "did; auto (default) reloads only where in place cannot be, and only when no more events come",
    )
    parser.add_argument(
        "--max-delay",
        type=_seconds,
        default=MAX_DELAY,
        metavar="SECONDS",
        help=f"look no later than this after an event (default {MAX_DELAY:g})",
    )
    parser.add_argument(
        "--heartbeat",
        type=_seconds,
        default=HEARTBEAT,
        metavar="SECONDS",
        help=f"look this often when nothing happens (default {HEARTBEAT:g})",
    )
    parser.add_argument(
        "--metrics-file",
        metavar="FILE",
        help="keep metrics for Prometheus in this file (node_exporter's textfile collector)",
    )
    parser.add_argument("--once", action="store_true", help="look once, correct what is to be corrected, and end")
    add_json(parser)


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

    :raise CannotTellError: nothing can be told or done on this machine
    """
    if arguments.json and not arguments.once:
        print("crash-hotplug watch: --json goes with --once; a running service has --metrics-file", file=sys.stderr)
        return exit_codes.USAGE
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
        log.say(WARNING, f"no update in place here: {lacks}")
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
        print(f"{look.strategy}: {look.outcome.value}: {look.action}")
    print_verdict(look.verdict, look.sentence)
    return exit_codes.of_verdict(look.verdict)


_STDERR = 2


class _Log:
    """Lines on standard error; for the journal each with its priority in front (sd-daemon(3))."""

    def __init__(self) -> None:
        self._is_journal = _is_journal(_STDERR, os.environ.get("JOURNAL_STREAM", ""))

    def say(self, priority: int, line: str) -> None:
        """Write one line."""
        prefix = f"<{priority}>" if self._is_journal else "crash-hotplug watch: "
        print(prefix + " ".join(line.split()), file=sys.stderr, flush=True)


def _is_journal(descriptor: int, stream: str) -> bool:
    """Whether the descriptor is the stream to the journal that systemd described: ``DEVICE:INODE``."""
    try:
        found = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"
