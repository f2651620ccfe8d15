# SPDX-License-Identifier: MIT
"""The records of a scenario: a machine, the load of its crash image, the actions, and the expected results."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from crash_hotplug.core.finding import Kind
from crash_hotplug_lab.scenario.format import ACTIONS, KEYS, MODEL, QEMU

_MIB = 1 << 20
BLOCK_SIZE = 128 * _MIB
"""Bytes in the memory blocks for which scenarios are written."""
HOTPLUG_ACTOR = "hotplug"
"""The actor of an action without an actor of its own."""
BUSY_PATTERN = 0xC0FFEE00_00000000
BUSY_REGISTERS = {f"r{n}": BUSY_PATTERN + n for n in range(8, 16)}
"""Registers of a CPU that ``busy`` keeps in a loop."""


@dataclass(frozen=True)
class Action:
    """One step of a scenario.  (A :class:`crash_hotplug.core.steps.Step` is a part of what an action does.)"""

    do: str
    """A key of :data:`~crash_hotplug_lab.scenario.format.ACTIONS`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keys and values; sizes and physical addresses in bytes."""
    actor: str = HOTPLUG_ACTOR
    """The actor.  Actions of one actor follow each other; actions of two actors may overlap."""
    where: str = field(default="", compare=False)
    """File, line and key of the step, for errors; empty where the action comes from no file."""

    def __str__(self) -> str:
        """Return the action as a time line shows it: ``add-dimm d0 256M``."""
        return " ".join([self.do, *(_shown(key, value) for key, value in self.arguments.items())])


def _shown(key: str, value: object) -> str:
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, int) and key == "address":
        return hex(value)
    if isinstance(value, int) and key in ("size", "requested"):
        return f"{value // _MIB}M" if value % _MIB == 0 else str(value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class Hardware:
    """``[machine]``: the machine at boot, and its kernels."""

    kernels: tuple[str, ...] = ()
    """Kernel series (``6.1``), or kernels of the lab (``7.2b``).  QEMU boots each of them, without any every known one;
    the model boots the first series."""
    architectures: tuple[str, ...] = ()
    """Architectures of the machines, every one without any.  A scenario whose programs or expected words fit one
    architecture names it."""
    memory: int = 1 << 30
    """Bytes of RAM at boot."""
    cpus: int = 2
    """CPUs at boot."""
    possible_cpus: int = 8
    crashkernel: int = 192 * _MIB
    """Bytes reserved for the capture kernel."""
    crashkernel_low: int = 0
    """Bytes of the low reservation; with one, the main reservation lies above 4 GiB."""
    block_size: int = 128 * _MIB
    """Bytes in a memory block."""
    auto_online: bool = True
    """Whether the kernel takes added memory online by itself."""
    max_memory_ranges: int = 8192
    """The kernel's CRASH_MAX_MEMORY_RANGES."""
    max_memory: int = 32 << 30
    """Largest RAM of QEMU's machine with all DIMMs, in bytes."""
    ram_holes: int = 0
    """Pages that the guest reserves at boot; each splits a range of its RAM."""
    crashkernel_cma: int = 0
    """Bytes of ``crashkernel=SIZE,cma`` (Linux 6.17 and newer): RAM that the capture kernel uses too; 0 for none."""
    nodes: int = 1
    """NUMA nodes.  The RAM and the CPUs at boot are in the first."""
    append: str = ""
    """More words of the kernel's command line."""

    @property
    def series(self) -> tuple[str, ...]:
        """The kernels without what the lab adds to the name of a series."""
        return tuple(found for kernel in self.kernels for found in re.findall(r"^\d+\.\d+", kernel))


@dataclass(frozen=True)
class Loading:
    """``[load]``: the load of the crash image."""

    loaders: tuple[str, ...] = ()
    """Keys of :data:`~crash_hotplug_lab.scenario.format.LOADERS`.  QEMU uses each of them, the model the first.
    Without any, QEMU uses every loader, and the model kexec_load (with ``--hotplug`` if the policy needs it)."""
    hotplug_size: int | None = None
    """``kexec --hotplug-size=`` of the v6 patches, in bytes."""
    udev: str = "rhel"
    """The rules file that starts reloads."""
    kernel_pages: int = 4
    """Pages of the model's capture kernel."""
    capture_without: tuple[str, ...] = ()
    """Words left out of the capture kernel's command line."""
    capture_modules: tuple[str, ...] = ()
    """Modules that the capture kernel loads before it reads the dump, beside those of its disk."""


