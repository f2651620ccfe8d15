# SPDX-License-Identifier: MIT
"""Runs a scenario on a model machine under one policy, up to its panic.

A simulation is the machine and the software on it: the kernel's own handler or a service in user space.  The story that
``simulate`` tells without arguments is here, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import NamedTuple

from crash_hotplug.core.decision import Outcome
from crash_hotplug.core.errors import CrashHotplugError, InputError
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.actions import LOADERS, STARTS
from crash_hotplug_lab.model.arch.architecture import ModelArchitecture
from crash_hotplug_lab.model.arch.x86_64 import X86_64
from crash_hotplug_lab.model.events import EventKind, Handled
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.panic import Panic, panic
from crash_hotplug_lab.model.policies import InPlace, KernelPolicy, Merged, Policy, policy_named
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ, CrashHotplug, MachineProfile
from crash_hotplug_lab.model.udev import rules_named
from crash_hotplug_lab.model.user_space import IDLE, Kexec, LoadCall, service
from crash_hotplug_lab.scenario.format import MODEL
from crash_hotplug_lab.scenario.records import Action, Scenario

V6_KERNEL = "5.18.0-v6-model"
MERGED_KERNEL = "6.12.0-model"
DEFAULT_POLICIES = ("reload", "merged", "in-place")
"""The policies of a scenario without policies of its own."""


class Simulation:
    """A scenario under one policy, ready to run: the machine and the software on it."""

    def __init__(self, scenario: Scenario, policy_name: str, arch: ModelArchitecture = X86_64) -> None:
        """Boot the machine and load the crash image.

        :raise InputError: the model cannot run the scenario
        :raise CrashHotplugError: the image could not be loaded
        """
        refusal = scenario.refusal(MODEL)
        if refusal is not None:
            raise InputError(refusal)
        # The other actions, such as update and wait, do not change the model.
        self.scenario = replace(scenario, actions=tuple(a for a in scenario.actions if a.do in STARTS))
        self.policy: Policy = policy_named(policy_name)
        self.kexec = _kexec_for(scenario, policy_name, arch)
        self.rules = rules_named(scenario.load.udev)
        self.machine: ModelMachine = boot(_profile_for(scenario, policy_name, arch))
        for _step in self.kexec.load(self.machine):
            pass
        self._run_software()

    def again(self, loaded: ModelMachine) -> Simulation:
        """Return the simulation at its start.

        :param loaded: a copy of the machine right after its image was loaded
        """
        made = copy(self)
        made.machine = loaded
        made._run_software()
        return made

    def _run_software(self) -> None:
        """Install the kernel's own handler if it has one, and start the service."""
        kernel = self.machine.profile.crash_hotplug
        if kernel is not CrashHotplug.NONE:
            install_in_kernel_handler(self.machine, self.policy if isinstance(self.policy, KernelPolicy) else Merged())
        self.service: Steps[None] | None = None
        if not isinstance(self.policy, KernelPolicy):
            self.service = service(self.machine, self.policy, self.kexec, self.rules)

    def start(self, action: Action) -> Steps[None]:
        """Return the steps of an action."""
        return STARTS[action.do](self.machine, self.kexec, action.arguments)


def _profile_for(scenario: Scenario, policy_name: str, arch: ModelArchitecture) -> MachineProfile:
    hardware = scenario.machine
    return arch.default_profile(
        _kernel_for(scenario, policy_name, arch),
        hardware.memory,
        hardware.possible_cpus,
        hardware.cpus,
        hardware.crashkernel,
        hardware.block_size,
        hardware.crashkernel_low,
        hardware.auto_online,
        hardware.max_memory_ranges,
        has_v6_patches=policy_name == "v6",
    )


def _kernel_for(scenario: Scenario, policy_name: str, arch: ModelArchitecture) -> str:
    """Return the kernel's release: the scenario's, or for v6 and merged one with that handler."""
    if policy_name == "v6":
        return V6_KERNEL
    release = next((f"{series}.0-model" for series in scenario.machine.series), arch.default_kernel)
    has_merged = arch.default_profile(release).crash_hotplug is CrashHotplug.MERGED
    return MERGED_KERNEL if policy_name == "merged" and not has_merged else release


def _kexec_for(scenario: Scenario, policy_name: str, arch: ModelArchitecture) -> Kexec:
    """Return the loader: the scenario's, else kexec_load with the options that the policy needs."""
    load = scenario.load
    loader = next(iter(load.loaders), None)
    if loader not in (None, *LOADERS):
        raise InputError(f"the model has no loader {loader}; it has {', '.join(LOADERS)}")
    kexec = Kexec(arch.small_capture_kernel(load.kernel_pages), hotplug_size=load.hotplug_size)
    if loader == "s":
        return replace(kexec, loader=LoadCall.KEXEC_FILE_LOAD)
    if policy_name == "v6":
        return replace(kexec, hotplug_size=load.hotplug_size or CRASH_HOTPLUG_ELFCOREHDR_SZ)
    return replace(kexec, hotplug=loader == "ch" or (loader is None and policy_name == "merged"))


class TakenStep(NamedTuple):
    """One step of a run."""

    action: int
    """Number of actions that had begun."""
    actor: str
    step: Step


