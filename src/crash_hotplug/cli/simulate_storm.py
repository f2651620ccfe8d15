"""``crash-hotplug simulate --storm``: many memory blocks at once, four policies side by side.

cli/simulate.py calls :func:`add_arguments` and, where ``--storm`` was given, :func:`run_storm`.  Its parser has
``--json`` and ``--output`` already.
"""

from __future__ import annotations

import argparse
import os
import sys

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.output import print_json
from crash_hotplug.core.errors import InputError
from crash_hotplug.model.storm import MOST_BLOCKS, StormOutcome, StormShape, simulate_storm
from crash_hotplug.model.storm_costs import BLOCKS_PER_DIMM, COST_SETS, LONGEST, StormCosts
from crash_hotplug.model.storm_drawing import MissingLibraryError, draw_storm
from crash_hotplug.model.storm_policies import POLICIES
from crash_hotplug.model.storm_published import compare_with_published
from crash_hotplug.model.storm_report import describe_cost, published_json, published_lines, storm_json, storm_lines

PUBLISHED = "published"
"""The word in place of the number that asks for the comparison."""

_DEFAULT_COSTS = next(iter(COST_SETS))
_COST_HELP = {
    "event": "bringing one memory block online",
    "dimm": "plugging one DIMM",
    "reload": "one kdumpctl reload",
    "kernel_update": "one update by the kernel's own handler",
    "in_place_look": "reading the machine and building its header, in user space",
    "in_place_update": "one kexec_load of the elfcorehdr alone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--storm`` and the options of its costs."""
    group = parser.add_argument_group(
        "storm", "Many memory blocks plugged at once, in virtual time. --storm 3840 is a guest from 32 to 512 GiB."
    )
    group.add_argument(
        "--storm",
        metavar="N|published",
        type=_blocks_or_published,
        help="plug N memory blocks; or simulate the published storms and compare",
    )
    group.add_argument(
        "--dimm-blocks",
        metavar="K",
        type=_blocks,
        help=f"memory blocks in one DIMM (default {BLOCKS_PER_DIMM}; N for a single DIMM)",
    )
    group.add_argument(
        "--costs",
        choices=list(COST_SETS),
        help=f"whose explanation of the published times the costs follow (default {_DEFAULT_COSTS})",
    )
    for name, cost in COST_SETS[_DEFAULT_COSTS].items():
        if name in _COST_HELP:
            group.add_argument(
                f"--{name.replace('_', '-')}-cost",
                metavar="SECONDS",
                type=_cost,
                help=f"{_COST_HELP[name]} (default {describe_cost(name, cost)})",
            )
    group.add_argument(
        "--reload-gap",
        metavar="SHARE",
        type=_share,
        help="the part of a reload, 0 to 1, without an image (default 1, an upper bound)",
    )
    group.add_argument("--no-picture", action="store_true", help="do not draw storm-N.png and storm-N.svg")


def run_storm(arguments: argparse.Namespace) -> int:
    """Run the storm that the arguments ask for; always 0, the policies are judged by the table."""
    if arguments.storm == PUBLISHED:
        _print_published(arguments)
        return exit_codes.DONE
    shape = StormShape(arguments.storm, arguments.dimm_blocks or BLOCKS_PER_DIMM)
    costs = COST_SETS[arguments.costs or _DEFAULT_COSTS].with_values(_given_costs(arguments))
    outcomes = []
    for name, make_policy in POLICIES.items():
        _say_progress(f"simulating {name}")
        outcomes.append(simulate_storm(shape, costs, make_policy))
    _say_progress("drawing")
    pictures, reason = _draw(arguments, shape, costs, outcomes)
    _say_progress("")
    if arguments.json:
        report = {"command": "simulate", **storm_json(shape, costs, outcomes), "pictures": pictures}
        print_json(report if reason is None else {**report, "no_pictures_because": reason})
        return exit_codes.DONE
    print("\n".join(storm_lines(shape, costs, outcomes)))
    print("\nHow this compares with published times, and where it cannot: --storm published")
    for path in pictures:
        print(f"drawn: {path}")
    if reason is not None:
        print(f"not drawn: {reason}", file=sys.stderr)
    return exit_codes.DONE


def _say_progress(what: str) -> None:
    """Say on a terminal what is being done; the next call, or an empty one, takes it away."""
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _print_published(arguments: argparse.Namespace) -> None:
    if _given_costs(arguments) or arguments.costs or arguments.dimm_blocks:
        raise InputError(f"--storm {PUBLISHED} has its own DIMMs and costs; leave those options out")
    compared = compare_with_published()
    if arguments.json:
        print_json({"command": "simulate", **published_json(compared)})
    else:
        print("\n".join(published_lines(compared)))


def _blocks_or_published(text: str) -> int | str:
    return PUBLISHED if text == PUBLISHED else _blocks(text)


def _blocks(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
    if not 1 <= number <= MOST_BLOCKS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of memory blocks from 1 to {MOST_BLOCKS}")
    return number


def _cost(text: str) -> float:
    return _number(text, LONGEST)


def _share(text: str) -> float:
    return _number(text, 1.0)


def _number(text: str, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most:g}")
    return number


def _given_costs(arguments: argparse.Namespace) -> dict[str, float]:
    given = {name: getattr(arguments, f"{name}_cost") for name in _COST_HELP}
    given["reload_gap"] = arguments.reload_gap
    return {name: value for name, value in given.items() if value is not None}


def _draw(
    arguments: argparse.Namespace, shape: StormShape, costs: StormCosts, outcomes: list[StormOutcome]
) -> tuple[list[str], str | None]:
    """Draw the pictures; return their paths, and why there are none where that was not asked for."""
    if arguments.no_picture:
        return [], None
    directory = getattr(arguments, "output", None) or "."
    stem = os.path.join(directory, f"storm-{shape.blocks}")
    try:
        return draw_storm(stem, shape, costs, outcomes), None
    except MissingLibraryError as error:
        return [], str(error)
