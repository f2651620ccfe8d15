# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab list``: lists scenarios, kernels, loaders, and combinations that are known not to work."""

from __future__ import annotations

import argparse

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json, printable
from crash_hotplug_lab.cli.main import needs_extras
from crash_hotplug_lab.scenario.file import bundled_scenarios
from crash_hotplug_lab.scenario.format import LOADERS

DESCRIPTION = """\
Lists the bundled scenarios: those with policies for the model (`simulate`, `explore`) and those with
expectations for real kernels (`run`).  Lists the kernels, the loaders, and the combinations that are known not
to work.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab list
  crash-hotplug-lab list --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_json(parser)


@needs_extras
def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from crash_hotplug_lab.qemu import kernels, plan  # noqa: PLC0415
    from crash_hotplug_lab.qemu.guest_architecture import ARCHITECTURES  # noqa: PLC0415

    scenarios = bundled_scenarios()
    modelled, expected = [s for s in scenarios if s.policies], [s for s in scenarios if s.expect]
    ready = {a.kernel_name(key): kernels.ready(key, a) for a in ARCHITECTURES.values() for key in a.kernels}
    if arguments.json:
        print_json({
            "command": "list",
            "kernels": {key: kernel.version if kernel else None for key, kernel in ready.items()},
            "kernel_releases": {key: kernel.release if kernel else None for key, kernel in ready.items()},
            "loaders": LOADERS,
            "scenarios": {s.name: {"title": s.title, "updates": list(s.expect)} for s in expected},
            "known_broken": [
                {**vars(known), "finds": [kind.value for kind in known.finds]} for known in plan.KNOWN_BROKEN
            ],
            "model_scenarios": {s.name: {"title": s.title, "policies": s.policies} for s in modelled},
        })  # fmt: skip
        return exit_codes.DONE
    _print("Scenarios of the model (simulate, explore)", {s.name: s.title for s in modelled})
    _print("Scenarios of real kernels (run)", {s.name: s.title for s in expected})
    _print("Kernels", {key: kernel.release if kernel else "not fetched" for key, kernel in ready.items()})
    _print("Loaders", LOADERS)
    print("Known not to work")
    for known in plan.KNOWN_BROKEN:
        print(f"  {known.scenario} {known.kernel} {known.loader}: {known.reason}")
    return exit_codes.DONE


def _print(heading: str, rows: dict[str, str]) -> None:
    print(heading)
    for name, words in rows.items():
        print(f"  {printable(name):25} {printable(words)}")
    print()
