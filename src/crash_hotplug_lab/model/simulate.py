"""Run a scenario under one policy, up to its panic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.core.steps import Step
from crash_hotplug.core.update import Outcome
from crash_hotplug_lab.model.events import EventKind, Handled
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.panic import Panic, panic
from crash_hotplug_lab.model.policies import InPlace
from crash_hotplug_lab.model.scenario import Simulation
from crash_hotplug_lab.model.user_space import IDLE
from crash_hotplug_lab.scenario.records import Scenario


class TakenStep(NamedTuple):
    """One step of a run."""

    action: int
    """How many actions had begun."""
    actor: str
    step: Step


@dataclass(frozen=True)
class Result:
    """The result of a scenario under one policy."""

    policy: str
    kernel: str
    machine: ModelMachine
    """The machine as it was at the panic."""
    panic: Panic
    reports: tuple[Handled, ...]
    """What the handler did, except looks that found nothing to do."""
    steps: int
    windows: int
    """How often the machine was without a crash image, or with the kexec lock held, for some steps."""
    stopped_at: str | None
    """The step that the scenario named for its panic."""


def run_scenario(scenario: Scenario, policy_name: str) -> Result:
    """Run *scenario* until it panics.

    :raise InputError: the model cannot run the scenario, the step at which it should panic never came, or an action
        failed
    """
    simulation = Simulation(scenario, policy_name)
    machine = simulation.machine
    steps = windows = 0
    vulnerable = False
    stopped_at = None
    last = len(simulation.scenario.actions)
    for taken in _steps(simulation):
        steps += 1
        was, vulnerable = vulnerable, machine.crash_image is None or machine.kexec_locked
        windows += vulnerable and not was
        if scenario.panic_step and taken.action >= last and taken.step.name.startswith(scenario.panic_step):
            stopped_at = taken.step.name
            break
    if scenario.panic_step and stopped_at is None:
        raise InputError(f"under {policy_name} there was no step {scenario.panic_step!r} after action {last}")
    at_panic = machine.copy()
    return Result(
        policy_name,
        machine.profile.kernel_release,
        at_panic,
        panic(machine),
        tuple(r for r in machine.reports if _tells_something(r)),
        steps,
        windows,
        stopped_at,
    )


def _tells_something(report: Handled) -> bool:
    return report.event.kind is not EventKind.LOOK or report.outcome is not Outcome.UNCHANGED


def _steps(simulation: Simulation) -> Iterator[TakenStep]:
    """Take the steps of each action, one after the other, with the service's in between."""
    machine, service = simulation.machine, simulation.service
    for number, action in enumerate(simulation.scenario.actions, 1):
        try:
            for step in simulation.start(action):
                yield TakenStep(number, action.actor, step)
        except CrashHotplugError as error:
            raise InputError(f"action {number} ({action}): {error}") from error
        if service is None:
            machine.uevents = ()
            continue
        # Two idle steps in a row: all events are done, and one more look at the quiet machine is over.
        idle, wanted = 0, 2 if isinstance(simulation.policy, InPlace) else 1
        while idle < wanted:
            step = next(service)
            idle += step == IDLE and not machine.uevents
            if step != IDLE:
                yield TakenStep(number, "service", step)
