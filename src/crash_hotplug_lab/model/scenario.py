"""Scenarios: what happens to a model machine, and when it panics.  scenario_file.py reads them from TOML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Union

from crash_hotplug.core.ranges import Range
from crash_hotplug.core.steps import Step, Steps
from crash_hotplug_lab.model.cpu_hotplug import add_cpu, offline_cpu, online_cpu, remove_cpu
from crash_hotplug_lab.model.in_kernel import install_in_kernel_handler
from crash_hotplug_lab.model.loader import small_capture_kernel
from crash_hotplug_lab.model.machine import ModelMachine, boot
from crash_hotplug_lab.model.memory_hotplug import (
    KMEM_RAM,
    add_memory,
    add_virtio_mem,
    offline_block,
    online_block,
    remove_memory,
)
from crash_hotplug_lab.model.policies import KernelPolicy, Merged, Policy, policy_named
from crash_hotplug_lab.model.profile import CRASH_HOTPLUG_ELFCOREHDR_SZ, SYSTEM_RAM, CrashHotplug, default_profile
from crash_hotplug_lab.model.udev import RULES, UdevRules
from crash_hotplug_lab.model.user_space import Kexec, Loader, service

Value = Union[int, str, bool, tuple[int, ...]]

DEFAULT_KERNEL = "5.10.0-model"
V6_KERNEL = "5.18.0-v6-model"
MERGED_KERNEL = "6.12.0-model"


@dataclass(frozen=True)
class Action:
    """One thing that somebody does to the machine."""

    do: str
    """A key of :data:`ACTIONS`."""
    values: Mapping[str, Value] = field(default_factory=dict)
    actor: str = "hotplug"
    """Who does it: actions of one actor follow each other, those of two may fall into each other."""

    def __str__(self) -> str:
        shown = (
            f"{key}={value:#x}" if _is_address(key, value) else f"{key}={value}" for key, value in self.values.items()
        )
        return " ".join((self.do, *shown))


def _is_address(key: str, value: Value) -> bool:
    return key in ("at", "size", "word", "value") and isinstance(value, int)


@dataclass(frozen=True)
class Scenario:
    """A machine, how its crash image was loaded, what happens, and when it panics."""

    title: str
    actions: tuple[Action, ...]
    description: str = ""
    policies: tuple[str, ...] = ("reload", "merged", "in-place")
    kernel: str = DEFAULT_KERNEL
    """Kernel of reload and in-place; v6 and merged run on a kernel that has them."""
    machine: Mapping[str, Value] = field(default_factory=dict)
    """Parameters of :func:`~crash_hotplug_lab.model.profile.default_profile`."""
    kexec: Kexec = field(default_factory=lambda: Kexec(small_capture_kernel()))
    hotplug: bool | None = None
    """``kexec --hotplug``; None: where the policy needs it."""
    rules: UdevRules = RULES["rhel"]
    panic_after: int | None = None
    """After how many actions the machine panics; None: after all."""
    panic_step: str | None = None
    """The step, by the beginning of its name, right after which it panics; None: when all is quiet."""


class Simulation:
    """A scenario under one policy, ready to run: the machine, and what runs in user space on it."""

    def __init__(self, scenario: Scenario, policy_name: str) -> None:
        """Boot the machine and load the crash image.

        :raise CrashHotplugError: the image could not be loaded
        """
        self.scenario = scenario
        self.policy: Policy = policy_named(policy_name)
        self.kexec = _kexec_for(scenario, policy_name)
        options: dict[str, Value] = {**scenario.machine, "kernel_release": _kernel_for(scenario, policy_name)}
        profile = default_profile(**options, has_v6_patches=policy_name == "v6")  # type: ignore[arg-type]
        self.machine: ModelMachine = boot(profile)
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
            self.service = service(self.machine, self.policy, self.kexec, self.scenario.rules)

    def start(self, action: Action) -> Steps[None]:
        """Return the steps of an action."""
        return ACTIONS[action.do].start(self.machine, self.kexec, action.values)


def _kernel_for(scenario: Scenario, policy_name: str) -> str:
    if policy_name == "v6":
        return V6_KERNEL
    has_merged = default_profile(scenario.kernel).crash_hotplug is CrashHotplug.MERGED
    return MERGED_KERNEL if policy_name == "merged" and not has_merged else scenario.kernel


def _kexec_for(scenario: Scenario, policy_name: str) -> Kexec:
    kexec = scenario.kexec
    if kexec.loader is Loader.KEXEC_FILE_LOAD:
        return kexec
    if policy_name == "v6" and kexec.hotplug_size is None:
        return replace(kexec, hotplug_size=CRASH_HOTPLUG_ELFCOREHDR_SZ)
    hotplug = policy_name == "merged" if scenario.hotplug is None else scenario.hotplug
    return replace(kexec, hotplug=hotplug)


Start = Callable[[ModelMachine, Kexec, Mapping[str, Value]], Steps[None]]


@dataclass(frozen=True)
class ActionKind:
    """What an action is called with, and what it does."""

    start: Start
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


def number_of(values: Mapping[str, Value], key: str) -> int:
    """Return a value that the reader of the scenario checked to be a number."""
    value = values[key]
    assert isinstance(value, int)
    return value


def _add_cpu(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    yield from add_cpu(machine, number_of(values, "cpu"))
    if values.get("online", True):
        yield from online_cpu(machine, number_of(values, "cpu"))


def _memory(values: Mapping[str, Value]) -> tuple[str, Range]:
    start = number_of(values, "at")
    return str(values["name"]), Range(start, start + number_of(values, "size"))


def _add_memory(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    yield from add_memory(machine, *_memory(values), KMEM_RAM if values.get("driver") == "kmem" else SYSTEM_RAM)


def _add_virtio_mem(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    blocks = values["blocks"]
    assert isinstance(blocks, tuple)
    yield from add_virtio_mem(machine, *_memory(values), blocks)


def _plant(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    machine.memory.write(number_of(values, "at"), number_of(values, "word").to_bytes(8, "little"))
    yield Step("word planted in memory")


def _plant_register(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    cpu = machine.cpus[number_of(values, "cpu")]
    register = (str(values["register"]), number_of(values, "value"))
    machine.cpus[cpu.number] = replace(cpu, registers=(*cpu.registers, register))
    yield Step("value planted in a register")


def _under_flock(machine: ModelMachine, steps: Steps[None], careful: Value) -> Steps[None]:
    """Take steps as the distributions' wrappers do, with the lock file held; a careless administrator does not."""
    if careful:
        yield from machine.take_lock("flock_taken")
    try:
        yield from steps
    finally:
        if careful:
            machine.flock_taken = False
    yield Step("kexec: done")


