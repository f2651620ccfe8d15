# SPDX-License-Identifier: MIT
"""Scenarios for machines whose CPUs cannot be plugged: CPU 1 goes offline and comes back instead."""

from __future__ import annotations

from dataclasses import replace

from crash_hotplug_lab.scenario.records import Action, Expectation, Scenario

_REPLUGGED_CPU = 1


def plugs_cpus(scenario: Scenario) -> bool:
    """Whether a scenario adds or removes CPUs."""
    return any(
        action.do in ("add-cpu", "remove-cpu") or (action.do == "storm" and action.arguments["cpus"])
        for action in scenario.actions
    )


def without_cpu_hotplug(scenario: Scenario) -> Scenario:
    """Return a scenario in which CPU 1 goes offline and online in place of each plugged or unplugged CPU.

    CPU 1 is present when the image is loaded, so no note of it can be missing.  Steps that would change nothing, such
    as taking a CPU offline that is offline, are left out.
    """
    actions: list[Action] = []
    offline: set[int] = set()

    def switch(action: Action, do: str) -> None:
        cpu = action.arguments["cpu"]
        if (do == "offline-cpu") is not (cpu in offline):
            actions.append(replace(action, do=do, arguments={"cpu": cpu}))
            offline.symmetric_difference_update({cpu})

    for action in scenario.actions:
        cpu = action.arguments.get("cpu", 0)
        moved = {**action.arguments, "cpu": _REPLUGGED_CPU} if cpu >= scenario.machine.cpus else action.arguments
        fitted = replace(action, arguments=moved)
        if action.do in ("add-cpu", "remove-cpu"):
            switch(fitted, "offline-cpu")
            switch(fitted, "online-cpu")
        elif action.do in ("offline-cpu", "online-cpu"):
            switch(fitted, action.do)
        else:
            actions.append(fitted)

    def without_cpus(expectation: Expectation) -> Expectation:
        left = tuple(f for f in expectation.findings if f.cpu is None or f.cpu < scenario.machine.cpus)
        return replace(expectation, findings=left)

    return replace(
        scenario,
        title=f"{scenario.title} (CPU {_REPLUGGED_CPU} goes offline and online in place of CPU hot-plug)",
        actions=tuple(actions),
        expect={update: without_cpus(expectation) for update, expectation in scenario.expect.items()},
    )
