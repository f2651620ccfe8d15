# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab run``: runs scenarios on real kernels under QEMU and audits the dumps."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, positive
from crash_hotplug.cli.exit_codes import UsageError
from crash_hotplug.cli.output import print_json
from crash_hotplug_lab.cli.kernel_options import add_kernel, chosen_kernels
from crash_hotplug_lab.cli.main import needs_extras

DESCRIPTION = """\
Runs each scenario on each kernel, with each loader and each way of updating for which the scenario has
expectations.  A run boots the kernel, loads a crash image, adds and removes CPUs and memory, panics, and
compares the vmcore with the machine at the panic.  Results, serial logs, snapshots and report.html go to one
directory.

Exits with 1 if a run was not as its scenario expects.  A known fault of the kernel that occurs as expected is
shown as FAULT and is not a failure.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab run                                    the default scenario on 6.1 and 6.12
  crash-hotplug-lab run remove-dimm --kernel 7.2           one scenario, one kernel
  crash-hotplug-lab run --all --loader all -j 2            everything, on the default kernels
  crash-hotplug-lab run --kernel bzImage --modules lib/modules/6.17.0-mine
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="a bundled scenario's name, or FILE.toml")
    parser.add_argument("--all", action="store_true", help="every bundled scenario that is for real kernels")
    add_kernel(parser)
    parser.add_argument("--loader", action="append", default=[], metavar="c|s|ch|all", help="how to load the image")
    parser.add_argument(
        "--update", action="append", default=[], metavar="U", help="nothing, kernel, reload, in-place or watch"
    )
    parser.add_argument("-j", "--jobs", type=positive, default=1, metavar="N", help="guests at a time (default 1)")
    parser.add_argument("-o", "--output", metavar="DIR", help="where results go (default: a new one in the cache)")
    parser.add_argument("--repeat", type=positive, default=1, metavar="N", help="every run N times (random moments)")
    parser.add_argument(
        "--count-instructions",
        action="store_true",
        help="let the guest's clock count instructions, a nanosecond each, so that each run measures the same times "
        "(no KVM, slow; on 6.12 and newer no CPU can be plugged)",
    )
    parser.add_argument("--keep", action="store_true", help="keep each vmcore")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--ktap", action="store_true", help="print the results as KTAP")
    add_json(form)


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Run scenarios.

    :return: 1 if a run was not as expected
    :raise UsageError: options do not fit together
    """
    from crash_hotplug_lab.cli.progress import Terminal  # noqa: PLC0415
    from crash_hotplug_lab.qemu import plan, report, results, session  # noqa: PLC0415

    if arguments.all and arguments.scenarios:
        raise UsageError("--all runs every scenario: it does not go with the name of one")
    names = arguments.scenarios or plan.DEFAULT_SCENARIOS
    scenarios = plan.bundled() if arguments.all else [plan.read(name) for name in names]
    if arguments.count_instructions:
        scenarios = [chosen.counted() for chosen in scenarios]
    kernels = chosen_kernels(arguments, list(plan.DEFAULT_KERNELS))
    runs = plan.plan(scenarios, kernels, arguments.loader, arguments.update, arguments.repeat)
    directory = Path(arguments.output) if arguments.output else session.new_directory()
    directory.mkdir(parents=True, exist_ok=True)
    quiet = arguments.json or arguments.ktap
    with Terminal(len(runs), quiet) as terminal:
        done = asyncio.run(session.run_all(runs, directory, terminal, arguments.jobs, arguments.keep))
    failed = session.exit_failed(done)
    page = report.write(done, directory, session.facts())
    if arguments.ktap:
        print("\n".join(results.ktap_lines(done)))
    elif arguments.json:
        print_json({**results.as_json(done, session.facts()), "directory": str(directory)})
    else:
        print(f"\n{page}")
    return exit_codes.FAILED if failed else exit_codes.DONE
