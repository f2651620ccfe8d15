"""``crash-hotplug-lab list``: scenarios, kernels, loaders and combinations that are known not to work."""

from __future__ import annotations

import argparse

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import print_json
from crash_hotplug_lab.cli.main import missing_extra
from crash_hotplug_lab.model import scenario_file

DESCRIPTION = """\
Lists the scenarios of the model (`simulate`, `explore`) and of real kernels (`run`), the kernels, the loaders,
and the combinations that are known not to work.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab list
  crash-hotplug-lab list --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    try:
        from crash_hotplug_lab.qemu import kernels, plan, scenario  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None
    models = {name: scenario_file.read_scenario(name) for name in scenario_file.bundled_names()}
    ready = {key: kernels.ready(key) for key in kernels.KNOWN}
    scenarios = [scenario.load(name) for name in scenario.bundled()]
    if arguments.json:
        found = {key: kernel.version if kernel else None for key, kernel in ready.items()}
        print_json({
            "command": "list",
            "kernels": found,
            "loaders": scenario.LOADERS,
            "scenarios": {s.name: {"title": s.title, "updates": list(s.expect)} for s in scenarios},
            "known_broken": [vars(known) for known in plan.KNOWN_BROKEN],
            "model_scenarios": {name: {"title": s.title, "policies": s.policies} for name, s in models.items()},
        })  # fmt: skip
        return exit_codes.DONE
    _print("Scenarios of the model (simulate, explore)", {name: s.title for name, s in models.items()})
    _print("Scenarios of real kernels (run)", {s.name: s.title for s in scenarios})
    _print("Kernels", {key: kernel.release if kernel else "not fetched" for key, kernel in ready.items()})
    _print("Loaders", scenario.LOADERS)
    print("Known not to work")
    for known in plan.KNOWN_BROKEN:
        print(f"  {known.scenario} {known.kernel} {known.loader}: {known.reason}")
    return exit_codes.DONE


def _print(heading: str, rows: dict[str, str]) -> None:
    print(heading)
    for name, words in rows.items():
        print(f"  {name:25} {words}")
    print()
