# SPDX-License-Identifier: MIT
"""A panic at every step of every interleaving: what would it leave behind?

The states of a scenario are searched in breadth, so that the first bad one found has a shortest trace.  A state is the
machine, and of each actor the step at which it stands and the values of its local variables, read out of its
generators: two ways that lead to the same values are one state, whatever was read and forgotten on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, GeneratorType, MethodType
from typing import Any

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.steps import Steps
from crash_hotplug_lab.model.arch.architecture import ModelArchitecture
from crash_hotplug_lab.model.arch.x86_64 import X86_64
from crash_hotplug_lab.model.events import Event, EventKind
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.notifier import NotifierBlock, NotifierChain
from crash_hotplug_lab.model.panic import DumpOutcome, panic
from crash_hotplug_lab.model.policies import InPlace
from crash_hotplug_lab.model.simulation import Simulation
from crash_hotplug_lab.model.user_space import IDLE, Kexec, ModelObservation, UserMachine
from crash_hotplug_lab.scenario.records import Action, Scenario

SERVICE = "service"


@dataclass(frozen=True)
class _Node:
    """One step of a trace; the trace is the way back to the root."""

    parent: _Node | None
    actor: str
    label: str

    def path(self) -> list[_Node]:
        nodes: list[_Node] = []
        node: _Node | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class _Actor:
    """Takes steps: the actions of one actor of the scenario, or the service."""

    def __init__(self, actions: list[Action], steps: Steps[None] | None = None) -> None:
        self._actions = actions
        self._steps = steps
        self.label = ""

    @property
    def finished(self) -> bool:
        return self._steps is None and not self._actions

    @property
    def key(self) -> Hashable:
        """What tells its state from another: the step it stands at and everything that it remembers."""
        memory = () if self._steps is None else memory_of(self._steps)
        return (self.label, memory, len(self._actions))

    def advance(self, simulation: Simulation) -> None:
        """Take one step.

        What follows the last step of an action happens together with the next one's first.
        """
        while not self.finished:
            if self._steps is None:
                self._steps = simulation.start(self._actions.pop(0))
            try:
                self.label = next(self._steps).name
                return
            except StopIteration:
                self._steps, self.label = None, "done"
            except CrashHotplugError as error:
                self._steps, self.label = None, f"failed: {error}"
                return


def memory_of(steps: Steps[Any]) -> Hashable:
    """Return where a generator, and each that it waits for, stands, and what all their local variables hold."""
    frames: list[Hashable] = []
    generator: Any = steps
    while isinstance(generator, GeneratorType) and generator.gi_frame is not None:
        frame = generator.gi_frame
        held = tuple(_value_of(value) for _name, value in sorted(frame.f_locals.items()))
        frames.append((frame.f_code.co_name, frame.f_lasti, held))
        generator = generator.gi_yieldfrom
    return tuple(frames)


_ONE_EACH = (
    ModelMachine, UserMachine, Kexec, NotifierChain, Simulation, partial, FunctionType, MethodType
)  # fmt: skip
"""What a simulation has one of, or what holds no state; the machine's state is part of the key anyway."""


def _value_of(value: object) -> Hashable:
    """Return what tells a variable's value from another one."""
    is_report = isinstance(value, Event) and value.kind is not EventKind.CPU_OFFLINE  # whose CPU v6 leaves out
    if isinstance(value, _ONE_EACH) or is_report:
        return type(value).__name__
    if isinstance(value, (GeneratorType, NotifierBlock)):
        # Of a notifier's block only the name: each simulation has registered a function of its own.
        return value.name if isinstance(value, NotifierBlock) else memory_of(value)
    if isinstance(value, dict):
        return tuple((key, _value_of(held)) for key, held in value.items())
    if isinstance(value, (list, set)) or type(value) is tuple:
        return tuple(map(_value_of, value))
    if isinstance(value, (ModelObservation, Exception)):
        return value.loaded if isinstance(value, ModelObservation) else str(value)
    hash(value)  # else a mutable object would be taken for its address
    return value


class Run:
    """One way through the scenario, at some state."""

    def __init__(self, simulation: Simulation) -> None:
        """Begin with the machine as it is when its image has just been loaded."""
        self.simulation = simulation
        actions = simulation.scenario.actions
        names = dict.fromkeys(action.actor for action in actions)
        self.actors = {name: _Actor([a for a in actions if a.actor == name]) for name in names}
        if simulation.service is not None:
            self.actors[SERVICE] = _Actor([], simulation.service)

    def advance(self, actor: str) -> str:
        """Let *actor* take one step and return its name."""
        self.actors[actor].advance(self.simulation)
        self._forget_uevents()
        return self.actors[actor].label

    def _forget_uevents(self) -> None:
        if self.simulation.service is None:
            self.simulation.machine.uevents = ()

    def again(self, loaded: ModelMachine, path: list[str]) -> Run:
        """Return a second run at the same state: the steps at which the actors in *path* came here are taken again."""
        made = Run(self.simulation.again(loaded))
        for name in path:
            made.advance(name)
        return made

    @property
    def key(self) -> int:
        """A number that is the same for two runs at the same state."""
        actors = tuple(actor.key for actor in self.actors.values())
        return hash((self.simulation.machine.key(), self._pending, actors))

    @property
    def _pending(self) -> Hashable:
        """What counts of the waiting uevents: their kinds; for the update in place only whether there are any."""
        kinds = tuple(event.kind for event in self.simulation.machine.uevents)
        return bool(kinds) if isinstance(self.simulation.policy, InPlace) else kinds

    @property
    def able(self) -> list[str]:
        """The actors that can take a step.  The service's heartbeat comes when nobody else has anything left to do."""
        others = [name for name, actor in self.actors.items() if name != SERVICE and not actor.finished]
        if SERVICE not in self.actors or (others and self._service_is_idle):
            return others
        return [*others, SERVICE]

    @property
    def is_quiet(self) -> bool:
        """Whether all events are handled, and nothing more will happen but looks at the machine."""
        return self.able in ([], [SERVICE]) and self._service_is_idle

    @property
    def _service_is_idle(self) -> bool:
        service = self.actors.get(SERVICE)
        return service is None or (service.label == IDLE.name and not self.simulation.machine.uevents)


