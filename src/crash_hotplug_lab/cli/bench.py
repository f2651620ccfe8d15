# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab bench``: measures an update in place on this machine beside a full reload."""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json, progress
from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.core.finding import Verdict
from crash_hotplug.linux.loading.live_machine import LiveMachine
from crash_hotplug.linux.loading.reload import find_reload_tool
from crash_hotplug_lab.bench.bench_updates import IN_PLACE, Measured, bench

DESCRIPTION = """\
Measures updates in place and full reloads on this machine, in turns: an update in place (lock, observation,
plan, kexec_load, check), and a reload by kdumpctl, by kdump-config or by the commands given.  For each it
reports the wall time, the CPU time of the process and its children, and the time without a crash image.  The
time without an image is measured with ptrace: from the start of the system call that drops the image to the
end of the system call after which an image is loaded.  The first update after a load hashes the image and is
reported separately.

Each update and each reload leaves this machine without a crash image for a moment.  A panic at that moment
saves no dump.  Requires --yes.  The image loaded last stays loaded, updated in place.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab bench --yes                      beside kdumpctl reload or kdump-config reload
  crash-hotplug-lab bench --yes --rounds 50 --json
  crash-hotplug-lab bench --yes --no-reload          updates in place only
  crash-hotplug-lab bench --yes --against "kexec -p -s /boot/vmlinuz --initrd=/boot/kdump.img --reuse-cmdline"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--yes", action="store_true", help="accept moments without a crash image")
    parser.add_argument("--rounds", type=_rounds, default=20, metavar="N", help="measure each N times (20)")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--against", action="append", metavar="COMMAND", help="a command that loads a crash image (may be repeated)"
    )
    group.add_argument("--no-reload", action="store_true", help="measure updates in place only")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :raise CrashHotplugError: an update or a reload failed
    """
    commands = _commands(arguments)
    if not arguments.yes:
        names = ", ".join(shlex.join(command) for command in commands) or "updates in place"
        print(
            f"crash-hotplug-lab bench: {arguments.rounds} times {names}: each leaves the machine without a crash image "
            "for a moment; --yes accepts that",
            file=sys.stderr,
        )
        return exit_codes.USAGE
    live = LiveMachine()
    refused = live.why_refused()
    if refused is not None:
        raise CrashHotplugError(refused)
    if live.image_loaded() is False and not commands:
        return _show_no_image(arguments.json)
    with closing(live.observe()) as observation:
        observation.identity()  # the updates are made by children, which know the kernel's symbols as a service does
    found = [measured for measured in bench(commands, arguments.rounds, progress) if measured.timings]
    if arguments.json:
        print_json({"command": "bench", "rounds": arguments.rounds, "measured": [_json(m, found[0]) for m in found]})
    else:
        print("\n".join(_table(found)))
    return exit_codes.DONE


def _show_no_image(as_json: bool) -> int:
    reason = "no crash image is loaded"
    if as_json:
        print_json({"command": "bench", "verdict": Verdict.NO_IMAGE.value, "reason": reason})
    else:
        print(f"crash-hotplug-lab bench: {reason}", file=sys.stderr)
    return exit_codes.NO_IMAGE


def _commands(arguments: argparse.Namespace) -> list[list[str]]:
    if arguments.no_reload:
        return []
    if arguments.against is not None:
        try:
            commands = [shlex.split(text) for text in arguments.against]
        except ValueError as error:
            raise exit_codes.UsageError(f"--against cannot be read: {error}") from error
        if not all(commands):
            raise exit_codes.UsageError("--against has no command")
        return commands
    tool = find_reload_tool()
    if tool is None:
        raise InputError(
            "neither kdumpctl nor kdump-config is installed; name a command that loads the crash image with --against, "
            "or measure updates in place only with --no-reload"
        )
    return [tool]


class Spread(NamedTuple):
    """The distribution of repeated measurements."""

    least: float
    lower_quartile: float
    median: float
    upper_quartile: float
    most: float


def spread_of(values: Sequence[float]) -> Spread:
    """Return the least value, the quartiles and the greatest value.

    :raise ValueError: there are no values
    """
    if not values:
        raise ValueError("no measurements")
    if len(values) == 1:
        return Spread(*[values[0]] * 5)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(min(values), lower, median, upper, max(values))


def ratio_of_medians(values: Sequence[float], base: Sequence[float]) -> float | None:
    """Return the median of *values* divided by the median of *base*; None where that is 0."""
    divisor = statistics.median(base)
    return statistics.median(values) / divisor if divisor > 0 else None


def _table(found: list[Measured]) -> list[str]:
    """Return the lines for people: median, least and most in brackets, and the ratio to the update in place."""
    lines = ["Milliseconds: median (least to most); x: times that of the update in place", ""]
    for measured in found:
        lines.append(f"{measured.name}, {len(measured.timings)} times")
        for label, values, base in _columns(measured, found[0]):
            ratio = ratio_of_medians(values, base)
            against = "" if measured is found[0] or ratio is None else f"  x {ratio:.2f}"
            lines.append(f"  {label:<22}{_shown(spread_of(values))}{against}")
    return lines


def _shown(spread: Spread) -> str:
    return f"{spread.median * 1e3:9.2f} ({spread.least * 1e3:.2f} to {spread.most * 1e3:.2f})"


def _columns(measured: Measured, base: Measured) -> list[tuple[str, list[float], list[float]]]:
    return [
        ("wall time", [t.wall for t in measured.timings], [t.wall for t in base.timings]),
        ("CPU time", [t.cpu for t in measured.timings], [t.cpu for t in base.timings]),
        (
            "without an image",
            [t.without_image for t in measured.timings],
            [t.without_image for t in base.timings],
        ),
    ]


def _json(measured: Measured, base: Measured) -> dict[str, Any]:
    """Return the JSON object of a measured update or reload: every value, in seconds."""
    report: dict[str, Any] = {"name": measured.name, "in_place": measured.name == IN_PLACE}
    report["kexec_calls"] = [timing.calls for timing in measured.timings]
    for label, values, base_values in _columns(measured, base):
        key = {"wall time": "wall_seconds", "CPU time": "cpu_seconds"}.get(label, "without_image_seconds")
        ratio = ratio_of_medians(values, base_values)
        report[key] = {**_spread_json(values), "ratio_to_in_place": None if ratio is None else round(ratio, 3)}
    return report


def _spread_json(values: list[float]) -> dict[str, Any]:
    spread = {key: round(value, 6) for key, value in spread_of(values)._asdict().items()}
    return {**spread, "values": [round(value, 6) for value in values]}


def _rounds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)
