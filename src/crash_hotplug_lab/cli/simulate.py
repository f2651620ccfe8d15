# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab simulate``: runs the whole system as a model in memory, without root."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import comparison_json, print_json, print_labelled, printable
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.sizes import human_size
from crash_hotplug.linux.snapshot import write_directory
from crash_hotplug_lab.cli.kernel_options import add_architecture
from crash_hotplug_lab.model.arch.architecture import ModelArchitecture
from crash_hotplug_lab.model.arch.supported import ARCHITECTURES
from crash_hotplug_lab.model.fitting import fit, why_no_policy
from crash_hotplug_lab.model.panic import DumpOutcome
from crash_hotplug_lab.model.policies import POLICIES
from crash_hotplug_lab.model.simulation import (
    DEFAULT_POLICIES,
    POLICY_DESCRIPTIONS,
    STORY,
    PolicyResult,
    run_scenario,
    window_sentence,
    without_image,
)
from crash_hotplug_lab.model.snapshot import take_snapshot
from crash_hotplug_lab.scenario.file import read_scenario
from crash_hotplug_lab.scenario.records import Scenario

DESCRIPTION = """\
Runs the whole system as a model in memory: hot-plug of CPUs and memory, a loaded crash image, a panic, and a
vmcore file at the end.  Requires no root and changes nothing on this machine.

Without a scenario it runs one story under three policies: reload (distributions), merged (the handler of Linux
6.6 and newer) and in-place (crash-hotplug).  SCENARIO is a file or the name of a bundled scenario.

On arm64 CPU 1 goes offline and online in place of CPU hot-plug, and the policies v6 and merged are left out: no
released arm64 kernel updates the elfcorehdr itself.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab simulate                                the story
  crash-hotplug-lab simulate dimm-removed --policy merged   a bundled scenario (`list` shows them), one policy
  crash-hotplug-lab simulate hot-add --arch arm64           an arm64 machine
  crash-hotplug-lab simulate --snapshot tree --policy in-place && crash-hotplug status --sysroot tree
"""
_WITH_ARTICLE = {
    DumpOutcome.ACCURATE: "an accurate dump",
    DumpOutcome.STALE: "a stale dump",
    DumpOutcome.NO_DUMP: "no dump",
    DumpOutcome.REFUSED: "no dump, rejected by the digest check",
    DumpOutcome.BROKEN: "a broken dump",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a bundled scenario's name, or FILE.toml")
    add_architecture(parser, "the model machine")
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="only this policy (may be repeated)")
    parser.add_argument("--output", metavar="DIR", help="where the vmcore files go (default: a new directory in /tmp)")
    parser.add_argument(
        "--snapshot", metavar="DIR", help="save the machine before its panic, for --sysroot (one policy)"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0, even if a policy leaves no dump
    :raise UsageError: --snapshot with several policies, or a scenario or policy that the architecture cannot have
    """
    arch = ARCHITECTURES[arguments.arch]
    scenario = chosen_scenario(arguments.scenario, arguments.policy, arch)
    if arguments.snapshot is not None and len(scenario.policies) != 1:
        raise exit_codes.UsageError("--snapshot saves one machine; choose its policy with --policy")
    results = [run_scenario(scenario, policy, arch) for policy in scenario.policies]
    paths = _write_vmcores(results, arguments.output)
    if arguments.snapshot is not None:
        write_directory(take_snapshot(results[0].machine), arguments.snapshot)
    if arguments.json:
        print_json(_report(scenario, results, paths))
    else:
        _show(scenario, results, paths)
    return exit_codes.DONE


def chosen_scenario(name: str | None, policies: list[str] | None, arch: ModelArchitecture) -> Scenario:
    """Return the scenario of a name, or the story, with the given policies, else with its own.

    :raise UsageError: the architecture cannot have the scenario, or one of the given policies
    """
    scenario = STORY if name is None else read_scenario(name)
    for policy in policies or ():
        why_not = why_no_policy(policy, arch)
        if why_not is not None:
            raise exit_codes.UsageError(why_not)
    chosen = tuple(dict.fromkeys(policies or scenario.policies or DEFAULT_POLICIES))
    fitted, refusal = fit(replace(scenario, policies=chosen), arch)
    if refusal:
        raise exit_codes.UsageError(f"the {arch.name} model cannot run {scenario.name or 'the story'}: {refusal}")
    return fitted


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
        raise InputError(f"the directory {directory} cannot be created: {error.strerror}") from error
    paths = {}
    for policy, vmcore in dumps.items():
        paths[policy] = os.path.join(directory, f"vmcore-{policy}")
        vmcore.write(paths[policy])
    return paths


def _show(scenario: Scenario, results: list[PolicyResult], paths: dict[str, str]) -> None:
    print(printable(scenario.title) + ".")
    for line in scenario.description.splitlines():
        print(printable(line))
    print()
    for result in results:
        window = window_sentence(result.policy, result.windows, result.machine.profile.arch)
        lines = [
            f"{POLICY_DESCRIPTIONS[result.policy]} (Linux {result.kernel})",
            f"{_did(result)}; without a crash image: {window}",
            f"the panic left {_WITH_ARTICLE[result.panic.outcome]}: {result.panic.sentence}",
        ]
        if result.policy in paths:
            size = human_size(result.panic.vmcore.size) if result.panic.vmcore is not None else ""
            lines.append(f"{paths[result.policy]} ({size}, sparse)")
        print_labelled(result.policy, lines)
        print()
    if paths:
        print(f"Audit a dump with: crash-hotplug audit {printable(next(iter(paths.values())))}")


def _did(result: PolicyResult) -> str:
    if result.stopped_at is not None:
        return f"panic right after the step '{result.stopped_at}'"
    if not result.reports:
        return "no event was handled"
    outcomes = [report.outcome.value for report in result.reports]
    return ", ".join(f"{outcomes.count(what)} x {what}" for what in dict.fromkeys(outcomes))


def _report(scenario: Scenario, results: list[PolicyResult], paths: dict[str, str]) -> dict[str, Any]:
    return {
        "command": "simulate",
        "title": scenario.title,
        "description": scenario.description,
        "actions": [str(action) for action in scenario.actions],
        "results": [_result_json(result, paths.get(result.policy)) for result in results],
    }


def _result_json(result: PolicyResult, path: str | None) -> dict[str, Any]:
    return {
        "policy": result.policy,
        "description": POLICY_DESCRIPTIONS[result.policy],
        "kernel": result.kernel,
        "outcome": result.panic.outcome.value,
        "reason": result.panic.sentence,
        "steps": result.steps,
        "windows": result.windows,
        "without_image_seconds": _without_image(result),
        "stopped_at": result.stopped_at,
        "vmcore": path,
        "vmcore_size": None if result.panic.vmcore is None else result.panic.vmcore.size,
        "reports": [
            {"event": r.event.kind.value, "outcome": r.outcome.value, "sentence": r.sentence} for r in result.reports
        ],
        "audit": None if result.panic.comparison is None else comparison_json(result.panic.comparison),
    }


def _without_image(result: PolicyResult) -> dict[str, Any]:
    return without_image(result.policy, result.windows, result.machine.profile.arch)._asdict()