@dataclass
class Exploration:
    """What a panic at each state of one scenario under one policy would come to."""

    policy: str
    states: int = 0
    complete: bool = True
    """Whether every state was searched; else those that need the fewest steps were."""
    outcomes: Counter[DumpOutcome] = field(default_factory=Counter)
    """States by what a panic there leaves behind."""
    traces: dict[DumpOutcome, list[str]] = field(default_factory=dict)
    """For each outcome that is not good, one shortest way to it."""
    reasons: dict[DumpOutcome, str] = field(default_factory=dict)
    """What the panic at the end of that trace came to."""
    at_rest: Counter[DumpOutcome] = field(default_factory=Counter)
    """The same for the states in which all events are handled; a service that looks again may still repair them."""
    machines: set[int] = field(default_factory=set)
    """The machine's states that were met, each by its key."""

    def never_may_be(self, scenario: Scenario) -> int:
        """Return how many states were met that must never be: a torn or refused image.

        A loader that ignores the lock can make one for a moment; then it counts only when all is quiet.
        """
        careful = all(action.arguments.get("flock", True) for action in scenario.actions)
        met = self.outcomes if careful else self.at_rest
        return met[DumpOutcome.BROKEN] + met[DumpOutcome.REFUSED]


class _State:
    """A state that was reached and not yet left: the way to it, and the runs that came here."""

    def __init__(self, node: _Node) -> None:
        self.node = node
        self.runs: list[Run] = []

    def children(self, loaded: ModelMachine) -> Iterator[tuple[Run, _Node]]:
        """Yield each state that one step leads to.

        A generator cannot be copied, so each child needs a run of its own.  States are reached by several ways, so
        there often are enough; else the steps of one way are taken again.
        """
        first = self.runs[0]
        able = first.able
        path = [step.actor for step in self.node.path()] if len(able) > len(self.runs) else []
        while len(self.runs) < len(able):
            self.runs.append(first.again(loaded.copy(), path))
        for name, run in zip(able, self.runs):
            yield run, _Node(self.node, name, run.advance(name))


def explore(
    scenario: Scenario,
    policy: str,
    limit: int | None = None,
    until_fault: bool = False,
    arch: ModelArchitecture = X86_64,
) -> Exploration:
    """Search the states of *scenario* under *policy*, those of the fewest steps first.

    :param limit: how many at most; None: all
    :param until_fault: end at the first state that must never be
    """
    result = Exploration(policy)
    judged: dict[int, tuple[DumpOutcome, str]] = {}
    simulation = Simulation(scenario, policy, arch)
    loaded = simulation.machine.copy()
    first = _State(_Node(None, "", ""))
    first.runs.append(Run(simulation))
    seen = {first.runs[0].key}
    frontier = {first.runs[0].key: first}
    while frontier:
        following: dict[int, _State] = {}
        for state in frontier.values():
            run = state.runs[0]
            outcome = _judge(run, state.node, judged, result)
            if run.is_quiet:
                result.at_rest[outcome] += 1
            at_limit = limit is not None and result.states >= limit
            if at_limit or (until_fault and result.never_may_be(scenario)):
                result.complete = False
                return result
            for child, node in state.children(loaded):
                key = child.key
                if key in following:
                    following[key].runs.append(child)
                elif key not in seen:
                    seen.add(key)
                    following[key] = _State(node)
                    following[key].runs.append(child)
        frontier = following
    return result


def _judge(run: Run, node: _Node, judged: dict[int, tuple[DumpOutcome, str]], result: Exploration) -> DumpOutcome:
    """Let a copy of the machine panic, once for each of its states."""
    key = run.simulation.machine.key()
    result.machines.add(key)
    if key not in judged:
        came_to = panic(run.simulation.machine.copy())
        judged[key] = (came_to.outcome, came_to.sentence)
    outcome, sentence = judged[key]
    result.states += 1
    result.outcomes[outcome] += 1
    if outcome is not DumpOutcome.ACCURATE and outcome not in result.traces:
        result.traces[outcome] = [f"{step.actor}: {step.label}" for step in node.path()]
        result.reasons[outcome] = sentence
    return outcome
