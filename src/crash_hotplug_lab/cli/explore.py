# SPDX-License-Identifier: MIT
"""``crash-hotplug-lab explore``: panics the model at every step of every interleaving of a scenario."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from crash_hotplug.cli import exit_codes
from crash_hotplug.cli.arguments import add_json, positive
from crash_hotplug.cli.output import print_json, printable
from crash_hotplug.core.sizes import count
from crash_hotplug_lab.cli.kernel_options import add_architecture
from crash_hotplug_lab.cli.simulate import chosen_scenario
from crash_hotplug_lab.model.arch.supported import ARCHITECTURES
from crash_hotplug_lab.model.explore import Exploration, explore
from crash_hotplug_lab.model.fitting import fit
from crash_hotplug_lab.model.panic import DumpOutcome
from crash_hotplug_lab.model.policies import POLICIES
from crash_hotplug_lab.scenario.file import bundled_scenarios
from crash_hotplug_lab.scenario.records import Scenario

DESCRIPTION = """\
Searches every interleaving of the actors of a scenario (hot-plug, udev, the update, other loaders), panics the
model in each state, and audits the dump.  Without a scenario it searches all bundled scenarios with policies.

Exits with 1 if the update in place leaves a torn or rejected image.
"""
EXAMPLES = """\
examples:
  crash-hotplug-lab explore                                 all bundled scenarios
  crash-hotplug-lab explore dimm-removed                    one scenario, with the shortest way to each bad dump
  crash-hotplug-lab explore hot-add --arch arm64            an arm64 machine
  crash-hotplug-lab explore hot-add --policy in-place --json
"""
_SHOWN_STEPS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("scenario", nargs="?", metavar="SCENARIO", help="a bundled scenario's name, or FILE.toml")
    add_architecture(parser, "the model machine")
    parser.add_argument(
        "--states", metavar="N", type=positive, help="search N states a policy, the nearest first (default: all)"
    )
    parser.add_argument("--policy", action="append", choices=list(POLICIES), help="only this policy (may be repeated)")
    parser.add_argument(
        "-j", "--jobs", type=positive, metavar="N", help="searches at a time (default: one for each processor)"
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Search the states and show a table for each scenario.

    :return: 1 if the update in place leaves a torn or rejected image
    """
    arch = ARCHITECTURES[arguments.arch]
    names = [arguments.scenario]
    if arguments.scenario is None:
        fitted = [fit(scenario, arch) for scenario in bundled_scenarios() if scenario.policies]
        names = [scenario.name for scenario, refusal in fitted if not refusal]
        for scenario, refusal in fitted:
            if refusal and not arguments.json:
                print(f"{printable(scenario.name)}: left out: {refusal}")
    scenarios = [chosen_scenario(name, arguments.policy, arch) for name in names]
    with _searchers(arguments.jobs) as pool:
        searches = [
            [pool.submit(_search, scenario, policy, arguments.states, arch.name) for policy in scenario.policies]
            for scenario in scenarios
        ]
        return _show(arguments, dict(zip(names, scenarios)), searches)


def _search(scenario: Scenario, policy: str, states: int | None, arch: str) -> Exploration:
    """Search in another process, which gets the architecture's name: its record has functions without a name."""
    return explore(scenario, policy, states, arch=ARCHITECTURES[arch])


@contextmanager
def _searchers(jobs: int | None) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes, which end at once, in the middle of a search, if this process cannot go on.

    Ctrl-C reaches the processes of the pool as well: each ends without a traceback.
    """
    with ProcessPoolExecutor(
        jobs or os.cpu_count(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        try:
            yield pool
        except BaseException:
            # Then the pool's thread ends, and is waited for: Python 3.9 writes at its exit into a pipe that it closes.
            for searcher in multiprocessing.active_children():
                searcher.terminate()
            raise


def _show(
    arguments: argparse.Namespace, scenarios: Mapping[str, Scenario], searches: Iterable[list[Future[Exploration]]]
) -> int:
    """Show the results of *searches*, a list for each scenario, as they come."""
    report = []
    total = broken = 0
    for (name, scenario), running in zip(scenarios.items(), searches):
        if not arguments.json:
            print(f"{printable(name)}: {printable(scenario.title)}", flush=True)
        explored = [search.result() for search in running]
        total += sum(found.states for found in explored)
        broken += sum(found.never_may_be(scenario) for found in explored if found.policy == "in-place")
        if arguments.json:
            policies = [_exploration_json(found) for found in explored]
            report.append({"scenario": name, "title": scenario.title, "policies": policies})
        else:
            _show_explorations(explored, arguments.scenario is not None)
    if arguments.json:
        print_json({"command": "explore", "states": total, "explored": report})
    else:
        print(f"{count(total, 'state')} in {count(len(scenarios), 'scenario')}: the machine panicked in each state")
    return exit_codes.FAILED if broken else exit_codes.DONE


def _show_explorations(explored: list[Exploration], with_traces: bool) -> None:
    print(f"  {'policy':<18}{'states':>8}" + "".join(f"{outcome.value:>19}" for outcome in DumpOutcome))
    for found in explored:
        cells = "".join(f"{found.outcomes[outcome]:>19}" for outcome in DumpOutcome)
        states = f"{found.states}{'' if found.complete else '+'}"
        print(f"  {found.policy:<18}{states:>8}{cells}")
    if not all(found.complete for found in explored):
        print("  + more states exist; the nearest were searched (--states N)")
    for found in explored if with_traces else ():
        for outcome, trace in found.traces.items():
            print(f"\n  {found.policy}, {outcome.value}: {printable(found.reasons[outcome])}; shortest way:")
            shown = (
                trace
                if len(trace) <= _SHOWN_STEPS
                else [f"... {len(trace) - _SHOWN_STEPS} steps", *trace[-_SHOWN_STEPS:]]
            )
            for step in shown:
                print(f"    {printable(step)}")
    print()


def _exploration_json(found: Exploration) -> dict[str, Any]:
    return {
        "policy": found.policy,
        "states": found.states,
        "complete": found.complete,
        "outcomes": {outcome.value: found.outcomes[outcome] for outcome in DumpOutcome},
        "at_rest": {outcome.value: number for outcome, number in found.at_rest.items()},
        "traces": {outcome.value: trace for outcome, trace in found.traces.items()},
        "reasons": {outcome.value: reason for outcome, reason in found.reasons.items()},
    }
