"""``crash-hotplug simulate``: the whole system as a model in memory, without root."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from crash_hotplug.cli import exit_codes, simulate_storm
from crash_hotplug.cli.arguments import add_json
from crash_hotplug.cli.output import comparison_json, print_json
from crash_hotplug.core.errors import InputError
from crash_hotplug.core.handler_policies import POLICIES
from crash_hotplug.core.sizes import count, human_size
from crash_hotplug.linux.snapshot import write_directory
from crash_hotplug.model import scenario_file
from crash_hotplug.model.explore import STATE_LIMIT, Exploration, explore
from crash_hotplug.model.panic import Outcome
from crash_hotplug.model.scenario import Scenario
from crash_hotplug.model.simulate import Result, run_scenario
from crash_hotplug.model.snapshot import take_snapshot
from crash_hotplug.model.story import STORY, window_sentence

DESCRIPTION = """\
Runs the whole system as a model: a machine in memory whose CPUs and memory come and go, a crash image in
it, a panic, and a real vmcore file at the end.  Needs no root and touches nothing of this machine.

Without a file it tells one story under three policies: reload (what distributions do), merged (what Linux
6.6 and newer do themselves) and in-place (what this program does).  With a file, or the name of a bundled
scenario, it runs that.
"""
EXAMPLES = """\
examples:
  crash-hotplug simulate                                the story
  crash-hotplug simulate --list                         the bundled scenarios
  crash-hotplug simulate dimm-removed --policy merged   one of them, under one policy
  crash-hotplug simulate --explore dimm-removed         a panic at every step of every interleaving
  crash-hotplug simulate --snapshot tree --policy in-place && crash-hotplug status --sysroot tree
