# SPDX-License-Identifier: MIT
"""The plan of a session: each scenario with each kernel, loader and way of updating that go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.finding import Kind
from crash_hotplug_lab.qemu.errors import LabError
from crash_hotplug_lab.qemu.fitting import fit
from crash_hotplug_lab.qemu.kernels import Kernel
from crash_hotplug_lab.qemu.results import run_name
from crash_hotplug_lab.scenario.file import bundled_scenarios, read_scenario
from crash_hotplug_lab.scenario.format import KEXECS, LOADERS, QEMU, UPDATES
from crash_hotplug_lab.scenario.records import Expectation, Scenario

DEFAULT_KERNELS = ("6.1", "6.12")
DEFAULT_SCENARIOS = ("hot-add",)


@dataclass(frozen=True)
class PlannedRun:
    """One combination of scenario, kernel, loader and update."""

    scenario: Scenario
    kernel: Kernel
    loader: str
    update: str
    skipped: str = ""
    """The reason why it is skipped; empty if it is run."""
    number: int = 0
    """Number of the repetition, from 1; 0 without repetitions."""

    @property
    def name(self) -> str:
        """The name of the run and of its directory."""
        return run_name(self.scenario.name, self.kernel.name, self.loader, self.update, self.number)


@dataclass(frozen=True)
class Known:
    """A combination that is known not to work, and the reason."""

    scenario: str
    """Name, or ``*``."""
    kernel: str
    """Name; ``*`` stands for any part of it."""
    loader: str
    reason: str
    updates: tuple[str, ...] = UPDATES
    """Ways of updating with which it does not work."""
    runs: bool = False
    """Whether it is run nevertheless; otherwise it is skipped."""
    finds: tuple[Kind, ...] = ()
    """Kinds of findings that the audit of its dump must have besides; without any it must leave no dump."""

    def matches(self, scenario: str, kernel: str, loader: str, update: str) -> bool:
        """Return whether a run is this combination."""
        if update not in self.updates:
            return False
        pairs = ((self.scenario, scenario), (self.kernel, kernel), (self.loader, loader))
        return all(fnmatchcase(value, pattern) for pattern, value in pairs)


_UNMAPPED = "an image that the kernel unmaps (before 6.4) cannot be looked at after each kill"
_NO_PURGATORY = "kexec_file_load loads no purgatory on arm64: nothing checks a digest"
KNOWN_BROKEN: tuple[Known, ...] = (
    Known("*", "5.10", "ch", "kexec-tools of bullseye has no --hotplug, and neither has the kernel"),
    Known("*", "6.1", "ch", "kexec-tools of bookworm (2.0.25) has no --hotplug, and neither has the kernel"),
    Known("*", "arm64-*", "ch", "no kernel has crash hot-plug on arm64"),
    Known("*", "arm64-*[!f]", "s", "Debian's arm64 kernels have no kexec_file_load"),
    Known("killed-*", "arm64-6.1", "*", _UNMAPPED),
    Known("killed-*", "arm64-6.1f", "*", _UNMAPPED),
    Known(
        "beside-reloads", "arm64-*[!f]", "c", "it measures kexec_file_load, which Debian's arm64 kernels do not have"
    ),
    Known("flipped-byte", "arm64-*f", "s", _NO_PURGATORY),
    Known("flipped-padding", "arm64-*f", "s", _NO_PURGATORY),
    Known(
        "*",
        "arm64-6.1",
        "c",
        "kexec-tools of bookworm (2.0.25) writes an elfcorehdr with wrong virtual addresses, which the capture kernel "
        "cannot read; an update in place corrects it",
        ("nothing", "reload"),
        runs=True,
    ),
    Known(
        "*",
        "arm64-5.10",
        "c",
        "kexec-tools of bookworm (2.0.25) writes an elfcorehdr with wrong virtual addresses; an update in place "
        "corrects it",
        ("nothing", "reload"),
        runs=True,
        finds=(Kind.WRONG_KERNEL_TEXT, Kind.WRONG_DIRECT_MAP),
    ),
)
"""Shown by ``list`` and in every report; the first that matches counts."""


def bundled() -> list[Scenario]:
    """Return the bundled scenarios that have expectations for QEMU."""
    return [scenario for scenario in bundled_scenarios() if scenario.expect]


def read(name: str) -> Scenario:
    """Read a scenario, for QEMU.

    :raise InputError: the file cannot be read, its content is wrong, or QEMU cannot run it
    """
    scenario = read_scenario(name)
    refusal = scenario.refusal(QEMU)
    if refusal is not None:
        raise InputError(refusal)
    if not scenario.expect:
        raise InputError(f"{name} has no [expect.UPDATE] table, for any UPDATE of {', '.join(UPDATES)}")
    return scenario


def natural_loader(kernel: Kernel) -> str:
    """Return the loader that a kernel's distribution uses; a kernel that the lab built is there for kexec_file_load."""
    return "s" if kernel.has_crash_hotplug or kernel.is_built else "c"


