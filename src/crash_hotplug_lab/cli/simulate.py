"""``crash-hotplug-lab simulate``: the whole system as a model in memory, without root."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import comparison_json, print_json, print_labelled
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.sizes import human_size
from crash_hotplug.linux.snapshot import write_directory
from crash_hotplug_lab.model.panic import DumpOutcome
from crash_hotplug_lab.model.policies import POLICIES
from crash_hotplug_lab.model.simulation import (
    DEFAULT_POLICIES,
    POLICY_DESCRIPTIONS,
    STORY,
    PolicyResult,
    run_scenario,
    window_sentence,
)
from crash_hotplug_lab.model.snapshot import take_snapshot
from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.records import Scenario

DESCRIPTION = """\
Runs the whole system as a model: a machine in memory whose CPUs and memory come and go, a crash image in
it, a panic, and a real vmcore file at the end.  Needs no root and touches nothing of this machine.

Without a scenario it tells one story under three policies: reload (what distributions do), merged (what
Linux 6.6 and newer do themselves) and in-place (what this program does).  With a scenario, a file or the name
of a bundled one, it runs that.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab simulate                                the story
  crash-hotplug-lab simulate dimm-removed --policy merged   a bundled scenario (`list` shows them), one policy
  crash-hotplug-lab simulate --snapshot tree --policy in-place && crash-hotplug status --sysroot tree
"""
_WITH_ARTICLE = {
    DumpOutcome.ACCURATE: "an accurate dump",
    DumpOutcome.STALE: "a stale dump",
    DumpOutcome.NO_DUMP: "no dump",
    DumpOutcome.REFUSED: "no dump, refused by the digest",
    DumpOutcome.BROKEN: "a broken dump",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a bundled scenario's name, or FILE.toml")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="only this policy (may be repeated)")
    parser.add_argument("--output", metavar="DIR", help="where the vmcore files go (default: a new directory in /tmp)")
    parser.add_argument(
        "--snapshot", metavar="DIR", help="save the machine before its panic, for --sysroot (one policy)"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0, also where a policy leaves no dump
    """
    scenario = chosen_scenario(arguments.scenario, arguments.policy)
    results = [run_scenario(scenario, policy) for policy in scenario.policies]
    paths = _write_vmcores(results, arguments.output)
    if arguments.snapshot is not None:
        if len(results) != 1:
            raise InputError("--snapshot saves one machine: choose one with --policy")
        write_directory(take_snapshot(results[0].machine), arguments.snapshot)
    if arguments.json:
        print_json(_report(scenario, results, paths))
    else:
        _show(scenario, results, paths)
    return exit_codes.DONE


def chosen_scenario(name: str | None, policies: list[str] | None) -> Scenario:
    """Return the scenario of that name (the story without a name), under the chosen policies, else under its own."""
    scenario = STORY if name is None else read_scenario(name)
    return replace(scenario, policies=tuple(dict.fromkeys(policies or scenario.policies or DEFAULT_POLICIES)))


def _write_vmcores(results: Iterable[PolicyResult], directory: str | None) -> dict[str, str]:
    """Write each policy's vmcore and return their paths by policy.

    :raise InputError: the directory cannot be written
    """
    dumps = {result.policy: result.panic.vmcore for result in results if result.panic.vmcore is not None}
    if not dumps:
        return {}
    try:
        if directory is None:
            directory = tempfile.mkdtemp(prefix="crash-hotplug-")
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made: {error.strerror}") from error
    paths = {}
    for policy, vmcore in dumps.items():
        paths[policy] = os.path.join(directory, f"vmcore-{policy}")
        vmcore.write(paths[policy])
    return paths


def _show(scenario: Scenario, results: list[PolicyResult], paths: dict[str, str]) -> None:
    print(scenario.title + ".")
    if scenario.description:
        print(scenario.description)
    print()
    for result in results:
        lines = [
            f"{POLICY_DESCRIPTIONS[result.policy]} (Linux {result.kernel})",
            f"{_did(result)}; without a crash image: {window_sentence(result.policy, result.windows)}",
            f"the panic left {_WITH_ARTICLE[result.panic.outcome]}: {result.panic.sentence}",
        ]
        if result.policy in paths:
            size = human_size(result.panic.vmcore.size) if result.panic.vmcore is not None else ""
            lines.append(f"{paths[result.policy]} ({size}, sparse)")
        print_labelled(result.policy, lines)
        print()
    if paths:
        print(f"Look into one with: crash-hotplug audit {next(iter(paths.values()))}")


def _did(result: PolicyResult) -> str:
    if result.stopped_at is not None:
        return f"panic right after the step '{result.stopped_at}'"
    if not result.reports:
        return "nothing was done about the events"
    outcomes = [report.outcome.value for report in result.reports]
    return ", ".join(f"{outcomes.count(what)} x {what}" for what in dict.fromkeys(outcomes))


def _report(scenario: Scenario, results: list[PolicyResult], paths: dict[str, str]) -> dict[str, Any]:
    return {
        "command": "simulate",
        "title": scenario.title,
        "actions": [str(action) for action in scenario.actions],
        "results": [_result_json(result, paths.get(result.policy)) for result in results],
    }


def _result_json(result: PolicyResult, path: str | None) -> dict[str, Any]:
    return {
        "policy": result.policy,
        "kernel": result.kernel,
        "outcome": result.panic.outcome.value,
        "reason": result.panic.sentence,
        "steps": result.steps,
        "windows": result.windows,
        "stopped_at": result.stopped_at,
        "vmcore": path,
        "reports": [
            {"event": r.event.kind.value, "outcome": r.outcome.value, "sentence": r.sentence} for r in result.reports
        ],
        "audit": None if result.panic.comparison is None else comparison_json(result.panic.comparison),
    }
