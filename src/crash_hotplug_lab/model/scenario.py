"""Runs scenarios on a model machine: what each action does to it, and the software that runs on it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from crash_hotplug.core.errors import InputError
from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.cpu_hotplug import add_cpu, offline_cpu, online_cpu, remove_cpu
from crash_hotplug_lab.model.errors import ModelError
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import MemoryDevice, ModelMachine, boot
from crash_hotplug_lab.model.memory_hotplug import (
    KMEM_RAM,
    add_memory,
    add_virtio_mem,
    offline_block,
    online_block,
    remove_memory,
)
from crash_hotplug_lab.model.policies import KernelPolicy, Merged, Policy, policy_named
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ, CrashHotplug, MachineProfile, default_profile
from crash_hotplug_lab.model.udev import rules_named
from crash_hotplug_lab.model.user_space import Kexec, LoadCall, service
from crash_hotplug_lab.scenario.format import MODEL
from crash_hotplug_lab.scenario.records import BUSY_REGISTERS, Action, Scenario

__all__ = ["Action", "Scenario", "Simulation"]  # explore.py takes all three from here

DEFAULT_KERNEL = "5.10.0-model"
V6_KERNEL = "5.18.0-v6-model"
MERGED_KERNEL = "6.12.0-model"
DEFAULT_POLICIES = ("reload", "merged", "in-place")
"""The policies of a scenario that names none."""
PLANTED_WORD = 0x6B64756D_70212121
PLANTED_OFFSET = 0x123000
"""Where in a DIMM ``plant`` writes the word."""
_LOADERS = {"c": LoadCall.KEXEC_LOAD, "ch": LoadCall.KEXEC_LOAD, "s": LoadCall.KEXEC_FILE_LOAD}
_GIB = 1 << 30


class Simulation:
    """A scenario under one policy, ready to run: the machine, and what runs in user space on it."""

    def __init__(self, scenario: Scenario, policy_name: str) -> None:
        """Boot the machine and load the crash image.

        :raise InputError: the scenario has something that the model does not
        :raise CrashHotplugError: the image could not be loaded
        """
        refusal = scenario.refusal(MODEL)
        if refusal is not None:
            raise InputError(refusal)
        # The other actions, such as update and wait, change nothing here.
        self.scenario = replace(scenario, actions=tuple(a for a in scenario.actions if a.do in STARTS))
        self.policy: Policy = policy_named(policy_name)
        self.kexec = _kexec_for(scenario, policy_name)
        self.rules = rules_named(scenario.load.udev)
        self.machine: ModelMachine = boot(_profile_for(scenario, policy_name))
        for _step in self.kexec.load(self.machine):
            pass
        self._run_software()

    def again(self, loaded: ModelMachine) -> Simulation:
        """Return the same simulation anew.

        :param loaded: a copy of the machine as it was when its image had just been loaded
        """
        made = copy(self)
        made.machine = loaded
        made._run_software()
        return made

    def _run_software(self) -> None:
        """Install the kernel's own handler where it has one, and start the service."""
        kernel = self.machine.profile.crash_hotplug
        if kernel is not CrashHotplug.NONE:
            install_in_kernel_handler(self.machine, self.policy if isinstance(self.policy, KernelPolicy) else Merged())
        self.service: Steps[None] | None = None
        if not isinstance(self.policy, KernelPolicy):
            self.service = service(self.machine, self.policy, self.kexec, self.rules)

    def start(self, action: Action) -> Steps[None]:
        """Return the steps of an action."""
        return STARTS[action.do](self.machine, self.kexec, action.arguments)