@dataclass(frozen=True)
class Expected:
    """One finding that the audit must report, about a CPU, or about a DIMM or one block of it."""

    kind: Kind
    cpu: int | None = None
    dimm: str | None = None
    block: int | None = None
    """The only memory block of that DIMM that it is about; None for all."""


@dataclass(frozen=True)
class Expectation:
    """``[expect.UPDATE]``: the expected result of a scenario with one way of updating."""

    dump: bool = True
    """Whether there must be a readable vmcore."""
    findings: tuple[Expected, ...] = ()
    """The complete set of expected findings."""
    fault: str = ""
    """The fault of the kernel that causes the findings; empty for a negative control."""
    fault_kinds: tuple[Kind, ...] = ()
    """Kinds of findings that the fault adds, whatever they are about."""
    record: bool = False
    """Whether the result (complete, stale or no dump) is only recorded, for panics at a random moment."""


@dataclass(frozen=True)
class Scenario:
    """One scenario, for the model, for QEMU or for both."""

    title: str
    actions: tuple[Action, ...]
    """In order.  A scenario from a file has one of :data:`~crash_hotplug_lab.scenario.format.ENDS`; without
    one, the model panics after the last action."""
    name: str = ""
    description: str = ""
    policies: tuple[str, ...] = ()
    """Policies of the model.  ``explore`` without a scenario searches the bundled scenarios that have policies."""
    expect: Mapping[str, Expectation] = field(default_factory=dict)
    """Expectations by update.  ``run --all`` runs the bundled scenarios that have expectations."""
    machine: Hardware = Hardware()
    load: Loading = Loading()
    time_limit: float = 420
    """Seconds from the start of QEMU until the run is aborted."""
    counts_instructions: bool = False
    """Whether the guest's clock counts instructions, so that the load of the host does not change its times."""

    def counted(self) -> Scenario:
        """Return this scenario for a machine whose clock counts instructions: slower, but reproducible."""
        return replace(self, name=f"{self.name}-counted", counts_instructions=True, time_limit=4 * self.time_limit)

    @property
    def ends_without_dump(self) -> bool:
        """Whether the scenario ends without a panic."""
        return self.actions[-1].do == "end"

    @property
    def panic_step(self) -> str | None:
        """First words of the name of the model's step after which the panic occurs; None: at rest."""
        steps = (action.arguments.get("after-step") for action in self.actions if action.do == "panic")
        return next(steps, None)

    @property
    def most_dimms(self) -> int:
        """Largest number of DIMMs that are plugged in at the same time."""
        plugged = most = 0
        for action in self.actions:
            plugged += (action.do == "add-dimm") - (action.do == "remove-dimm")
            most = max(most, plugged)
        return most

    def refusal(self, side: str) -> str | None:
        """Return the reason why *side* (MODEL or QEMU) cannot run this scenario; None if it can."""
        other = QEMU if side == MODEL else MODEL
        found = next(self._only(other), None)
        return None if found is None else f"{side} cannot run {self.name or 'the scenario'}: only {other} has {found}"

    def _only(self, side: str) -> Iterator[str]:
        """Yield the keys and steps of this scenario that only *side* supports."""
        for table, record in (("machine", self.machine), ("load", self.load)):
            for known in fields(record):
                key = known.name.replace("_", "-")
                if KEYS[key].only == side and getattr(record, known.name) != known.default:
                    yield f"the key {table}.{key}"
        for action in self.actions:
            if ACTIONS[action.do].only == side:
                yield f"the step {action}"
            for key in action.arguments:
                if KEYS[key].only == side:
                    yield f"the key {key} of the step {action}"
            if side == MODEL and action.actor != HOTPLUG_ACTOR:
                yield f"the key actor of the step {action}"