def _load(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    chosen = replace(kexec, loader=Loader(values["loader"])) if "loader" in values else kexec
    yield from _under_flock(machine, chosen.load(machine), values.get("flock", True))


def _unload(machine: ModelMachine, kexec: Kexec, values: Mapping[str, Value]) -> Steps[None]:
    yield from _under_flock(machine, kexec.unload(machine), values.get("flock", True))


ACTIONS: dict[str, ActionKind] = {
    "cpu-add": ActionKind(_add_cpu, ("cpu",), ("online",)),
    "cpu-online": ActionKind(lambda m, k, v: online_cpu(m, number_of(v, "cpu")), ("cpu",)),
    "cpu-offline": ActionKind(lambda m, k, v: offline_cpu(m, number_of(v, "cpu")), ("cpu",)),
    "cpu-remove": ActionKind(lambda m, k, v: remove_cpu(m, number_of(v, "cpu")), ("cpu",)),
    "memory-add": ActionKind(_add_memory, ("name", "at", "size"), ("driver",)),
    "memory-remove": ActionKind(lambda m, k, v: remove_memory(m, str(v["name"])), ("name",)),
    "virtio-mem-add": ActionKind(_add_virtio_mem, ("name", "at", "size", "blocks")),
    "block-online": ActionKind(lambda m, k, v: online_block(m, number_of(v, "block")), ("block",)),
    "block-offline": ActionKind(lambda m, k, v: offline_block(m, number_of(v, "block")), ("block",)),
    "plant-word": ActionKind(_plant, ("at", "word")),
    "plant-register": ActionKind(_plant_register, ("cpu", "register", "value")),
    "load": ActionKind(_load, (), ("loader", "flock")),
    "unload": ActionKind(_unload, (), ("flock",)),
}
"""Every action by the name that scenarios use."""
