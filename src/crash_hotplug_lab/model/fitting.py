# SPDX-License-Identifier: MIT
"""Fits a scenario to the architecture of a model machine, or says why it cannot run there.

Scenarios are written for x86_64.  arm64 has no CPU hot-plug, and no kernel that updates the header itself.
"""

from __future__ import annotations

from dataclasses import replace

from crash_hotplug.core.machine import kernel_version
from crash_hotplug_lab.model.arch.architecture import ModelArchitecture
from crash_hotplug_lab.model.arch.x86_64 import X86_64
from crash_hotplug_lab.model.policies import KernelPolicy, policy_named
from crash_hotplug_lab.scenario.cpu_replug import plugs_cpus, without_cpu_hotplug
from crash_hotplug_lab.scenario.records import Scenario

_HOTPLUG_LOADER = "ch"


def why_no_policy(policy: str, arch: ModelArchitecture) -> str | None:
    """Return why an architecture has no such policy; None where it has."""
    if arch.record.updated_by_kernel_since is None and isinstance(policy_named(policy), KernelPolicy):
        return f"no released {arch.name} kernel updates the elfcorehdr itself, so there is no policy {policy}"
    return None


def fit(scenario: Scenario, arch: ModelArchitecture) -> tuple[Scenario, str]:
    """Return the scenario for a model machine, and the reason why it cannot run there; empty where it can.

    Policies, loaders and kernels that the architecture or the model of it lacks are left out.
    """
    refusal = _refusal(scenario, arch)
    if refusal is not None or arch is X86_64:
        return scenario, refusal or ""
    if plugs_cpus(scenario) and not arch.plugs_cpus:
        scenario = without_cpu_hotplug(scenario)
    loaders = tuple(loader for loader in scenario.load.loaders if loader != _HOTPLUG_LOADER)
    return replace(
        scenario,
        policies=tuple(policy for policy in scenario.policies if why_no_policy(policy, arch) is None),
        machine=replace(scenario.machine, kernels=_kernels(scenario, arch)),
        load=replace(scenario.load, loaders=loaders),
    ), ""


def _refusal(scenario: Scenario, arch: ModelArchitecture) -> str | None:
    hardware = scenario.machine
    refusal = None
    if hardware.architectures and arch.name not in hardware.architectures:
        refusal = f"the scenario is for {', '.join(hardware.architectures)} only"
    elif arch is X86_64:
        pass
    elif _asks_for_handler(scenario):
        refusal = f"kexec --hotplug is for kernels that update the elfcorehdr; no {arch.name} kernel does"
    elif hardware.crashkernel_low:
        refusal = f"the model's {arch.name} machine has no second reservation (crashkernel-low)"
    elif hardware.kernels and not _kernels(scenario, arch):
        refusal = f"{arch.name} kernels before 6.4 unmap a loaded image, which is not modelled"
    elif plugs_cpus(scenario) and hardware.cpus == 1 and not arch.plugs_cpus:
        refusal = f"{arch.name} has no CPU hot-plug, and the machine has no CPU 1 to go offline in its place"
    elif scenario.policies and all(why_no_policy(policy, arch) for policy in scenario.policies):
        refusal = why_no_policy(scenario.policies[0], arch)
    return refusal


def _kernels(scenario: Scenario, arch: ModelArchitecture) -> tuple[str, ...]:
    return tuple(series for series in scenario.machine.series if not _unmaps_image(series, arch))


def _asks_for_handler(scenario: Scenario) -> bool:
    loaders = scenario.load.loaders
    given = (action.arguments.get("loader") for action in scenario.actions)
    is_only = bool(loaders) and all(loader == _HOTPLUG_LOADER for loader in loaders)
    return scenario.load.hotplug_size is not None or is_only or _HOTPLUG_LOADER in given


def _unmaps_image(series: str, arch: ModelArchitecture) -> bool:
    version, before = kernel_version(series), arch.record.unmaps_image_before
    return before is not None and version is not None and version < before