def update_without_user_space(kernel: Kernel, loader: str) -> str:
    """Return the update that needs no user space: the kernel's own, or nothing."""
    return "kernel" if kernel.has_crash_hotplug and loader in ("s", "ch", "own") else "nothing"


def plan(
    scenarios: list[Scenario], kernels: list[Kernel], loaders: list[str], updates: list[str], repeat: int = 1
) -> list[PlannedRun]:
    """Return every run, in order.

    :param loaders: names of loaders, ``all`` for all of kexec-tools; empty means each kernel's natural one
    :param updates: names of updates; empty means every one that the scenario has expectations for
    :param repeat: number of repetitions of each run
    :raise LabError: a loader is not known
    """
    for loader in loaders:
        if loader != "all" and loader not in LOADERS:
            raise LabError(f"no loader is known as {loader}; known are {', '.join(LOADERS)}, and all")
    runs = []
    for scenario in scenarios:
        for kernel in kernels:
            if scenario.machine.kernels and not {kernel.key, kernel.series_key} & {*scenario.machine.kernels}:
                continue
            for loader in _loaders(scenario, kernel, loaders):
                if scenario.load.loaders and loader not in scenario.load.loaders:
                    continue
                runs += _runs(scenario, kernel, loader, updates)
    if repeat > 1:
        return [replace(run, number=number) for run in runs for number in range(1, repeat + 1)]
    return runs


def _loaders(scenario: Scenario, kernel: Kernel, loaders: list[str]) -> list[str]:
    if "all" in loaders:
        return list(KEXECS)
    # A scenario for one loader only runs with that loader.
    only = list(scenario.load.loaders) if len(scenario.load.loaders) == 1 else []
    return loaders or only or [natural_loader(kernel)]


def _runs(scenario: Scenario, kernel: Kernel, loader: str, updates: list[str]) -> list[PlannedRun]:
    possible = [update_without_user_space(kernel, loader), "reload", "in-place", "watch"]
    chosen = [u for u in possible if u in scenario.expect and (not updates or u in updates)]
    fitted, refusal = fit(scenario, kernel)
    return [_run(fitted, kernel, loader, update, refusal) for update in chosen]


def _run(scenario: Scenario, kernel: Kernel, loader: str, update: str, refusal: str) -> PlannedRun:
    known = next((k for k in KNOWN_BROKEN if k.matches(scenario.name, kernel.name, loader, update)), None)
    if (
        known is None or refusal or (known.runs and kernel.kexec is not None)
    ):  # these are faults of Debian's kexec-tools
        return PlannedRun(scenario, kernel, loader, update, refusal)
    if not known.runs:
        return PlannedRun(scenario, kernel, loader, update, known.reason)
    wanted = scenario.expect[update] if known.finds else Expectation(dump=False)
    expect = {**scenario.expect, update: replace(wanted, fault=known.reason, fault_kinds=known.finds)}
    return PlannedRun(replace(scenario, expect=expect), kernel, loader, update)
