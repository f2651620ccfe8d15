"""A panic at every step of every interleaving: what would it leave behind?

The states of a scenario are searched in breadth, so that the first bad one found has a shortest trace.  A state is
the machine, and of each actor the step it stands at and a digest of what it has read since it last knew nothing.
Generators cannot be copied, so a branch is reached again by taking its steps again on a new machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from crash_hotplug.core.errors import CrashHotplugError
from crash_hotplug.core.handler import Step, Steps
from crash_hotplug_lab.model.machine import ModelMachine
from crash_hotplug_lab.model.panic import Outcome, panic
from crash_hotplug_lab.model.scenario import Action, Scenario, Simulation
from crash_hotplug_lab.model.user_space import IDLE

STATE_LIMIT = 20_000
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
    """Somebody who takes steps: the actions of one actor of the scenario, or the service."""

    def __init__(self, actions: list[Action], steps: Steps[None] | None = None) -> None:
        self._actions = actions
        self._steps = steps
        self.label = ""
        self._history = 0

    @property
    def finished(self) -> bool:
        return self._steps is None and not self._actions

    @property
    def key(self) -> tuple[str, int, int]:
        return (self.label, self._history, len(self._actions))

    def advance(self, simulation: Simulation) -> None:
        """Take one step and remember what it saw."""
        step = self.replay(simulation)
        if step is None or step == IDLE:
            self._history = 0
        elif not step.waits:
            self._history = hash((self._history, step))

    def replay(self, simulation: Simulation) -> Step | None:
        """Take one step and return it; None where an action ended.

        What follows the last step of an action happens together with the next one's first.
        """
        while not self.finished:
            if self._steps is None:
                self._steps = simulation.start(self._actions.pop(0))
                self._history = 0
            try:
                step = next(self._steps)
            except StopIteration:
                self._steps, self.label = None, "done"
                continue
            except CrashHotplugError as error:
                self._steps, self.label = None, f"failed: {error}"
                return None
            self.label = step.name
            return step
        return None

    def remember_as(self, other: _Actor) -> None:
        """Take over what *other*, which took the same steps, saw."""
        self._history = other._history


class _Run:
    """One way through the scenario, at some state."""

    def __init__(self, simulation: Simulation) -> None:
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

    def again(self, loaded: ModelMachine, path: list[str]) -> _Run:
        """Return a second run at the same state: the steps at which the actors in *path* came here are taken again."""
        made = _Run(self.simulation.again(loaded))
        for name in path:
            made.actors[name].replay(made.simulation)
            made._forget_uevents()
        for name, actor in self.actors.items():
            made.actors[name].remember_as(actor)
        return made

    @property
    def key(self) -> int:
        return hash((self.simulation.machine.key(), tuple(actor.key for actor in self.actors.values())))

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
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """States by what a panic there leaves behind."""
    traces: dict[Outcome, list[str]] = field(default_factory=dict)
    """For each outcome that is not good, one shortest way to it."""
    reasons: dict[Outcome, str] = field(default_factory=dict)
    """What the panic at the end of that trace came to."""
    at_rest: Counter[Outcome] = field(default_factory=Counter)
    """The same for the states in which all events are handled; a service that looks again may still repair them."""


def explore(scenario: Scenario, policy: str, limit: int = STATE_LIMIT) -> Exploration:
    """Search the states of *scenario* under *policy*, those of the fewest steps first, *limit* of them at most."""
    result = Exploration(policy)
    judged: dict[int, tuple[Outcome, str]] = {}
    simulation = Simulation(scenario, policy)
    loaded = simulation.machine.copy()
    first = _Run(simulation)
    seen = {first.key}
    frontier: list[tuple[_Run, _Node]] = [(first, _Node(None, "", ""))]
    while frontier:
        following: list[tuple[_Run, _Node]] = []
        for run, node in frontier:
            outcome = _judge(run, node, judged, result)
            if result.states >= limit:
                result.complete = False
                return result
            if run.is_quiet:
                result.at_rest[outcome] += 1
            for child, step in list(_children(run, node, loaded)):
                key = child.key
                if key not in seen:
                    seen.add(key)
                    following.append((child, step))
        frontier = following
    return result


def _children(run: _Run, node: _Node, loaded: ModelMachine) -> Iterator[tuple[_Run, _Node]]:
    """Yield each state that one step leads to; the last of them uses *run* itself."""
    able = run.able
    path = [step.actor for step in node.path()] if len(able) > 1 else []
    for name in able:
        child = run if name == able[-1] else run.again(loaded.copy(), path)
        yield child, _Node(node, name, child.advance(name))


def _judge(run: _Run, node: _Node, judged: dict[int, tuple[Outcome, str]], result: Exploration) -> Outcome:
    """Let a copy of the machine panic, once for each of its states."""
    key = run.simulation.machine.key()
    if key not in judged:
        came_to = panic(run.simulation.machine.copy())
        judged[key] = (came_to.outcome, came_to.sentence)
    outcome, sentence = judged[key]
    result.states += 1
    result.outcomes[outcome] += 1
    if outcome is not Outcome.ACCURATE and outcome not in result.traces:
        result.traces[outcome] = [f"{step.actor}: {step.label}" for step in node.path()]
        result.reasons[outcome] = sentence
    return outcome