"""
_SHOWN_STEPS = 12
ALL_STATE_LIMIT = 1500
"""States a policy where all bundled scenarios are searched, so that it ends within minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("scenario", nargs="?", metavar="FILE", help="a scenario (TOML), or a bundled one's name")
    parser.add_argument("--list", action="store_true", help="list the bundled scenarios")
    parser.add_argument(
        "--explore",
        action="store_true",
        help="panic at every step of every interleaving; without FILE of all bundled ones",
    )
    parser.add_argument(
        "--states",
        metavar="N",
        type=_positive,
        help=f"with --explore: search N states a policy, the nearest first (default {STATE_LIMIT}; of all bundled ones "
        f"{ALL_STATE_LIMIT})",
    )
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="only this policy (may be repeated)")
    parser.add_argument("--output", metavar="DIR", help="where the vmcore files go (default: a new directory in /tmp)")
    parser.add_argument(
        "--snapshot", metavar="DIR", help="save the machine before its panic, for --sysroot (one policy)"
    )
    simulate_storm.add_arguments(parser)
    add_json(parser)


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of states from 1 on")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    :return: 0; the policies' own failures are what is shown
    """
    if arguments.storm is not None:
        return simulate_storm.run_storm(arguments)
    if arguments.list:
        return _list(arguments.json)
    if arguments.explore:
        return _explore(arguments)
    scenario = _scenario(arguments.scenario, arguments.policy)
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


def _scenario(name: str | None, policies: list[str] | None) -> Scenario:
    scenario = STORY if name is None else scenario_file.read_scenario(name)
    return scenario if policies is None else replace(scenario, policies=tuple(dict.fromkeys(policies)))


def _list(as_json: bool) -> int:
    scenarios = {name: scenario_file.read_scenario(name) for name in scenario_file.bundled_names()}
    if as_json:
        listed = [{"name": name, "title": s.title, "policies": s.policies} for name, s in scenarios.items()]
        print_json({"command": "simulate", "scenarios": listed})
    else:
        for name, scenario in scenarios.items():
            print(f"{name:<26}{scenario.title}")
    return exit_codes.DONE


def _write_vmcores(results: Iterable[Result], directory: str | None) -> dict[str, str]:
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


def _show(scenario: Scenario, results: list[Result], paths: dict[str, str]) -> None:
    print(scenario.title + ".")
    if scenario.description:
        print(scenario.description)
    print()
    for result in results:
        header = f"{result.policy} (Linux {result.kernel})"
        print(f"{header:<38}{_did(result)}")
        print(f"{'':<38}without a crash image: {window_sentence(result.policy, result.windows)}")
        print(f"{'':<38}the panic: {result.panic.outcome.value}: {result.panic.sentence}")
        if result.policy in paths:
            size = human_size(result.panic.vmcore.size) if result.panic.vmcore is not None else ""
            print(f"{'':<38}{paths[result.policy]} ({size}, sparse)")
    if paths:
        print(f"\nLook into one with: crash-hotplug audit {next(iter(paths.values()))}")


def _did(result: Result) -> str:
    if result.stopped_at is not None:
        return f"panic right after the step '{result.stopped_at}'"
    if not result.reports:
        return "nothing was done about the events"
    outcomes = [report.outcome.value for report in result.reports]
    return ", ".join(f"{outcomes.count(what)} x {what}" for what in dict.fromkeys(outcomes))


def _report(scenario: Scenario, results: list[Result], paths: dict[str, str]) -> dict[str, Any]:
    return {
        "command": "simulate",
        "title": scenario.title,
        "actions": [str(action) for action in scenario.actions],
        "results": [_result_json(result, paths.get(result.policy)) for result in results],
    }


def _result_json(result: Result, path: str | None) -> dict[str, Any]:
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


def _explore(arguments: argparse.Namespace) -> int:
    """Search the states and show a table a scenario.

    :return: 1 where this program's own policy ends in a dump that must never happen
    """
    names = [arguments.scenario] if arguments.scenario is not None else scenario_file.bundled_names()
    limit = arguments.states or (STATE_LIMIT if arguments.scenario is not None else ALL_STATE_LIMIT)
    report = []
    total = broken = 0
    for name in names:
        scenario = _scenario(name, arguments.policy)
        if not arguments.json:
            print(f"{name}: {scenario.title}")
        explored = []
        for policy in scenario.policies:
            found = explore(scenario, policy, limit)
            explored.append(found)
            total += found.states
            broken += found.outcomes[Outcome.BROKEN] + found.outcomes[Outcome.REFUSED] if policy == "in-place" else 0
        if arguments.json:
            report.append({"scenario": name, "policies": [_exploration_json(found) for found in explored]})
        else:
            _show_explorations(explored, arguments.scenario is not None)
    if arguments.json:
        print_json({"command": "simulate", "states": total, "explored": report})
    else:
        print(f"{count(total, 'state')} in {count(len(names), 'scenario')}: the machine panicked in each of them")
    return exit_codes.FAILED if broken else exit_codes.DONE


def _show_explorations(explored: list[Exploration], with_traces: bool) -> None:
    print(f"  {'policy':<18}{'states':>8}" + "".join(f"{outcome.value:>19}" for outcome in Outcome))
    for found in explored:
        cells = "".join(f"{found.outcomes[outcome]:>19}" for outcome in Outcome)
        states = f"{found.states}{'' if found.complete else '+'}"
        print(f"  {found.policy:<18}{states:>8}{cells}")
    if not all(found.complete for found in explored):
        print("  + there are more states; those that the fewest steps lead to were searched (--states N)")
    for found in explored if with_traces else ():
        for outcome, trace in found.traces.items():
            print(f"\n  {found.policy}, {outcome.value}: {found.reasons[outcome]}; shortest way:")
            shown = (
                trace
                if len(trace) <= _SHOWN_STEPS
                else [f"... {len(trace) - _SHOWN_STEPS} steps", *trace[-_SHOWN_STEPS:]]
            )
            for step in shown:
                print(f"    {step}")
    print()


def _exploration_json(found: Exploration) -> dict[str, Any]:
    return {
        "policy": found.policy,
        "states": found.states,
        "complete": found.complete,
        "outcomes": {outcome.value: found.outcomes[outcome] for outcome in Outcome},
        "at_rest": {outcome.value: number for outcome, number in found.at_rest.items()},
        "traces": {outcome.value: trace for outcome, trace in found.traces.items()},
        "reasons": {outcome.value: reason for outcome, reason in found.reasons.items()},
    }