def _profile_for(scenario: Scenario, policy_name: str) -> MachineProfile:
    hardware = scenario.machine
    return default_profile(
        _kernel_for(scenario, policy_name),
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


def _kernel_for(scenario: Scenario, policy_name: str) -> str:
    """Return the release of the kernel: of reload and in-place the scenario's, of v6 and merged one that has them."""
    if policy_name == "v6":
        return V6_KERNEL
    release = next((f"{series}.0-model" for series in scenario.machine.kernels), DEFAULT_KERNEL)
    has_merged = default_profile(release).crash_hotplug is CrashHotplug.MERGED
    return MERGED_KERNEL if policy_name == "merged" and not has_merged else release


def _kexec_for(scenario: Scenario, policy_name: str) -> Kexec:
    """Return how the image is loaded: as the scenario says, else by kexec_load with what the policy needs."""
    load = scenario.load
    loader = next(iter(load.loaders), None)
    if loader not in (None, *_LOADERS):
        raise InputError(f"the model has no loader {loader}; it has {', '.join(_LOADERS)}")
    kexec = Kexec(small_capture_kernel(load.kernel_pages), hotplug_size=load.hotplug_size)
    if loader == "s":
        return replace(kexec, loader=LoadCall.KEXEC_FILE_LOAD)
    if policy_name == "v6":
        return replace(kexec, hotplug_size=load.hotplug_size or CRASH_HOTPLUG_ELFCOREHDR_SZ)
    return replace(kexec, hotplug=loader == "ch" or (loader is None and policy_name == "merged"))


Start = Callable[[ModelMachine, Kexec, Mapping[str, Any]], Steps[None]]
"""Returns the steps of an action, by the action's arguments."""


def _add_cpu(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_cpu(machine, arguments["cpu"])
    if arguments.get("online", True):
        yield from online_cpu(machine, arguments["cpu"])


def _place(machine: ModelMachine, arguments: Mapping[str, Any]) -> Range:
    """Return where a memory device goes: to its address, else where QEMU puts a DIMM.

    QEMU's memory devices begin at the first GiB boundary from 4 GiB on behind the RAM; a new one takes the first gap
    that is large enough (memory_device_get_free_addr() in hw/mem/memory-device.c).
    """
    size = arguments["size"]
    if "address" in arguments:
        return Range(arguments["address"], arguments["address"] + size)
    start = max(4 * _GIB, -(-machine.profile.boot_ram[-1].end // _GIB) * _GIB)
    for device in sorted(machine.devices.values(), key=lambda device: device.range.start):
        if device.range.start - start >= size:
            break
        start = max(start, device.range.end)
    return Range(start, start + size)


def _add_dimm(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_memory(machine, arguments["name"], _place(machine, arguments))


def _add_kmem(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_memory(machine, arguments["name"], _place(machine, arguments), KMEM_RAM)


def _add_virtio_mem(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from add_virtio_mem(machine, arguments["name"], _place(machine, arguments), arguments["blocks"])


def _device(machine: ModelMachine, name: str) -> MemoryDevice:
    """Return the memory device that has this name.

    :raise ModelError: there is none (ENODEV)
    """
    if name not in machine.devices:
        raise ModelError(errno.ENODEV, f"there is no memory device {name}")
    return machine.devices[name]


def _block(machine: ModelMachine, arguments: Mapping[str, Any]) -> int:
    """Return the number of a memory block, which the scenario counts from the beginning of its DIMM."""
    first = _device(machine, arguments["dimm"]).range.start // machine.profile.block_size
    return int(first + arguments["block"])


def _plant(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    start = _device(machine, arguments["dimm"]).range.start
    machine.memory.write(start + PLANTED_OFFSET, PLANTED_WORD.to_bytes(8, "little"))
    yield Step("word planted in memory")


def _busy(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    if arguments["cpu"] not in machine.online_cpus:
        raise ModelError(errno.ENODEV, f"CPU {arguments['cpu']} does not run")
    cpu = machine.cpus[arguments["cpu"]]
    machine.cpus[cpu.number] = replace(cpu, registers=(*cpu.registers, *BUSY_REGISTERS.items()))
    yield Step(f"CPU {cpu.number}: known values in r8 to r15")


def _under_flock(machine: ModelMachine, steps: Steps[None], careful: bool) -> Steps[None]:
    """Take steps as the distributions' wrappers do, with the lock file held; a careless administrator does not."""
    if careful:
        yield from machine.take_lock("flock_taken")
    try:
        yield from steps
    finally:
        if careful:
            machine.flock_taken = False
    yield Step("kexec: done")


def _load(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    if "loader" in arguments:
        kexec = replace(kexec, loader=_LOADERS[arguments["loader"]], hotplug=arguments["loader"] == "ch")
    yield from _under_flock(machine, kexec.load(machine), arguments.get("flock", True))


def _unload(machine: ModelMachine, kexec: Kexec, arguments: Mapping[str, Any]) -> Steps[None]:
    yield from _under_flock(machine, kexec.unload(machine), arguments.get("flock", True))


STARTS: dict[str, Start] = {
    "add-cpu": _add_cpu,
    "remove-cpu": lambda m, k, a: remove_cpu(m, a["cpu"]),
    "online-cpu": lambda m, k, a: online_cpu(m, a["cpu"]),
    "offline-cpu": lambda m, k, a: offline_cpu(m, a["cpu"]),
    "add-dimm": _add_dimm,
    "add-kmem": _add_kmem,
    "add-virtio-mem": _add_virtio_mem,
    "remove-dimm": lambda m, k, a: remove_memory(m, a["name"]),
    "online-block": lambda m, k, a: online_block(m, _block(m, a)),
    "offline-block": lambda m, k, a: offline_block(m, _block(m, a)),
    "plant": _plant,
    "busy": _busy,
    "load": _load,
    "unload": _unload,
}
"""Every action that changes something in the model.  The others have no effect there: updates are the policies' own."""