@dataclass(frozen=True)
class PolicyResult:
    """The result of a scenario under one policy."""

    policy: str
    kernel: str
    machine: ModelMachine
    """The machine at the panic."""
    panic: Panic
    reports: tuple[Handled, ...]
    """Reports of the handler, without heartbeats that changed nothing."""
    steps: int
    windows: int
    """Number of times that the machine had no crash image or the kexec lock was held."""
    stopped_at: str | None
    """The step after which the scenario panics, if it names one."""


def run_scenario(scenario: Scenario, policy_name: str, arch: ModelArchitecture = X86_64) -> PolicyResult:
    """Run *scenario* until it panics.

    :raise InputError: the model cannot run the scenario, an action failed, or the step named for the panic never came
    """
    simulation = Simulation(scenario, policy_name, arch)
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
        where = next((action.where for action in scenario.actions if "after-step" in action.arguments), "")
        sentence = f"under {policy_name} there was no step {scenario.panic_step!r} after action {last}"
        raise InputError(f"{where}: {sentence}" if where else sentence)
    at_panic = machine.copy()
    return PolicyResult(
        policy_name,
        machine.profile.kernel_release,
        at_panic,
        panic(machine),
        tuple(r for r in machine.reports if _is_reported(r)),
        steps,
        windows,
        stopped_at,
    )


def _is_reported(report: Handled) -> bool:
    return report.event.kind is not EventKind.LOOK or report.outcome is not Outcome.UNCHANGED


def _steps(simulation: Simulation) -> Iterator[TakenStep]:
    """Take the steps of each action, then the service's, until the service is idle."""
    machine, service = simulation.machine, simulation.service
    for number, action in enumerate(simulation.scenario.actions, 1):
        try:
            for step in simulation.start(action):
                yield TakenStep(number, action.actor, step)
        except CrashHotplugError as error:
            where = f"{action.where}: " if action.where else ""
            raise InputError(f"{where}action {number} ({action}): {error}") from error
        if service is None:
            machine.uevents = ()
            continue
        # The second idle step comes after the heartbeat that follows the last event.
        idle, wanted = 0, 2 if isinstance(simulation.policy, InPlace) else 1
        while idle < wanted:
            step = next(service)
            idle += step == IDLE and not machine.uevents
            if step != IDLE:
                yield TakenStep(number, "service", step)


MIB, GIB = 1 << 20, 1 << 30

STORY = Scenario(
    title="Two CPUs and a DIMM are added, another DIMM is added and removed, then the kernel panics",
    description="A guest with 2 CPUs and 1 GiB of RAM loads its crash image at boot:",
    actions=(
        Action("add-cpu", {"cpu": 2}),
        Action("add-cpu", {"cpu": 3}),
        Action("add-dimm", {"name": "dimm0", "size": 256 * MIB}),
        Action("plant", {"dimm": "dimm0"}),
        Action("add-dimm", {"name": "dimm1", "size": 128 * MIB, "address": 5 * GIB}),
        Action("remove-dimm", {"name": "dimm1"}),
    ),
    policies=("reload", "merged", "in-place"),
)


POLICY_DESCRIPTIONS = {
    "reload": "a udev rule unloads and loads the image at every event",
    "reload-throttled": "a udev rule reloads the image once for events that arrive together (RHEL)",
    "v6": "the kernel patches of 2022 rewrite the header at every event",
    "merged": "the kernel's own handler rewrites the header (6.6 and newer)",
    "in-place": "crash-hotplug replaces the header in the loaded image",
}
"""A description of each policy, for people."""


class WindowCost(NamedTuple):
    """Seconds without a crash image, at one update or at several, and the source of the figures."""

    least: float
    most: float
    source: str


WINDOWS = {
    "reload": WindowCost(0.5, 1.0, "one kdumpctl reload takes 0.5 to 1 s or more; the image is gone for most of it"),
    "v6": WindowCost(0.0067, 0.023, "not measured for v6; the merged handler's time is taken"),
    "merged": WindowCost(0.0067, 0.023, "crash_handle_hotplug_event of 6.12 under the kexec lock, an emulated guest"),
    "in-place": WindowCost(0.0048, 0.0088, "medians of 180 kexec_load calls on 5.10 and 6.1, an emulated guest"),
}
WINDOWS["reload-throttled"] = WINDOWS["reload"]


def without_image(policy: str, windows: int, arch: ModelArchitecture = X86_64) -> WindowCost:
    """Return the time without a crash image: the number of windows times the measured time of one.

    The times were measured on x86_64; on another architecture the source of the figures says so.
    """
    cost = WINDOWS[policy]
    source = cost.source if arch is X86_64 else f"{cost.source}; measured on {X86_64.name}, not on {arch.name}"
    return WindowCost(round(cost.least * windows, 6), round(cost.most * windows, 6), source)


def window_sentence(policy: str, windows: int, arch: ModelArchitecture = X86_64) -> str:
    """Return :func:`without_image` as a sentence, which has no times on another architecture than x86_64."""
    if windows == 0:
        return "never"
    cost = without_image(policy, windows)
    times = "once" if windows == 1 else f"{windows} times"
    if arch is not X86_64:
        return times
    return f"{times}, {_seconds(cost.least)} to {_seconds(cost.most)}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"
